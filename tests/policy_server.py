"""A chat server that samples from a policy, and a GRPO run that learns from what such a server drew."""

import json
import threading
from pathlib import Path
from typing import Any

from chat_server import Say, counted, sounds
from earwise.config.recipe import check_recipe
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.train import run
from earwise.types import Audio, Example, Text, Turn

VLLM = [{"id": "m", "owned_by": "vllm"}]
HEARS_S = 2
LORA = {"connector": "frozen", "decoder": "lora", "lora": {"r": 2, "lora_alpha": 4.0}}
FULL = {"connector": "full", "decoder": "full"}
STAGE = {
    "kind": "grpo", "max_steps": 4, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 5, "beta": 0.0,
    "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "rewards": {f"{__name__}:sum_of": 1.0},
    "optimizer": {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}, "save_steps": 1,
}  # fmt: skip


def served(model: Qwen2Audio, *, tokens: bool = True) -> Any:
    """What the server does with a request: the model's own samples, as vLLM tells them."""
    engine, lock = LocalEngine(model), threading.Lock()

    def answer(body: dict[str, Any], count: int) -> Say:
        waveforms = [wave[: HEARS_S * rate] for wave, rate in sounds(body)]
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
        sampling_params = SamplingParams(body["max_tokens"], body["temperature"], seed=body.get("seed", 0))
        with lock:
            said = engine.generate([Prompt(tuple(turns), tuple(waveforms), "k")], sampling_params, body.get("n", 1))[0]
        choices = []
        for one in said:
            told = {"content": [{"token": "", "logprob": value} for value in one.logprobs]}
            choice = {"message": {"role": "assistant", "content": one.text}, "finish_reason": one.finish_reason}
            choices.append(choice | ({"logprobs": told, "token_ids": list(one.token_ids)} if tokens else {}))
        return Say(choices=choices, usage=counted(body, "a"))

    return answer


def sum_of(example: Example, text: str) -> float:
    """A reward that tells samples apart, and teaches nothing for long."""
    return float(sum(map(ord, text)) % 97)


def trained(folder: Path, server: str, refresh: dict[str, Any] | None, trainable: dict[str, Any]) -> list[float]:
    """`ratio_mean` of every step."""
    stage = STAGE | {"rollout_server": server, "weight_sync": refresh, "trainable": trainable}
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    run.start(check_recipe({"recipe": "t", "model": model, "stages": [stage]}, "t"), folder / "run", folder)
    log = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["grpo/ratio_mean"] for row in log]
