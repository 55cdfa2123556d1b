"""What a step costs with and without the forest, on the embedded model and real clips. Prints JSON; `--out FILE`
keeps it.

    python benchmarks/steps.py --out benchmarks/results/cpu.json

The way without: every completion is a sequence of its own, run one by one, its clip encoded anew each time (as public
trainers do, but without
their padding to 30 s). Both ways compute the same log-probabilities; the largest gradient difference is part of the
result.
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

from earwise.algorithms.losses import grpo_loss, sft_loss
from earwise.audio import decode
from earwise.config.stages import TrainableConfig
from earwise.data.manifest import read
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM, load
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.prompts import prompt_turns
from earwise.train.batches import assemble
from earwise.train.policy import Micro, Policy
from earwise.train.run import STARTER
from earwise.train.trainable import prepare


def timed(function: Callable[[], object], repeats: int = 3) -> float:
    """Median wall seconds after one run to warm up."""
    function()
    return statistics.median(_once(function) for _ in range(repeats))


def _once(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matmul_gflops() -> float:
    """What this machine's float32 matrix product gives."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / timed(lambda: a @ a) / 1e9


def clip(seconds: float) -> np.ndarray:
    """A real clip, repeated to a length."""
    wave = decode(read(STARTER / "val.jsonl")[0].audio_paths[0])
    return np.resize(wave, int(seconds * 16000)).astype(np.float32)


def listening(model: AudioLM) -> dict[str, float]:
    """Encoder and connector seconds per clip, and per clip in a batch of eight."""
    out = {}
    with torch.inference_mode():
        for seconds in (2, 5, 10, 30):
            wave = clip(seconds)
            out[f"{seconds}s"] = timed(lambda wave=wave: model.encode_audio([wave]))
            if seconds < 30:
                out[f"{seconds}s_in_batch_of_8"] = timed(lambda wave=wave: model.encode_audio([wave] * 8), 1) / 8
    return out


def speaking(model: AudioLM) -> dict[str, float]:
    """Tokens per second of greedy decoding, and seconds to answer about a 10 s clip."""
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


def step(model: AudioLM, micros: list[Micro], loss: Callable[[torch.Tensor, Micro], torch.Tensor], hear: bool) -> float:
    """Forward and backward of one step; `hear`: run the encoder here (the way without sharing pays it per sequence)."""
    policy = Policy(model)
    total = 0.0
    for micro in micros:
        heard = micro.heard
        if hear:
            with torch.no_grad():
                heard = dict(zip(micro.waveforms, model.encode_audio(list(micro.waveforms.values())), strict=True))
        value = loss(policy(micro.forest, heard, micro.waveforms), micro)
        value.backward()
        total += float(value.detach())
    return total


def gradients(model: AudioLM) -> torch.Tensor:
    """All gradients as one vector, and cleared."""
    flat = torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])
    model.module.zero_grad()
    return flat


def compare(
    model: AudioLM, trees: list, waveforms: dict, loss: Callable[[torch.Tensor, Micro], torch.Tensor]
) -> dict[str, float]:
    """One step both ways: seconds and the relative gradient difference."""

    def forest() -> float:
        return step(model, assemble(model, EncoderCache(model), trees, waveforms, 1024), loss, False)

    def alone() -> float:
        return sum(
            step(model, assemble(model, None, [[path]], waveforms, 1024), loss, True) for tree in trees for path in tree
        )

    first = gradients_after(model, forest)
    second = gradients_after(model, alone)
    with_forest, without = timed(forest), timed(alone, 1)
    model.module.zero_grad()
    return {
        "forest_s": with_forest,
        "one_by_one_s": without,
        "times_faster": without / with_forest,
        "relative_gradient_difference": float((first - second).norm() / second.norm()),
    }


def gradients_after(model: AudioLM, run: Callable[[], float]) -> torch.Tensor:
    """Gradients of one step."""
    model.module.zero_grad()
    run()
    return gradients(model)


def grpo(model: AudioLM, prompts: int, group: int, new_tokens: int, seconds: float) -> dict[str, float]:
    """R1-AQA's shape: rollouts of the policy, then loss and backward."""
    wave = clip(seconds)
    examples = read(STARTER / "val.jsonl")[:prompts]
    asked = [Prompt(prompt_turns(example, "answer"), (wave,), example.id) for example in examples]
    engine = LocalEngine(model)
    start = time.perf_counter()
    groups = engine.generate(asked, SamplingParams(new_tokens, 1.0, seed=1), group)
    rollout = time.perf_counter() - start
    trees, waveforms = [], {}
    for number, (prompt, completions) in enumerate(zip(asked, groups, strict=True)):
        waveforms[number] = wave
        trunk = conversation_path(model, prompt.turns, [number], [len(wave)], generate=True)
        trees.append([trunk + completion_path(c.token_ids) for c in completions])

    def loss(logprobs: torch.Tensor, micro: Micro) -> torch.Tensor:
        return grpo_loss(
            logprobs, None, None, torch.ones(len(logprobs)), micro.forest.loss_mask, num_sequences=prompts * group
        ).loss

    out = {"rollout_s": rollout, "computed_per_sampled_token": engine.stats.computed_tokens / max(1, engine.stats.sampled_tokens)}
    return out | compare(model, trees, waveforms, loss)


def sft(model: AudioLM, questions: int, seconds: float) -> dict[str, float]:
    """ReasonAQA's shape: one clip, ten questions."""
    wave = clip(seconds)
    paths = []
    for example in read(STARTER / "val.jsonl")[:questions]:
        prompt = conversation_path(model, prompt_turns(example, "open"), [0], [len(wave)], generate=True)
        paths.append(prompt + answer_path(model, example.answer[0]))
    total = float(sum(sum(path.trained) for path in paths))

    def loss(logprobs: torch.Tensor, micro: Micro) -> torch.Tensor:
        return sft_loss(logprobs, micro.forest.loss_mask, denominator=total).loss

    return compare(model, [paths], {0: wave}, loss)


def main() -> None:
    """Measure everything once."""
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
        "listen_s": listening(model),
        "speak": speaking(model),
    }
    prepare(model, TrainableConfig())
    result["grpo_10s_group_8"] = grpo(model, 1, 8, 16, 10)
    result["sft_10s_10_questions"] = sft(model, 10, 10)
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)


if __name__ == "__main__":
    main()
