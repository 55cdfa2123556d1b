"""One GRPO step by three implementations, in turn on one machine: time of its phases, memory, and equal gradients.

    python benchmarks/grpo_step.py --model embedded --shape r1-aqa --out benchmarks/results/grpo_step.json

`earwise` One token tree per prompt (`baselines/earwise_step.py`).
`plain`   Every completion is a sequence of its own, whose clip is padded to 30 s and encoded again, as in R1-AQA's
          trainer (`baselines/transformers_step.py`); `--rows` sequences per forward pass.
`trl`     TRL 1.16's GRPOTrainer, patched to use the audio (`baselines/trl_step.py`); clips are padded to 30 s.
`plain-trimmed`, `trl-trimmed`  The same without padding, to separate its cost (embedded model only: Qwen2-Audio's class
          requires padded input and masks it).

All implementations share the same parameters. Completions are sampled once, and end tokens do not end them, so that
all sequences have full length: where a policy stops varies, and long different endings are the worst case for a tree.
All implementations train on these completions. Rollouts are timed separately, each with its own sampler, at full length
and with natural ends (`rollout_natural`).

Gradients are compared on equal encoder states. Whisper does not mask padding, so a padded clip gives the embedded model
other states than a trimmed one; there, the baselines get trimmed clips for the comparison, and padded runs are only
timed. With `--model embedded-padded` earwise pads, too, and all states are equal. `earwise` encodes a clip once, in the
rollout, where that time is counted; `listen` is the time that encoding it again for the update would take, reported
separately. The baselines use PEFT's own LoRA forward, earwise its fused one (`models/parts/lora_product.py`).

Gradients are always compared in float32. `--compute` and `--baseline-precision` choose in what precision the rounds are
timed; the difference that earwise's precision makes to its gradient is reported beside it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from baselines import flops, precision
from baselines.earwise_step import EarwiseStep
from baselines.hf_models import as_hf_model
from baselines.implementation import StepImplementation, WithPeftLora
from baselines.models import load_benchmark_model, perturb, take_gradients
from baselines.timing import (
    PhaseTimer,
    alternate_phases,
    machine,
    matmul_gflops,
    medians,
    peak_memory,
    ratio,
    stream_gbs,
)  # fmt: skip
from baselines.transformers_step import TransformersStep
from baselines.trl_step import TrlStep
from baselines.workload import SHAPES, Workload, workload

from earwise.files import write_json
from earwise.models.base import AudioLM
from earwise.models.precision.compute import COMPUTE_CHOICES, FLOAT32, set_compute

IMPLEMENTATIONS = ("plain", "trl", "earwise")
MODEL_NAMES = "embedded, embedded-padded, qwen2audio-random:{small,medium}"
PHASES = ("rollout", "listen", "reference", "loss", "optimizer")
SEED = 7
TOLERANCE = 1e-4
COMPUTE_TOLERANCE = 0.02
"""Largest relative difference of gradients in a lower precision."""
GOALS = {  # (part of the step, baseline) -> shape -> how many times faster earwise should be
    ("training", "plain"): {"r1-aqa": 10.0, "long": 5.0},
    ("again", "plain"): {"r1-aqa": 10.0, "long": 5.0},
    ("step", "plain"): {"r1-aqa": 6.0, "long": 6.0, "think": 6.0},
    ("step", "trl"): {"r1-aqa": 6.0, "long": 6.0, "think": 6.0},
}


def make_implementation(name: str, model: AudioLM, work: Workload, rows: int) -> StepImplementation:
    """An implementation by name; its reference is the model with its current weights."""
    kind, _, padding = name.partition("-")
    if kind == "earwise":
        return EarwiseStep(model, work)
    hf_model = as_hf_model(model, padded=padding != "trimmed")
    return WithPeftLora(
        model, TrlStep(model, work, hf_model) if kind == "trl" else TransformersStep(model, work, hf_model, rows=rows)
    )


def with_equal_states(model: AudioLM) -> list[str]:
    """Implementations with equal encoder states: trimmed baselines if the model trims and does not mask."""
    trimmed = "-trimmed" if model.trims_padding and not model.masks_padding else ""
    return [f"plain{trimmed}", f"trl{trimmed}", "earwise"]


def build(
    model_name: str, shape: str, prompts: int, names: Sequence[str], rows: int, *, compare: bool = False
) -> tuple[AudioLM, dict[str, StepImplementation]]:
    """A model and implementations that share it; the policy is a little away from the reference.

    Args:
        model_name: See `load_benchmark_model`.
        shape: Key of `SHAPES`.
        prompts: Number of prompts.
        names: Names of the implementations.
        rows: Sequences per forward pass of `plain`.
        compare: True adds the implementations that gradients are compared with.
    """
    model = load_benchmark_model(model_name)
    work = workload(model, SHAPES[shape], prompts)
    all_names = dict.fromkeys([*names, *(with_equal_states(model) if compare else ())])
    implementations = {name: make_implementation(name, model, work, rows) for name in all_names}
    perturb(model)
    return model, implementations


def gradient_differences(
    model: AudioLM, implementations: Mapping[str, StepImplementation], groups: list[list[list[int]]]
) -> dict[str, float]:
    """Relative norm of the difference of gradients, for every pair of implementations."""
    gradients = {}
    for name, implementation in implementations.items():
        implementation.train(PhaseTimer(), groups, update=False)
        gradients[name] = take_gradients(model)
    return {
        f"{first} against {second}": float((gradients[first] - gradients[second]).norm() / gradients[second].norm())
        for first, second in combinations(gradients, 2)
    }


def one_step(model_name: str, shape: str, prompts: int, name: str, rows: int, groups: list[list[list[int]]]) -> None:
    """A whole step of one implementation, for measuring its memory; the arguments are those of `build`."""
    transformers.logging.set_verbosity_error()
    _, implementations = build(model_name, shape, prompts, [name], rows)
    implementations[name].rollout(PhaseTimer(), full=True, seed=SEED)
    implementations[name].train(PhaseTimer(), groups)


def measure(model_name: str, shape: str, arguments: argparse.Namespace, rates: Mapping[str, float]) -> dict[str, Any]:
    """All results of one model and shape."""
    names, prompts, rows = list(arguments.implementations), arguments.prompts, arguments.rows
    model, implementations = build(model_name, shape, prompts, names, rows, compare=not arguments.no_gradients)
    earwise = implementations["earwise"]
    assert isinstance(earwise, EarwiseStep)
    # A random policy may sample the placeholder, which the baselines would replace by audio.
    replacement = {model.placeholder_id: model.eos_ids[0]}
    sampled = earwise.rollout(PhaseTimer(), full=True, seed=SEED)
    groups = [[[replacement.get(token, token) for token in ids] for ids in group] for group in sampled]
    passes = {"full": earwise.passes}
    natural = earwise.rollout(PhaseTimer(), full=False, seed=SEED)
    passes["natural"] = earwise.passes
    lengths = [len(ids) for group in natural for ids in group]
    differences: dict[str, float] = {}
    if not arguments.no_gradients:
        comparable = {name.partition("-")[0]: implementations[name] for name in with_equal_states(model)}
        differences = gradient_differences(model, comparable, groups)
    baselines = [name for name in names if name != "earwise"]
    chosen = precision.choose(arguments.baseline_precision, partial(one_forward, model, groups[0][0], shape))
    implementations |= {name: precision.InPrecision(implementations[name], chosen) for name in baselines}
    plan = set_compute(model, arguments.compute)
    precisions = {"earwise": str(plan)} | dict.fromkeys(baselines, str(chosen))
    rounding = None if plan == FLOAT32 else rounding_of_gradient(model, earwise, groups, arguments.compute)

    def full_step(implementation: StepImplementation, timer: PhaseTimer) -> None:
        implementation.rollout(timer, full=True, seed=SEED)
        implementation.train(timer, groups)

    def natural_rollout(implementation: StepImplementation, timer: PhaseTimer) -> None:
        implementation.rollout(timer, full=False, seed=SEED)

    times = alternate_phases(
        {name: partial(full_step, implementations[name]) for name in names},
        arguments.pairs,
        warm_up=not arguments.no_warm_up,
    )
    natural_times = alternate_phases(
        {name: partial(natural_rollout, implementations[name]) for name in names}, arguments.pairs, warm_up=False
    )
    for name in names:
        times[name]["rollout_natural"] = natural_times[name]["rollout"]
    out: dict[str, Any] = {
        "model": model_name, "shape": shape, "prompts": prompts, "pairs": arguments.pairs, "precision": precisions,
        "clip_s": SHAPES[shape].seconds, "group_size": SHAPES[shape].group,
        "max_new_tokens": SHAPES[shape].max_new_tokens,
        "trunk_tokens": [len(path.ids) for path in workload(model, SHAPES[shape], prompts).paths],
        "natural_mean_length": sum(lengths) / len(lengths),
        "distinct_share": earwise.distinct_share,
        "passes": passes,
        "seconds": {name: medians(phases) for name, phases in times.items()},
        "rounds": times,
        "gradient_differences": differences,
        "gradient_difference_by_rounding": rounding,
    }  # fmt: skip
    out["goals"] = goals(shape, times, max(differences.values(), default=None))
    if "earwise" in names and plan == FLOAT32:
        out["floor"] = against_floor(model, earwise, groups, out, rates)
    if not arguments.no_memory:
        out["peak_memory_mb"] = {
            name: peak_memory(partial(one_step, model_name, shape, prompts, name, rows, groups)) for name in names
        }
    return out


@torch.no_grad()
def one_forward(model: AudioLM, completion: Sequence[int], shape: str) -> None:
    """transformers' forward pass over the first prompt with one completion, with its clip padded."""
    work = workload(model, SHAPES[shape], 1)
    hf_model = as_hf_model(model, padded=True)
    ids = torch.tensor([[*work.paths[0].ids, *completion]])
    hf_model.module(input_ids=ids, attention_mask=torch.ones_like(ids), **hf_model.features(work.waveforms[0]))


def rounding_of_gradient(
    model: AudioLM, earwise: StepImplementation, groups: list[list[list[int]]], compute: str
) -> dict[str, float]:
    """How far earwise's gradient in a precision is from its gradient in float32, beside the goal."""
    gradients = []
    for choice in ("float32", compute):
        set_compute(model, choice)
        earwise.train(PhaseTimer(), groups, update=False)
        gradients.append(take_gradients(model))
    exact, rounded = gradients
    return {"found": float((rounded - exact).norm() / exact.norm()), "goal": COMPUTE_TOLERANCE}


def sum_phases(phases: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[float]:
    """Total seconds of some phases in each round."""
    return [sum(values) for values in zip(*(phases[name] for name in names if name in phases), strict=True)]


def goals(
    shape: str, times: Mapping[str, Mapping[str, list[float]]], largest_difference: float | None
) -> list[dict[str, Any]]:
    """How many times faster earwise is than each baseline, and the goals (`found` and `goal` in the results).

    Args:
        shape: Key of `SHAPES`.
        times: Implementation -> phase -> seconds in each round.
        largest_difference: Largest relative difference of gradients; None if they were not compared.
    """
    lines: list[dict[str, Any]] = []
    update = ("reference", "loss")
    parts = {
        "training": ("reference, loss and backward", ("listen", *update), update),
        "again": ("the same, had earwise to hear the sound again", ("listen", *update), ("listen", *update)),
        "step": ("whole step", PHASES, ("rollout", *update, "optimizer")),
    }
    for key, (title, baseline_phases, earwise_phases) in parts.items():
        for baseline in times:
            if baseline == "earwise" or "earwise" not in times:
                continue
            speedup = ratio(sum_phases(times[baseline], baseline_phases), sum_phases(times["earwise"], earwise_phases))
            goal = GOALS.get((key, baseline), {}).get(shape)
            line = {"what": f"{title}: times faster than {baseline}", "found": speedup, "goal": goal}
            lines.append(line | {"reached": None if goal is None else speedup >= goal})
    if largest_difference is None:
        return lines
    what = "largest relative gradient difference between the implementations"
    return [
        *lines,
        {"what": what, "found": largest_difference, "goal": TOLERANCE, "reached": largest_difference <= TOLERANCE},
    ]


def against_floor(
    model: AudioLM,
    earwise: EarwiseStep,
    groups: list[list[list[int]]],
    out: Mapping[str, Any],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """Seconds of each phase of earwise beside its lower bound on this machine (`floor`), and the share of the two.

    Args:
        model: The model.
        earwise: earwise's implementation.
        groups: The completions of each prompt.
        out: Results so far.
        rates: Rates of this machine.
    """
    earwise.train(PhaseTimer(), groups)
    counts, prompt_lengths = flops.weight_counts(model), out["trunk_tokens"]
    encoding_s = out["prompts"] * flops.encoder_flops(counts, out["clip_s"]) / rates["matmul_gflops"] / 1e9
    num_sampled = flops.num_decoded_prefixes(groups)
    decoding_s = flops.rollout_seconds(
        counts, prompt_lengths, num_sampled, out["passes"]["full"],
        gflops=rates["matmul_gflops"], gigabytes=rates["stream_gbs"],
    )  # fmt: skip
    positions, predicted = earwise.forest_tokens, earwise.sources
    lower_bounds = {
        "rollout": encoding_s + decoding_s,
        "listen": encoding_s,
        "reference": flops.reference_flops(counts, positions, predicted) / rates["matmul_gflops"] / 1e9,
        "loss": flops.train_flops(counts, positions, predicted) / rates["matmul_gflops"] / 1e9,
    }
    seconds = out["seconds"]["earwise"]
    one_by_one = sum(
        length * len(group) + sum(map(len, group)) for length, group in zip(prompt_lengths, groups, strict=True)
    )
    return {
        "phases": {
            name: {"seconds": seconds[name], "floor": value, "share": value / seconds[name]}
            for name, value in lower_bounds.items()
        },
        "decoder_tokens": {"distinct": len(positions), "one_by_one": one_by_one},
        "predicted_positions": predicted,
        "distinct_sampled_tokens": num_sampled,
        "sampled_tokens": sum(len(ids) for group in groups for ids in group),
        "note": "float32 products at the measured rate; encoding is counted in the rollout, `listen` is doing it again",
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=["embedded"], help=MODEL_NAMES)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["r1-aqa", "long", "think"])
    parser.add_argument(
        "--implementations",
        "--ways",
        nargs="+",
        choices=[*IMPLEMENTATIONS, "plain-trimmed", "trl-trimmed"],
        default=list(IMPLEMENTATIONS),
    )
    parser.add_argument("--prompts", type=int, default=1, help="prompts per step")
    parser.add_argument("--pairs", type=int, default=3, help="rounds; every implementation runs once in each")
    parser.add_argument("--rows", type=int, default=1, help="sequences per forward pass of `plain`")
    parser.add_argument("--compute", choices=COMPUTE_CHOICES, default="float32", help=precision.COMPUTE_HELP)
    parser.add_argument(
        "--baseline-precision", choices=precision.CHOICES, default="float32", help=precision.BASELINE_HELP
    )
    parser.add_argument("--no-gradients", action="store_true", help="do not compare gradients")
    parser.add_argument("--no-warm-up", action="store_true", help="time the first run of every implementation, too")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="a tiny model and shape, one round, to try it")
    parser.add_argument("--out", type=Path, help="JSON file for the results, written after every model and shape")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.shape, options.pairs, options.prompts = ["qwen2audio-random:tiny"], ["quick"], 1, 2
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its results."""
    transformers.logging.set_verbosity_error()
    options = parse(arguments)
    small = 256 if options.quick else 2048
    rates = {"matmul_gflops": matmul_gflops(small), "stream_gbs": stream_gbs(16 if options.quick else 256)}
    result: dict[str, Any] = {"machine": machine(), **rates, "results": []}
    for model_name in options.model:
        for shape in options.shape:
            result["results"].append(measure(model_name, shape, options, rates))
            if options.out:
                write_json(options.out, result)
    result["machine"]["load_average_at_end"] = machine()["load_average"]
    if options.out:
        write_json(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
