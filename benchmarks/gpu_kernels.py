"""One model on a device and on the CPU: log-probabilities of packed trees, gradients, greedy completions.

    python benchmarks/gpu_kernels.py --device cuda --out kernels.json

A random Qwen2-Audio with the encoder of Whisper base and twelve decoder layers; the CPU computes in float32. On the
device float32 must agree within 1e-3 nats (TF32 is off) and gradients within 1e-3 of their length; bfloat16 within 0.5
nats, as the check before the first step of a run. Exit code 1 if a limit is exceeded.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from baselines.models import load_benchmark_model, perturb, take_gradients
from baselines.workload import SHAPES, workload

from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.files import write_json
from earwise.models.base import AudioLM, best_device
from earwise.models.prompt_encoding import completion_path
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy

LIMITS = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest difference of a log-probability from the CPU's, in nats."""
GRADIENT_LIMITS = {"float32": 1e-3, "bfloat16": 0.2}
"""Largest length of the difference of all gradients, as a share of the length of the CPU's."""
COMPLETION_TOKENS = 12
BRANCHES = 3


def measure(model: AudioLM, shape: str) -> dict[str, Any]:
    """Log-probabilities and gradients of packed trees, and greedy completions of their prompts."""
    work = workload(model, SHAPES[shape], 2)
    rng = torch.Generator().manual_seed(0)
    trees = [
        [
            path + completion_path(torch.randint(10, 200, (COMPLETION_TOKENS,), generator=rng).tolist())
            for _ in range(BRANCHES)
        ]
        for path in work.paths
    ]
    waveforms = {number: prompt.waveforms[0] for number, prompt in enumerate(work.prompts)}
    policy, logprobs = Policy(model), []
    for micro_batch in build_micro_batches(model, None, trees, waveforms, 4096):
        values = policy(*micro_batch.policy_inputs)
        values = values if isinstance(values, torch.Tensor) else values[0]
        values.sum().backward()
        logprobs.append(values.detach().float().cpu().flatten())
    gradients = take_gradients(model).float().cpu()
    greedy = LocalEngine(model).generate(list(work.prompts), SamplingParams(COMPLETION_TOKENS))
    return {
        "logprobs": torch.cat(logprobs),
        "gradients": gradients,
        "greedy": [completion.token_ids for (completion,) in greedy],
    }


def _model(size: str) -> AudioLM:
    """The model on the CPU, with LoRA of which no matrix is zero."""
    model = load_benchmark_model(size)
    perturb(model)
    return model


def compare(device: str, size: str, shape: str) -> dict[str, Any]:
    """The differences between a device and the CPU in every dtype, and whether they are within the limits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    reference = measure(_model(size), shape)
    result: dict[str, Any] = {}
    for name in LIMITS:
        model = _model(size)
        model.module.to(device, getattr(torch, name))
        measured = measure(model, shape)
        off = float((measured["logprobs"] - reference["logprobs"]).abs().max())
        gradient = measured["gradients"] - reference["gradients"]
        gradient_off = float(gradient.norm() / reference["gradients"].norm())
        pairs = zip(measured["greedy"], reference["greedy"], strict=True)
        equal = sum(a == b for ids, others in pairs for a, b in zip(ids, others, strict=False))
        result[name] = {
            "logprobs_off_nats": off,
            "gradients_off": gradient_off,
            "greedy_tokens_equal": equal,
            "ok": off <= LIMITS[name] and gradient_off <= GRADIENT_LIMITS[name],
        }
    return result


def main(words: Sequence[str]) -> dict[str, Any]:
    """Compare, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--size", default="qwen2audio-random:small", help="model of `baselines/models.py`")
    parser.add_argument("--shape", default="r1-aqa", choices=SHAPES)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    result = compare(arguments.device, arguments.size, arguments.shape)
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(arguments.out, result)
    return result


if __name__ == "__main__":
    sys.exit(not all(values["ok"] for values in main(sys.argv[1:]).values()))
