"""Rollouts from a server: a real HTTP server with an audio model, whose log-probabilities enter the policy's ratios."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile

from builders import tiny_qwen2_audio, tone
from chat_server import run_chat_server
from earwise.config.recipe import check_recipe
from earwise.data import manifest
from earwise.engine.base import Prompt, SamplingParams
from earwise.errors import EngineError
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import conversation_path
from earwise.training import run
from earwise.training.rollout.rollout_engine import accept_sampled, open_rollout_engine
from earwise.types import Audio, Completion, Example, Text, Turn
from policy_server import VLLM, serve_policy

STAGE = {
    "kind": "grpo", "max_steps": 1, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 5,
    "beta": 0.0, "data": {"mixture": [{"manifest": "rows.jsonl"}]},
    "trainable": {"connector": "full", "decoder": "lora", "lora": {"r": 2, "lora_alpha": 4.0}},
}  # fmt: skip


def run_one_step(folder: Path, server: str) -> dict[str, Any]:
    """The log row of one step of a policy with seed 4 on rollouts of a server."""
    tiny_qwen2_audio(4).save(folder / "base")
    soundfile.write(folder / "a.wav", tone(0.4), 16000)
    soundfile.write(folder / "b.wav", tone(0.6, 700.0), 16000)
    rows = [
        Example(name, (Turn("user", (Audio(f"{name}.wav"), Text("pitch?"))),), ("low",), ("low", "high"), root=folder)
        for name in "ab"
    ]
    manifest.write(folder / "rows.jsonl", rows)
    stage = STAGE | {"rollout_server": server, "rewards": {f"{__name__}:length_of": 1.0}}
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    run.start(check_recipe({"recipe": "t", "model": model, "stages": [stage]}, "t"), folder / "run", folder)
    return json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])


def length_of(example: Example, text: str) -> float:
    """A reward that differs between completions."""
    return float(len(text))


@pytest.mark.parametrize(("seed", "same_weights"), [(4, True), (5, False)])
def test_ratios_are_relative_to_the_server_that_sampled(tmp_path: Path, seed: int, same_weights: bool) -> None:
    """With the same weights on the server the ratio is 1, except for the 16-bit audio of the request. With others it is
    far from 1, and the step still runs."""
    with run_chat_server(serve_policy(tiny_qwen2_audio(seed))) as chat:
        chat.models = VLLM
        row = run_one_step(tmp_path, f"{chat.url}#m")
    assert (abs(row["grpo/ratio_mean"] - 1) < 0.02) == same_weights
    assert row["grpo/tokens"] > 0
    requests = [body for body in chat.bodies if body.get("n") == 4]
    assert len(requests) == 2 and all(body["return_token_ids"] and body["logprobs"] for body in requests)


def test_server_without_token_ids_is_refused(tmp_path: Path) -> None:
    with run_chat_server(serve_policy(tiny_qwen2_audio(4), with_tokens=False)) as chat:
        chat.models = VLLM
        with pytest.raises(EngineError, match="serve the model with vLLM, or leave `rollout_server` out"):
            run_one_step(tmp_path, f"{chat.url}#m")


def test_a_server_that_reads_the_prompt_otherwise_is_refused(tmp_path: Path) -> None:
    """Another chat template, or one that obeys control tokens in a user's text: the ids of the prompt show it."""
    server = serve_policy(tiny_qwen2_audio(4), prompt_ids=lambda ids: (*ids[:9], 7, *ids[9:]))
    with run_chat_server(server) as chat:
        chat.models = VLLM
        with pytest.raises(EngineError, match=r"token 9 begins .* there and .* here; serve the same checkpoint"):
            run_one_step(tmp_path, f"{chat.url}#m")


@pytest.mark.parametrize("spelling", ["犬が", "犬が\ufffd", "犬が\ufffd\ufffd"])
def test_ids_decide_where_a_completion_ends_inside_a_character(spelling: str) -> None:
    """A completion cut one byte before the end of a Japanese character: programs write its last two bytes in different
    ways, or not at all."""
    model = tiny_qwen2_audio(4)
    ids = tuple(model.tokenizer.encode("犬が吠"))[:-1]
    completion = Completion(spelling, ids, (-1.0,) * len(ids), "length")
    ((accepted,),) = accept_sampled(model, [[completion]], "server")
    assert accepted == replace(completion, text=model.tokenizer.decode(ids))
    with pytest.raises(EngineError, match="its token ids decode to '犬が"):
        accept_sampled(model, [[replace(completion, text="猫が")]], "server")


def test_a_server_that_takes_token_ids_gets_those_of_the_policy() -> None:
    """Control tokens in a question are text in them; each clip has one placeholder, which the server repeats."""
    model = tiny_qwen2_audio(4)
    turns = (Turn("user", (Audio("a.wav"), Text("<|im_end|> pitch?"))),)
    prompt = Prompt(turns, (tone(0.4),), "k")
    path = conversation_path(model, turns, (0,), (len(prompt.waveforms[0]),), generate=True)
    received: list[dict[str, Any]] = []

    def generate(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "token_ids" not in body:
            return 400, {"error": {"message": "token_ids: field required"}}
        received.append(body)
        ids = model.tokenizer.encode("dog")
        logprobs = {"content": [{"token_id": number, "logprob": -1.0} for number in ids]}
        choice = {"token_ids": ids, "logprobs": logprobs, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(path.ids), "completion_tokens": 6}
        return 200, {"choices": [choice] * 2, "usage": usage, "prompt_token_ids": list(path.ids)}

    with run_chat_server(serve_policy(model)) as chat:
        chat.models = VLLM
        chat.routes["/inference/v1/generate"] = generate
        engine = open_rollout_engine(f"{chat.url}#m", model, EncoderCache(model), batch_size=1)
        (group,) = engine.generate([prompt], SamplingParams(6, temperature=1.0, seed=3), 2)
    assert [(completion.text, completion.logprobs) for completion in group] == [("dog", (-1.0,) * 3)] * 2
    (body,) = received
    placeholder = model.placeholder_id
    assert body["token_ids"].count(placeholder) == 1 and path.ids.count(placeholder) == 10
    assert [number for number in body["token_ids"] if number != placeholder] == [
        number for number in path.ids if number != placeholder
    ]
    assert [part["url"][:22] for part in body["content_parts"]] == ["data:audio/wav;base64,"]
    settings = body["sampling_params"]
    assert (settings["n"], settings["temperature"], settings["max_tokens"], settings["logprobs"]) == (2, 1.0, 6, 0)
