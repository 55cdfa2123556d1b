"""Rollouts from a server: a real HTTP server with a model that hears, its log-probabilities in the policy's ratios."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import soundfile

from builders import sound, tiny_qwen2_audio
from chat_server import Say, counted, serving, sounds
from earwise.config import check_recipe
from earwise.data import manifest
from earwise.engine.base import Decoding, Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import EngineError
from earwise.models.qwen2_audio import Qwen2Audio
from earwise.train import run
from earwise.types import Audio, Example, Text, Turn

VLLM = [{"id": "m", "owned_by": "vllm"}]
HEARS_S = 2
STAGE = {
    "kind": "grpo", "max_steps": 1, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 5,
    "beta": 0.0, "data": {"mixture": [{"manifest": "rows.jsonl"}]},
    "trainable": {"connector": "full", "decoder": "lora", "lora": {"r": 2, "alpha": 4.0}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def served(model: Qwen2Audio, *, tokens: bool = True) -> Any:
    """What the server does with a request: the model's own samples, as vLLM tells them."""
    engine, lock = LocalEngine(model), threading.Lock()

    def answer(body: dict[str, Any], count: int) -> Say:
        waves = [wave[: HEARS_S * rate] for wave, rate in sounds(body)]
        turns = []
        for message in body["messages"]:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            turns.append(
                Turn(
                    message["role"],
                    tuple(Text(part["text"]) if part["type"] == "text" else Audio("a") for part in parts),
                )
            )
        decoding = Decoding(body["max_tokens"], body["temperature"], seed=body.get("seed", 0))
        with lock:
            said = engine.generate([Prompt(tuple(turns), tuple(waves), "k")], decoding, body.get("n", 1))[0]
        choices = []
        for one in said:
            told = {"content": [{"token": "", "logprob": value} for value in one.logprobs]}
            choice = {"message": {"role": "assistant", "content": one.text}, "finish_reason": one.finish_reason}
            choices.append(choice | ({"logprobs": told, "token_ids": list(one.token_ids)} if tokens else {}))
        return Say(choices=choices, usage=counted(body, "a"))

    return answer


def started(folder: Path, server: str) -> dict[str, Any]:
    """The log row of one step of a policy with seed 4."""
    tiny_qwen2_audio(4).save(folder / "base")
    soundfile.write(folder / "a.wav", sound(0.4), 16000)
    soundfile.write(folder / "b.wav", sound(0.6, 700.0), 16000)
    rows = [
        Example(name, (Turn("user", (Audio(f"{name}.wav"), Text("pitch?"))),), ("low",), ("low", "high"), root=folder)
        for name in "ab"
    ]
    manifest.write(folder / "rows.jsonl", rows)
    stage = STAGE | {"sampler": server, "rewards": {f"{__name__}:length_of": 1.0}}
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    run.start(check_recipe({"recipe": "t", "model": model, "stages": [stage]}, "t"), folder / "run", folder)
    return json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])


def length_of(example: Example, text: str) -> float:
    """A reward that tells samples apart."""
    return float(len(text))


@pytest.mark.parametrize(("seed", "together"), [(4, True), (5, False)])
def test_ratios_are_against_who_sampled(tmp_path: Path, seed: int, together: bool) -> None:
    """The same weights on the server: ratio 1 but for 16-bit sound. Others: far from it, and the step still runs."""
    with serving(served(tiny_qwen2_audio(seed))) as chat:
        chat.models = VLLM
        row = started(tmp_path, f"{chat.url}#m")
    assert (abs(row["grpo/ratio_mean"] - 1) < 0.02) == together
    assert row["grpo/tokens"] > 0
    asked = [body for body in chat.bodies if body.get("n") == 4]
    assert len(asked) == 2 and all(body["return_token_ids"] and body["logprobs"] for body in asked)


def test_a_server_that_tells_no_tokens_is_refused(tmp_path: Path) -> None:
    with serving(served(tiny_qwen2_audio(4), tokens=False)) as chat:
        chat.models = VLLM
        with pytest.raises(EngineError, match="serve the model with vLLM, or leave `sampler` out"):
            started(tmp_path, f"{chat.url}#m")
