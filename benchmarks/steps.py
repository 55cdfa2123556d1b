"""Time of a step with and without token trees, on the embedded model and real clips. Prints JSON.

    python benchmarks/steps.py --out benchmarks/results/cpu.json

Without trees, every completion is a sequence of its own that is run alone, with its clip encoded again (as public
trainers do, but without their padding to 30 s). Both compute the same log-probabilities; the largest gradient
difference is part of the result.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from earwise.algorithms.losses import sft_loss
from earwise.algorithms.policy_loss import grpo_loss
from earwise.audio import decode
from earwise.config.stages import TrainableConfig
from earwise.data.manifest import read
from earwise.data.manifest_path import STARTER
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM, load
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.training.batches import build_micro_batches
from earwise.training.policy import MicroBatch, Policy
from earwise.training.trainable import set_trainable


def timed(function: Callable[[], object], repeats: int = 3) -> float:
    """Median wall seconds of a function, after a warm-up run."""
    function()
    return statistics.median(_once(function) for _ in range(repeats))


def _once(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matmul_gflops() -> float:
    """Rate of float32 matrix products on this machine, in GFLOP/s."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / timed(lambda: a @ a) / 1e9


def clip(seconds: float) -> np.ndarray:
    """A real clip, repeated to a length in seconds."""
    waveform = decode(read(STARTER / "val.jsonl")[0].audio_paths[0])
    return np.resize(waveform, int(seconds * 16000)).astype(np.float32)


def encoding_times(model: AudioLM) -> dict[str, float]:
    """Seconds of the encoder per clip of several lengths, alone and in a batch of eight."""
    out = {}
    with torch.inference_mode():
        for seconds in (2, 5, 10, 30):
            waveform = clip(seconds)
            out[f"{seconds}s"] = timed(lambda waveform=waveform: model.encode_audio([waveform]))
            if seconds < 30:
                out[f"{seconds}s_in_batch_of_8"] = (
                    timed(lambda waveform=waveform: model.encode_audio([waveform] * 8), 1) / 8
                )
    return out


def decoding_times(model: AudioLM) -> dict[str, float]:
    """Tokens per second of decoding, and seconds to answer about a 10 s clip."""
    engine = LocalEngine(model)
    example = read(STARTER / "val.jsonl")[0]
    prompt = Prompt(prompt_turns(example, "open"), (clip(10),), "a")
    answer = timed(lambda: LocalEngine(model).generate([prompt], SamplingParams(12)))
    out = {"answer_10s_clip_s": answer}
    for batch in (1, 8):
        prompts = [Prompt(prompt.turns, prompt.waveforms, str(i)) for i in range(batch)]
        engine.generate(prompts, SamplingParams(2))
        start, before = time.perf_counter(), engine.stats.sampled_tokens
        engine.generate(prompts, SamplingParams(32, 1.0, seed=3))
        out[f"tokens_per_s_batch_{batch}"] = (engine.stats.sampled_tokens - before) / (time.perf_counter() - start)
    return out


def step(
    model: AudioLM,
    micro_batches: list[MicroBatch],
    loss: Callable[[torch.Tensor, MicroBatch], torch.Tensor],
    encode: bool,
) -> float:
    """Forward and backward pass of one step; returns the loss.

    Args:
        model: The model.
        micro_batches: Packed trees of the step.
        loss: From log-probabilities and micro batch to the loss.
        encode: True encodes the clips here, as an implementation without shared clips has to.
    """
    policy = Policy(model)
    total = 0.0
    for micro_batch in micro_batches:
        encoder_states = micro_batch.encoder_states
        if encode:
            with torch.no_grad():
                encoder_states = dict(
                    zip(micro_batch.waveforms, model.encode_audio(list(micro_batch.waveforms.values())), strict=True)
                )
        value = loss(policy(micro_batch.forest, encoder_states, micro_batch.waveforms), micro_batch)
        value.backward()
        total += float(value.detach())
    return total


def gradients(model: AudioLM) -> torch.Tensor:
    """All gradients as one vector; they are cleared."""
    flat = torch.cat(
        [parameter.grad.flatten() for parameter in model.module.parameters() if parameter.grad is not None]
    )
    model.module.zero_grad()
    return flat


def compare(
    model: AudioLM, trees: list, waveforms: dict, loss: Callable[[torch.Tensor, MicroBatch], torch.Tensor]
) -> dict[str, float]:
    """One step with and without trees: seconds, and the relative difference of gradients.

    Args:
        model: The model.
        trees: Paths of each tree.
        waveforms: Clip of each number.
        loss: From log-probabilities and micro batch to the loss.
    """

    def with_trees() -> float:
        return step(model, build_micro_batches(model, EncoderCache(model), trees, waveforms, 1024), loss, False)

    def one_by_one() -> float:
        return sum(
            step(model, build_micro_batches(model, None, [[path]], waveforms, 1024), loss, True)
            for tree in trees
            for path in tree
        )

    first = gradients_after(model, with_trees)
    second = gradients_after(model, one_by_one)
    tree_s, one_by_one_s = timed(with_trees), timed(one_by_one, 1)
    model.module.zero_grad()
    return {
        "forest_s": tree_s,
        "one_by_one_s": one_by_one_s,
        "times_faster": one_by_one_s / tree_s,
        "relative_gradient_difference": float((first - second).norm() / second.norm()),
    }


def gradients_after(model: AudioLM, run: Callable[[], float]) -> torch.Tensor:
    """Gradients of one step as a vector."""
    model.module.zero_grad()
    run()
    return gradients(model)


def grpo(model: AudioLM, prompts: int, group: int, new_tokens: int, seconds: float) -> dict[str, float]:
    """A GRPO step in R1-AQA's shape: rollout, loss and backward.

    Args:
        model: The model.
        prompts: Number of prompts.
        group: Completions per prompt.
        new_tokens: Longest completion.
        seconds: Length of the clips.
    """
    waveform = clip(seconds)
    examples = read(STARTER / "val.jsonl")[:prompts]
    rollout_prompts = [Prompt(prompt_turns(example, "answer"), (waveform,), example.id) for example in examples]
    engine = LocalEngine(model)
    start = time.perf_counter()
    groups = engine.generate(rollout_prompts, SamplingParams(new_tokens, 1.0, seed=1), group)
    rollout = time.perf_counter() - start
    trees, waveforms = [], {}
    for number, (prompt, completions) in enumerate(zip(rollout_prompts, groups, strict=True)):
        waveforms[number] = waveform
        path = conversation_path(model, prompt.turns, [number], [len(waveform)], generate=True)
        trees.append([path + completion_path(completion.token_ids) for completion in completions])

    def loss(logprobs: torch.Tensor, micro_batch: MicroBatch) -> torch.Tensor:
        return grpo_loss(
            logprobs, None, None, torch.ones(len(logprobs)), micro_batch.forest.loss_mask, num_sequences=prompts * group
        ).loss

    out = {
        "rollout_s": rollout,
        "computed_per_sampled_token": engine.stats.computed_tokens / max(1, engine.stats.sampled_tokens),
    }
    return out | compare(model, trees, waveforms, loss)


def sft(model: AudioLM, questions: int, seconds: float) -> dict[str, float]:
    """An SFT step in ReasonAQA's shape: one clip with several questions."""
    waveform = clip(seconds)
    paths = []
    for example in read(STARTER / "val.jsonl")[:questions]:
        prompt = conversation_path(model, prompt_turns(example, "open"), [0], [len(waveform)], generate=True)
        paths.append(prompt + answer_path(model, example.answer[0]))
    total = float(sum(sum(path.trained) for path in paths))

    def loss(logprobs: torch.Tensor, micro_batch: MicroBatch) -> torch.Tensor:
        return sft_loss(logprobs, micro_batch.forest.loss_mask, denominator=total).loss

    return compare(model, [paths], {0: waveform}, loss)


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    model = load("embedded")
    result: dict[str, object] = {"load_s": time.perf_counter() - start}
    result |= {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "matmul_gflops": matmul_gflops(),
        "listen_s": encoding_times(model),
        "speak": decoding_times(model),
    }
    set_trainable(model, TrainableConfig())
    result["grpo_10s_group_8"] = grpo(model, 1, 8, 16, 10)
    result["sft_10s_10_questions"] = sft(model, 10, 10)
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
