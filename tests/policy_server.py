"""A chat server that samples from a policy, and a GRPO run that trains on the completions of such a server."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chat_server import ServerReply, count_usage, request_clips
from earwise.config.recipe import check_recipe
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.prompt_encoding import conversation_path
from earwise.training import run
from earwise.types import Audio, Completion, Example, Text, Turn

VLLM = [{"id": "m", "owned_by": "vllm"}]
"""The list of models of a vLLM server with a model named `m`."""
WINDOW_S = 2
"""Audio window of the tiny model, seconds; longer clips are cut to it."""
LORA = {"connector": "frozen", "decoder": "lora", "lora": {"r": 2, "lora_alpha": 4.0}}
FULL = {"connector": "full", "decoder": "full"}
STAGE = {
    "kind": "grpo", "max_steps": 4, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 5, "beta": 0.0,
    "data": {"mixture": [{"manifest": "rows.jsonl"}]}, "rewards": {f"{__name__}:sum_of": 1.0},
    "optimizer": {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}, "save_steps": 1,
}  # fmt: skip


def request_prompt(body: dict[str, Any]) -> Prompt:
    """The prompt of a chat request."""
    waveforms = [waveform[: WINDOW_S * rate] for waveform, rate in request_clips(body)]
    turns = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts_and_clips = (Text(part["text"]) if part["type"] == "text" else Audio("a") for part in parts)
        turns.append(Turn(message["role"], tuple(texts_and_clips)))
    return Prompt(tuple(turns), tuple(waveforms), "k")


def sample_completions(engine: LocalEngine, body: dict[str, Any]) -> list[Completion]:
    """The completions that a chat request asks for."""
    sampling_params = SamplingParams(body["max_tokens"], body["temperature"], seed=body.get("seed", 0))
    return engine.generate([request_prompt(body)], sampling_params, body.get("n", 1))[0]


def completion_choices(completions: Sequence[Completion], *, with_tokens: bool = True) -> list[dict[str, Any]]:
    """Completions as the `choices` of vLLM's reply, with token ids and log-probabilities or without."""
    choices: list[dict[str, Any]] = []
    for completion in completions:
        message = {"role": "assistant", "content": completion.text}
        choice: dict[str, Any] = {"message": message, "finish_reason": completion.finish_reason}
        if with_tokens:
            content = [{"token": "", "logprob": logprob} for logprob in completion.logprobs]
            choice |= {"logprobs": {"content": content}, "token_ids": list(completion.token_ids)}
        choices.append(choice)
    return choices


def serve_policy(
    model: Qwen2Audio, *, with_tokens: bool = True, prompt_ids: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple
) -> Callable[[dict[str, Any], int], ServerReply]:
    """A server that answers with samples of a model, in vLLM's format.

    Bytes at a completion's end that are no character are left out of its text, as vLLM does.

    Args:
        model: The model.
        with_tokens: Whether completions have token ids and log-probabilities.
        prompt_ids: Function from the true token ids of a prompt to those that the server returns.
    """
    engine, lock = LocalEngine(model), threading.Lock()

    def respond(body: dict[str, Any], count: int) -> ServerReply:
        with lock:
            completions = sample_completions(engine, body)
        choices = completion_choices(completions, with_tokens=with_tokens)
        for choice in choices:
            choice["message"]["content"] = choice["message"]["content"].rstrip("\ufffd")
        prompt = request_prompt(body)
        num_samples = [len(waveform) for waveform in prompt.waveforms]
        path = conversation_path(model, prompt.turns, range(len(num_samples)), num_samples, generate=True)
        return ServerReply(
            choices=choices, usage=count_usage(body, "a"), more={"prompt_token_ids": list(prompt_ids(path.ids))}
        )

    return respond


def sum_of(example: Example, text: str) -> float:
    """A reward that differs between completions, and from which nothing useful is learnt."""
    return float(sum(map(ord, text)) % 97)


def train_on_server(
    folder: Path, server: str, weight_sync: dict[str, Any] | None, trainable: dict[str, Any]
) -> list[float]:
    """Run a few steps of GRPO on rollouts of a server; returns `ratio_mean` of each step.

    Args:
        folder: Folder with `rows.jsonl` and the checkpoint `base`; the run is written there.
        server: Address of the server.
        weight_sync: Setting `weight_sync` of the stage.
        trainable: Setting `trainable` of the stage.
    """
    stage = STAGE | {"rollout_server": server, "weight_sync": weight_sync, "trainable": trainable}
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    run.start(check_recipe({"recipe": "t", "model": model, "stages": [stage]}, "t"), folder / "run", folder)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["grpo/ratio_mean"] for row in rows]
