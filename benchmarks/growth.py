"""Time and memory of earwise by size: a GRPO step, an SFT step, an evaluation by several processes, a manifest.

    python benchmarks/growth.py --rounds 1 --out benchmarks/results/growth.json --plot docs/images/growth.png

Sizes of a GRPO step are clip length, group size, answer length and number of prompts. It (`baselines/earwise_step.py`)
encodes clips once, samples, and computes reference, loss, backward and optimizer.
One size at a time is varied around a middle shape. End tokens do not end completions, so that all have exactly the
requested length, the worst case, since long endings differ. Memory is the peak of a fresh process that computes one
step; that of the model alone is given beside it. The other sizes are in `baselines/growth_axes.py`: questions about a
clip, clips, processes, and rows of a manifest (first index; opened again). `--compute` sets the precision, `--before
FILE` draws an older result as grey lines, `--replot FILE` draws a stored result again.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from baselines.earwise_step import EarwiseStep
from baselines.growth_axes import OTHER_AXES, measure_other
from baselines.models import load_benchmark_model, perturb
from baselines.timing import PhaseTimer, alternate_phases, machine, matmul_gflops, medians, peak_memory
from baselines.workload import Shape, workload

from earwise.files import write_json
from earwise.models.base import AudioLM
from earwise.models.precision.compute import COMPUTE_CHOICES, set_compute

SEED = 5
STEP = ("rollout", "reference", "loss", "optimizer")  # `listen` is encoding again, which only other benchmarks count


@dataclass(frozen=True, slots=True)
class StepSize:
    """Sizes of a step.

    Attributes:
        clip_s: Length of the clips in seconds.
        group: Completions per prompt.
        tokens: Tokens per completion.
        trees: Number of prompts.
    """

    clip_s: float = 10.0
    group: int = 8
    tokens: int = 16
    trees: int = 1


AXES: dict[str, tuple[str, list[float]]] = {
    "clip_s": ("GRPO: clip length (s)", [1, 5, 10, 20, 30]),
    "group": ("GRPO: answers per question", [1, 2, 8, 32]),
    "tokens": ("GRPO: tokens per answer", [4, 16, 64, 128]),
    "trees": ("GRPO: prompts per step", [1, 4, 16]),
}
LABELS = {axis: label for axis, (label, _) in (AXES | OTHER_AXES).items()}
MIDDLE = StepSize()
QUICK: dict[str, list[float]] = {
    "clip_s": [0.5, 1], "group": [1, 2], "tokens": [2, 4], "trees": [1, 2],
    "questions": [1, 3], "clips": [1, 2], "processes": [1, 2], "rows": [40, 400],
}  # fmt: skip


def with_size(axis: str, value: float, middle: StepSize) -> StepSize:
    """The middle sizes with one of them changed."""
    return replace(middle, clip_s=value) if axis == "clip_s" else replace(middle, **{axis: int(value)})


def make_step(model: AudioLM, point: StepSize) -> EarwiseStep:
    """earwise's step of a size."""
    return EarwiseStep(model, workload(model, Shape(point.clip_s, point.group, point.tokens), point.trees))


def run_step(earwise: EarwiseStep, timer: PhaseTimer) -> None:
    """Run one step."""
    earwise.train(timer, earwise.rollout(timer, full=True, seed=SEED))


def run_alone(model_name: str, point: StepSize | None) -> None:
    """Load the model and run one step (none if `point` is None), for measuring memory."""
    model = load_benchmark_model(model_name)
    if point is not None:
        run_step(make_step(model, point), PhaseTimer())


def measure(model_name: str, model: AudioLM, point: StepSize, rounds: int, *, memory: bool) -> dict[str, Any]:
    """Results of one size.

    Args:
        model_name: Name of the model, for the process that measures memory.
        model: The model.
        point: Sizes of the step.
        rounds: Number of timed steps.
        memory: True measures memory as well.
    """
    earwise = make_step(model, point)
    phases = medians(alternate_phases({"earwise": partial(run_step, earwise)}, rounds)["earwise"])
    out = asdict(point) | {
        "seconds": {name: phases[name] for name in STEP},
        "step_s": sum(phases[name] for name in STEP),
        "decoder_tokens": len(earwise.forest_tokens),
        "distinct_share": earwise.distinct_share,
    }
    if memory:
        out["peak_memory_mb"] = peak_memory(partial(run_alone, model_name, point))
    return out


def measure_size(
    axis: str, value: float, middle: StepSize, model: AudioLM, options: argparse.Namespace
) -> dict[str, Any]:
    """Results of one value of an axis."""
    memory = not options.no_memory
    if axis in OTHER_AXES:
        return measure_other(
            axis, int(value), options.model, model, options.rounds, memory=memory, toy=options.quick
        )  # fmt: skip
    return measure(options.model, model, with_size(axis, value, middle), options.rounds, memory=memory)


def _read(path: Path) -> dict[str, Any]:
    """A stored result."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def exponent(points: Sequence[Mapping[str, Any]], axis: str, key: str) -> float:
    """Exponent p of the power law `key ~ axis ** p`, from the last two points.

    >>> exponent([{"x": 2, "y": 3.0}, {"x": 4, "y": 12.0}], "x", "y")
    2.0
    """
    first, second = points[-2:]
    return math.log(second[key] / first[key]) / math.log(second[axis] / first[axis])


def plot(result: Mapping[str, Any], path: Path, before: Mapping[str, Any] | None = None) -> None:
    """Draw seconds and memory, two rows of panels for every four sizes; an older result is drawn in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(result["axes"])
    blocks = [axes[start : start + 4] for start in range(0, len(axes), 4)]
    width, rows = max(map(len, blocks)), 2 * len(blocks)
    figure, grid = pyplot.subplots(rows, width, figsize=(3.6 * width, 0.6 + 2.7 * rows), squeeze=False)
    for number, block in enumerate(blocks):
        for column in range(width):
            pair = grid[2 * number][column], grid[2 * number + 1][column]
            if column >= len(block):
                for panel in pair:
                    panel.set_visible(False)
                continue
            axis = block[column]
            older = [] if before is None else before["axes"].get(axis, [])
            _draw_axis(*pair, axis, result["axes"][axis], older)
    middle = result["middle"]
    figure.suptitle(
        f"{result['model']} on {result['machine']['cpu']}, {result['machine']['threads']} threads, "
        f"{result.get('precision', 'float32')}; GRPO where not varied: {middle['clip_s']:g} s clip, "
        f"{middle['group']} answers of {middle['tokens']} tokens",
        fontsize=11,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_axis(
    seconds: Any, memory: Any, axis: str, points: Sequence[Mapping[str, Any]], older: Sequence[Mapping[str, Any]]
) -> None:
    """Draw one size: seconds into the upper panel, memory into the lower one."""
    values = [point[axis] for point in points]
    if older:
        known = [point[axis] for point in older]
        seconds.plot(known, [point["step_s"] for point in older], ".-", color="0.7", label="before")
        if "peak_memory_mb" in older[0]:
            memory.plot(known, [point["peak_memory_mb"] for point in older], ".-", color="0.7", label="before")
    seconds.plot(values, [point["step_s"] for point in points], "o-", color="black", label="whole")
    if "seconds" in points[0]:
        rollout = [point["seconds"]["rollout"] for point in points]
        seconds.plot(values, rollout, "s--", color="#0072b2", label="rollout")
    if "again_s" in points[0]:
        seconds.plot(values, [point["again_s"] for point in points], "^:", color="#d55e00", label="opened again")
    if "peak_memory_mb" in points[0]:
        memory.plot(values, [point["peak_memory_mb"] for point in points], "o-", color="black")
    for panel, label in ((seconds, "seconds"), (memory, "peak memory (MB)")):
        panel.set_xscale("log", base=10 if axis == "rows" else 2)
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.set_xlabel(LABELS[axis], fontsize=10)
        panel.set_ylabel(label, fontsize=10)
    seconds.legend(fontsize=9)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--axes", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--compute", choices=COMPUTE_CHOICES, default="float32", help="precision of the products")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps per size, after one to warm up")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and two small sizes each, to try it")
    parser.add_argument("--out", type=Path, help="JSON file for the results, written after every size")
    parser.add_argument("--plot", type=Path, help="file for the picture")
    parser.add_argument("--before", type=Path, metavar="FILE", help="an older result, drawn in grey")
    parser.add_argument("--replot", type=Path, metavar="FILE", help="measure nothing, only draw a stored result")
    options = parser.parse_args(arguments)
    if options.replot and not options.plot:
        parser.error("--replot FILE needs --plot PICTURE")
    if options.quick:
        options.model, options.rounds, options.no_memory = "qwen2audio-random:tiny", 1, True
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print and draw its results."""
    transformers.logging.set_verbosity_error()
    options = parse(arguments)
    if options.replot:
        plot(_read(options.replot), options.plot, _read(options.before) if options.before else None)
        return
    middle = StepSize(1.0, 2, 3, 1) if options.quick else MIDDLE
    model = load_benchmark_model(options.model)
    perturb(model)
    plan = set_compute(model, options.compute)
    result: dict[str, Any] = {"machine": machine(), "matmul_gflops": matmul_gflops(256 if options.quick else 2048)}
    result |= {
        "precision": str(plan),
        "model": options.model,
        "middle": asdict(middle),
        "rounds": options.rounds,
        "axes": {},
        "exponents": {},
    }
    if not options.no_memory:
        result["model_memory_mb"] = peak_memory(partial(run_alone, options.model, None))
    for axis in options.axes:
        points: list[dict[str, Any]] = []
        result["axes"][axis] = points
        for value in QUICK[axis] if options.quick else (AXES | OTHER_AXES)[axis][1]:
            points.append(measure_size(axis, value, middle, model, options))
            if options.out:
                write_json(options.out, result)
        result["exponents"][axis] = {
            key: exponent(points, axis, key)
            for key in ("step_s", "peak_memory_mb")
            if all(point.get(key) for point in points[-2:])  # what is too small to be measured has no exponent
        }
    result["machine"]["load_average_at_end"] = machine()["load_average"]
    if options.out:
        write_json(options.out, result)
    if options.plot:
        plot(result, options.plot, _read(options.before) if options.before else None)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
