"""Time and memory of earwise's GRPO step by clip length, group size, answer length and number of trees.

    python benchmarks/growth.py --out benchmarks/results/growth.json --plot docs/images/growth.png

A step (`baselines/earwise_step.py`) encodes clips once, samples, and computes reference, loss, backward and optimizer.
One size at a time is varied around a middle shape. End tokens do not end completions, so that all have exactly the
requested length, the worst case, since long endings differ. Memory is the peak of a fresh process that computes one
step; that of the model alone is given beside it. `--replot FILE` draws a stored result again.
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
from baselines.models import load_benchmark_model, perturb
from baselines.timing import PhaseTimer, alternate_phases, machine, matmul_gflops, medians, peak_memory
from baselines.workload import Shape, workload

from earwise.files import write_json
from earwise.models.base import AudioLM

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
    "clip_s": ("clip length (s)", [1, 2, 5, 10, 20, 30]),
    "group": ("answers per question", [1, 2, 4, 8, 16, 32]),
    "tokens": ("tokens per answer", [4, 8, 16, 32, 64, 128]),
    "trees": ("questions per step", [1, 2, 4, 8, 16]),
}
MIDDLE = StepSize()
QUICK: dict[str, list[float]] = {"clip_s": [0.5, 1], "group": [1, 2], "tokens": [2, 4], "trees": [1, 2]}


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


def exponent(points: Sequence[Mapping[str, Any]], axis: str, key: str) -> float:
    """Exponent p of the power law `key ~ axis ** p`, from the last two points.

    >>> exponent([{"x": 2, "y": 3.0}, {"x": 4, "y": 12.0}], "x", "y")
    2.0
    """
    first, second = points[-2:]
    return math.log(second[key] / first[key]) / math.log(second[axis] / first[axis])


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw seconds above and memory below, with one column per varied size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = result["axes"]
    rows = 2 if "model_memory_mb" in result else 1
    figure, grid = pyplot.subplots(rows, len(columns), figsize=(3.6 * len(columns), 0.6 + 2.9 * rows), squeeze=False)
    for column, (axis, points) in enumerate(columns.items()):
        values = [point[axis] for point in points]
        seconds = grid[0][column]
        training = [sum(point["seconds"][name] for name in STEP[1:]) for point in points]
        seconds.plot(values, [point["step_s"] for point in points], "o-", color="black", label="whole step")
        seconds.plot(values, [point["seconds"]["rollout"] for point in points], "s--", color="#0072b2", label="rollout")
        seconds.plot(values, training, "^:", color="#d55e00", label="training")
        if rows == 2:
            memory = grid[1][column]
            memory.plot(values, [point["peak_memory_mb"] for point in points], "o-", color="black", label="one step")
            memory.axhline(result["model_memory_mb"], linestyle="--", color="grey", label="model alone")
        for panel in grid[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:g}" for value in values])
            panel.minorticks_off()
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            panel.set_xlabel(AXES[axis][0], fontsize=12)
            panel.tick_params(labelsize=11)
    grid[0][0].set_ylabel("seconds per step", fontsize=12)
    if rows == 2:
        grid[1][0].set_ylabel("peak memory (MB)", fontsize=12)
    for row in grid:
        row[0].legend(fontsize=11)
    middle = result["middle"]
    figure.suptitle(
        f"One GRPO step of {result['model']} on a CPU (threads: {result['machine']['threads']}); where not varied: "
        f"{middle['clip_s']:g} s clip, {middle['group']} answers of {middle['tokens']} tokens, "
        f"{middle['trees']} question",
        fontsize=12,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3, help="timed steps per size, after one to warm up")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and two small sizes each, to try it")
    parser.add_argument("--out", type=Path, help="JSON file for the results, written after every size")
    parser.add_argument("--plot", type=Path, help="file for the picture")
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
        plot(json.loads(options.replot.read_text(encoding="utf-8")), options.plot)
        return
    middle = StepSize(1.0, 2, 3, 1) if options.quick else MIDDLE
    model = load_benchmark_model(options.model)
    perturb(model)
    result: dict[str, Any] = {"machine": machine(), "matmul_gflops": matmul_gflops(256 if options.quick else 2048)}
    result |= {"model": options.model, "middle": asdict(middle), "rounds": options.rounds, "axes": {}, "exponents": {}}
    if not options.no_memory:
        result["model_memory_mb"] = peak_memory(partial(run_alone, options.model, None))
    for axis in options.axes:
        points: list[dict[str, Any]] = []
        result["axes"][axis] = points
        for value in QUICK[axis] if options.quick else AXES[axis][1]:
            point = with_size(axis, value, middle)
            points.append(measure(options.model, model, point, options.rounds, memory=not options.no_memory))
            if options.out:
                write_json(options.out, result)
        result["exponents"][axis] = {
            key: exponent(points, axis, key) for key in ("step_s", "peak_memory_mb") if key in points[0]
        }
    result["machine"]["load_average_at_end"] = machine()["load_average"]
    if options.out:
        write_json(options.out, result)
    if options.plot:
        plot(result, options.plot)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
