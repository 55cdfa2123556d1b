"""One GRPO step, three ways, in turn on one machine: seconds of its phases, memory, and whether the gradients agree.

    python benchmarks/grpo_step.py --model embedded --shape r1-aqa --out benchmarks/results/grpo_step.json

`trl`     TRL 1.16's GRPOTrainer, made to hear (`ways/trl_hears.py`); clips padded to 30 s as processors do
`plain`   every completion a sequence of its own, its clip padded to 30 s and encoded for each, as R1-AQA's trainer does
          (`ways/plain.py`); `--rows` sequences a forward pass
`earwise` one tree per prompt (`ways/own.py`)
`trl-trimmed`, `plain-trimmed`  the same on the clip's own frames, for who wonders what padding alone costs (embedded
          model only: Qwen2-Audio's class takes padded input and masks it)

All ways hold the very same parameters. Completions are sampled once, with end marks drawn but not obeyed, so that every
sequence has full length: where a policy stops is luck, and long different endings are the worst case for a tree. All
ways learn from these ids; rollouts are timed apart, each with its own sampler, at full length and as they end by
themselves (`rollout_natural`).

Gradients are compared at equal listening: Whisper does not mask, so a padded clip gives the embedded model other
encoder states than a trimmed one. There the ways of others get the trimmed frames for the comparison; padded runs are
for the clock. With `--model embedded-padded` earwise pads too, and all hear the same. `earwise` hears a sound once, in
the rollout, where it is counted; `listen` is what hearing it again for the update would cost, given as a line of its
own. LoRA is peft's own in the ways of others and one operation in earwise (`models/parts/lora_product.py`).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import transformers
from ways import floor
from ways.hears import hearing
from ways.models import bench_model, stir, take_gradients
from ways.own import Own
from ways.plain import Plain
from ways.shapes import SHAPES, Workload, workload
from ways.timing import (
    Clock,
    alternate_phases,
    machine,
    matmul_gflops,
    medians,
    peak_memory,
    ratio,
    stream_gbs,
)  # fmt: skip
from ways.trl_hears import Trl
from ways.way import Way, WithPeft

from earwise.files import write_json
from earwise.models.base import AudioLM

WAYS = ("plain", "trl", "earwise")
NAMES = "embedded, embedded-padded, qwen2audio-random:{small,medium}"
PHASES = ("rollout", "listen", "reference", "loss", "optimizer")
SEED = 7
TOLERANCE = 1e-4
GOALS = {  # how many times faster than whom, in what, by shape
    ("training", "plain"): {"r1-aqa": 10.0, "long": 5.0},
    ("again", "plain"): {"r1-aqa": 10.0, "long": 5.0},
    ("step", "plain"): {"r1-aqa": 6.0, "long": 6.0, "think": 6.0},
    ("step", "trl"): {"r1-aqa": 6.0, "long": 6.0, "think": 6.0},
}


def make_way(name: str, model: AudioLM, work: Workload, rows: int) -> Way:
    """A way by name; takes the weights as they are now as its reference."""
    kind, _, listening = name.partition("-")
    if kind == "earwise":
        return Own(model, work)
    ears = hearing(model, padded=listening != "trimmed")
    return WithPeft(model, Trl(model, work, ears) if kind == "trl" else Plain(model, work, ears, rows=rows))


def equal_listening(model: AudioLM) -> list[str]:
    """The ways that hear the same: padded ones unless the model trims and its encoder does not mask."""
    trimmed = "-trimmed" if model.trims and not model.masks else ""
    return [f"plain{trimmed}", f"trl{trimmed}", "earwise"]


def build(
    model_name: str, shape: str, prompts: int, names: Sequence[str], rows: int, *, compare: bool = False
) -> tuple[AudioLM, dict[str, Way]]:
    """A model, and ways that share it and its reference (with those to compare gradients by, if asked for); the policy
    stands a little away from the reference."""
    model = bench_model(model_name)
    work = workload(model, SHAPES[shape], prompts)
    wanted = dict.fromkeys([*names, *(equal_listening(model) if compare else ())])
    ways = {name: make_way(name, model, work, rows) for name in wanted}
    stir(model)
    return model, ways


def gradient_differences(model: AudioLM, ways: Mapping[str, Way], groups: list[list[list[int]]]) -> dict[str, float]:
    """Norm of the difference over the norm, for every pair of ways."""
    found = {}
    for name, way in ways.items():
        way.train(Clock(), groups, update=False)
        found[name] = take_gradients(model)
    return {
        f"{first} against {second}": float((found[first] - found[second]).norm() / found[second].norm())
        for first, second in combinations(found, 2)
    }


def one_step(model_name: str, shape: str, prompts: int, name: str, rows: int, groups: list[list[list[int]]]) -> None:
    """Everything that one way does in a step; what memory is measured on."""
    transformers.logging.set_verbosity_error()
    _, ways = build(model_name, shape, prompts, [name], rows)
    ways[name].rollout(Clock(), full=True, seed=SEED)
    ways[name].train(Clock(), groups)


def measure(model_name: str, shape: str, arguments: argparse.Namespace, rates: Mapping[str, float]) -> dict[str, Any]:
    """All figures of one model at one shape."""
    names, prompts, rows = list(arguments.ways), arguments.prompts, arguments.rows
    model, ways = build(model_name, shape, prompts, names, rows, compare=True)
    own = ways["earwise"]
    assert isinstance(own, Own)
    # A random policy may draw the placeholder itself, which no other way would take for a word.
    words = {model.placeholder_id: model.eos_ids[0]}
    drawn = own.rollout(Clock(), full=True, seed=SEED)
    groups = [[[words.get(token, token) for token in ids] for ids in group] for group in drawn]
    passes = {"full": own.passes}
    natural = own.rollout(Clock(), full=False, seed=SEED)
    passes["natural"] = own.passes
    lengths = [len(ids) for group in natural for ids in group]
    alike = {name.partition("-")[0]: ways[name] for name in equal_listening(model)}
    differences = gradient_differences(model, alike, groups)

    def whole(way: Way, clock: Clock) -> None:
        way.rollout(clock, full=True, seed=SEED)
        way.train(clock, groups)

    def ended(way: Way, clock: Clock) -> None:
        way.rollout(clock, full=False, seed=SEED)

    times = alternate_phases({name: partial(whole, ways[name]) for name in names}, arguments.pairs)
    short = alternate_phases({name: partial(ended, ways[name]) for name in names}, arguments.pairs, warm_up=False)
    for name in names:
        times[name]["rollout_natural"] = short[name]["rollout"]
    out: dict[str, Any] = {
        "model": model_name, "shape": shape, "prompts": prompts, "pairs": arguments.pairs,
        "clip_s": SHAPES[shape].seconds, "group_size": SHAPES[shape].group,
        "max_new_tokens": SHAPES[shape].max_new_tokens,
        "trunk_tokens": [len(path.ids) for path in workload(model, SHAPES[shape], prompts).trunks],
        "natural_mean_length": sum(lengths) / len(lengths),
        "distinct_share": own.distinct_share,
        "passes": passes,
        "seconds": {name: medians(phases) for name, phases in times.items()},
        "rounds": times,
        "gradient_differences": differences,
    }  # fmt: skip
    out["goals"] = goals(shape, times, max(differences.values()))
    if "earwise" in names:
        out["floor"] = against_floor(model, own, groups, out, rates)
    if not arguments.no_memory:
        out["peak_memory_mb"] = {
            name: peak_memory(partial(one_step, model_name, shape, prompts, name, rows, groups)) for name in names
        }
    return out


def summed(phases: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[float]:
    """Seconds of some phases together, round by round."""
    return [sum(values) for values in zip(*(phases[name] for name in names if name in phases), strict=True)]


def goals(shape: str, times: Mapping[str, Mapping[str, list[float]]], worst: float) -> list[dict[str, Any]]:
    """What issue 3 asks of a step, found and wanted, for every other way that was run."""
    lines: list[dict[str, Any]] = []
    update = ("reference", "loss")
    parts = {
        "training": ("reference, loss and backward", ("listen", *update), update),
        "again": ("the same, had earwise to hear the sound again", ("listen", *update), ("listen", *update)),
        "step": ("whole step", PHASES, ("rollout", *update, "optimizer")),
    }
    for key, (said, theirs, ours) in parts.items():
        for other in times:
            if other == "earwise" or "earwise" not in times:
                continue
            found = ratio(summed(times[other], theirs), summed(times["earwise"], ours))
            wanted = GOALS.get((key, other), {}).get(shape)
            line = {"what": f"{said}: times faster than {other}", "found": found, "goal": wanted}
            lines.append(line | {"reached": None if wanted is None else found >= wanted})
    what = "largest relative gradient difference between the ways"
    return [*lines, {"what": what, "found": worst, "goal": TOLERANCE, "reached": worst <= TOLERANCE}]


def against_floor(
    model: AudioLM, own: Own, groups: list[list[list[int]]], out: Mapping[str, Any], rates: Mapping[str, float]
) -> dict[str, Any]:
    """Seconds that each phase of earwise took, the least it could take here, and what share of its time that is."""
    own.train(Clock(), groups)
    of, trunks = floor.sizes(model), out["trunk_tokens"]
    heard = out["prompts"] * floor.listen_flops(of, out["clip_s"]) / rates["matmul_gflops"] / 1e9
    distinct = floor.advanced(groups)
    decoding = floor.rollout_seconds(
        of, trunks, distinct, out["passes"]["full"],
        gflops=rates["matmul_gflops"], gigabytes=rates["stream_gbs"],
    )  # fmt: skip
    positions, predicted = own.forest_tokens, own.sources
    least = {
        "rollout": heard + decoding,
        "listen": heard,
        "reference": floor.reference_flops(of, positions, predicted) / rates["matmul_gflops"] / 1e9,
        "loss": floor.train_flops(of, positions, predicted) / rates["matmul_gflops"] / 1e9,
    }
    took = out["seconds"]["earwise"]
    alone = sum(trunk * len(some) + sum(map(len, some)) for trunk, some in zip(trunks, groups, strict=True))
    return {
        "phases": {
            name: {"seconds": took[name], "floor": value, "share": value / took[name]} for name, value in least.items()
        },
        "decoder_tokens": {"distinct": len(positions), "one_by_one": alone},
        "predicted_positions": predicted,
        "distinct_sampled_tokens": distinct,
        "sampled_tokens": sum(len(ids) for some in groups for ids in some),
        "note": "float32 products at the measured rate; listening is counted in the rollout, `listen` is a second time",
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=["embedded"], help=NAMES)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["r1-aqa", "long", "think"])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, "plain-trimmed", "trl-trimmed"], default=list(WAYS))
    parser.add_argument("--prompts", type=int, default=1, help="prompts of a step")
    parser.add_argument("--pairs", type=int, default=3, help="rounds; every way runs once in each")
    parser.add_argument("--rows", type=int, default=1, help="sequences of a forward pass of `plain`")
    parser.add_argument("--no-memory", action="store_true", help="leave out the fresh process per way")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and shape, one round: does it work")
    parser.add_argument("--out", type=Path, help="keep the JSON here, written anew after every model and shape")
    known = parser.parse_args(arguments)
    if known.quick:
        known.model, known.shape, known.pairs, known.prompts = ["qwen2audio-random:tiny"], ["quick"], 1, 2
    return known


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    transformers.logging.set_verbosity_error()
    known = parse(arguments)
    small = 256 if known.quick else 2048
    rates = {"matmul_gflops": matmul_gflops(small), "stream_gbs": stream_gbs(16 if known.quick else 256)}
    result: dict[str, Any] = {"machine": machine(), **rates, "results": []}
    for model_name in known.model:
        for shape in known.shape:
            result["results"].append(measure(model_name, shape, known, rates))
            if known.out:
                write_json(known.out, result)
    result["machine"]["load_average_at_end"] = machine()["load_average"]
    if known.out:
        write_json(known.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
