"""The project's goals of speed, all in one run: each beside what it is measured against, as one JSON file.

    python benchmarks/goals.py --quick --out benchmarks/results/goals.json

Runs the other benchmarks one after the other, each in a process of its own, with everybody in the precision that is
fastest for them on this machine (`baselines/precision.py`), and collects medians over paired rounds:

- a whole GRPO step of R1-AQA's shape against TRL and a plain loop; the same with 30 s clips; the same with completions
  as long as thoughts (60 tokens), forced to that length, which share little (`grpo_step.py`);
- an SFT step, ten questions about a clip, against transformers' Trainer (`sft_step.py`);
- evaluation, greedy and with 16 samples an item, against the batch loop (`evaluate.py`);
- `earwise ask` from a cold start: seconds, seconds of the answer alone, peak memory.

Goals are higher on machines with AMX, where bfloat16 products are several times faster; elsewhere they are the gains
that were reached before. `--quick` takes one round and fewer items, about ten minutes on two idle cores; without it,
five rounds. The file is written after each part, so that a run that is stopped keeps what it measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.timing import machine, matmul_gflops, stream_gbs

from earwise.data.manifest_path import STARTER
from earwise.files import write_json

HERE = Path(__file__).parent
FASTEST = ("--compute", "auto", "--baseline-precision", "fastest")
ROUNDS = 5
ASKED = 3
"""How often `earwise ask` is started."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and its goals.

    Attributes:
        what: What is compared, with what.
        with_amx: The goal on a machine with AMX.
        elsewhere: The goal on other machines; None if there is none.
        at_most: True where smaller figures are better.
    """

    what: str
    with_amx: float
    elsewhere: float | None
    at_most: bool = False

    def line(self, measured: float, rounds: Sequence[float], has_amx: bool) -> dict[str, Any]:
        """The goal beside what was measured."""
        goal = self.with_amx if has_amx else self.elsewhere
        reached = None if goal is None else (measured <= goal if self.at_most else measured >= goal)
        return {"what": self.what, "measured": measured, "rounds": list(rounds), "goal": goal, "reached": reached}


GOALS: dict[str, Goal] = {
    "r1-aqa trl": Goal("GRPO step of R1-AQA's shape, times faster than TRL", 10.0, 7.2),
    "r1-aqa plain": Goal("GRPO step of R1-AQA's shape, times faster than the plain loop", 10.0, 7.8),
    "long trl": Goal("GRPO step with 30 s clips, times faster than TRL", 8.0, 3.9),
    "long plain": Goal("GRPO step with 30 s clips, times faster than the plain loop", 8.0, 4.1),
    "thoughts trl": Goal("GRPO step with completions of 60 tokens, times faster than TRL", 4.0, None),
    "thoughts plain": Goal("GRPO step with completions of 60 tokens, times faster than the plain loop", 4.0, None),
    "sft": Goal("SFT step with ten questions a clip, times faster than the Trainer", 8.0, 6.3),
    "greedy": Goal("evaluation, greedy, times the items per second of the batch loop", 6.0, 3.05),
    "samples": Goal("evaluation, 16 samples, times the items per second of the batch loop", 30.0, 23.0),
    "ask": Goal("`earwise ask` from a cold start, seconds", 4.0, 4.0, at_most=True),
    "answer": Goal("the answer about a 10 s clip alone, seconds", 1.0, 1.0, at_most=True),
    "memory": Goal("peak memory of `earwise ask`, MB", 900.0, 900.0, at_most=True),
}
Measured = dict[str, list[float]]
"""Key of `GOALS` -> value in each round."""


def run_benchmark(name: str, *options: str) -> dict[str, Any]:
    """Run one of the other benchmarks in a process of its own, and read its result.

    Raises:
        RuntimeError: if it fails; its own message is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, str(HERE / f"{name}.py"), *options, "--out", str(out)]
        process = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if process.returncode:
            raise RuntimeError(f"{name}.py {' '.join(options)}: exit code {process.returncode}")
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


def step_speedups(rounds: Mapping[str, Mapping[str, Sequence[float]]], shape: str) -> Measured:
    """How many times faster earwise's whole step is than each baseline, round by round.

    Args:
        rounds: Implementation -> phase -> seconds in each round, as `grpo_step.py` writes them.
        shape: Name of the shape, the first word of the keys.
    """
    phases = ("rollout", "listen", "reference", "loss", "optimizer")
    totals = {
        name: [sum(values) for values in zip(*(times[phase] for phase in phases if phase in times), strict=True)]
        for name, times in rounds.items()
    }
    # earwise has heard the clips in the rollout; `listen` is hearing them again, which its step does not do.
    heard = [total - again for total, again in zip(totals["earwise"], rounds["earwise"]["listen"], strict=True)]
    return {
        f"{shape} {name}": [slow / fast for slow, fast in zip(totals[name], heard, strict=True)]
        for name in totals
        if name != "earwise"
    }


def grpo(shape: str, options: argparse.Namespace) -> tuple[Measured, dict[str, Any]]:
    """The GRPO step in one shape. In a quick run only R1-AQA's shape is compared with TRL, too, warmed up, and its
    gradients are compared."""
    short = options.quick and shape != "r1-aqa"
    arguments = ["--model", options.model, "--shape", shape, "--pairs", str(options.rounds), "--no-memory", *FASTEST]
    arguments += ["--implementations", "plain", "earwise"] if short else []
    arguments += ["--no-warm-up", "--no-gradients"] if short else []
    (result,) = run_benchmark("grpo_step", *arguments)["results"]
    kept = ("precision", "seconds", "rounds", "gradient_differences", "gradient_difference_by_rounding", "passes")
    return step_speedups(result["rounds"], shape), {key: result[key] for key in kept}


def sft(options: argparse.Namespace) -> tuple[Measured, dict[str, Any]]:
    """The SFT step."""
    steps = ("--steps", "1") if options.quick else ()
    small = ("--questions", "3", "--seconds", "1") if options.model != "embedded" else ()
    (result,) = run_benchmark(
        "sft_step", "--model", options.model, "--rounds", str(options.rounds), "--no-memory", *steps, *small, *FASTEST
    )["results"]
    times = result["seconds_in_rounds"]
    speedups = [slow / fast for slow, fast in zip(times["trainer-padded"], times["earwise"], strict=True)]
    return {"sft": speedups}, {key: result[key] for key in ("precision", "examples_per_s", "relative_loss_difference")}


def evaluation(kind: str, options: argparse.Namespace) -> tuple[Measured, dict[str, Any]]:
    """Evaluation, `greedy` or with `samples`; the rounds are the blocks of items."""
    items, block = (("32", "16") if options.quick else ("160", "32")) if kind == "greedy" else ("4", "16")
    items = "12" if kind == "samples" and not options.quick else items
    arguments = ["--model", options.evaluated, "--kinds", kind, "--items", items, "--sample-items", items]
    arguments += ["--block", "32" if kind == "samples" else block, *FASTEST]
    if options.model != "embedded":
        arguments += ["--seconds", "1", "--max-new-tokens", "8"]
    result = run_benchmark("evaluate", *arguments)[kind]
    times = result["seconds_in_blocks"]
    speedups = [slow / fast for slow, fast in zip(times["batch-loop"], times["earwise"], strict=True)]
    kept = ("precision", "items_per_s", "accuracy", "same_answers")
    return {kind: speedups}, {key: result[key] for key in kept if key in result}


def ask(options: argparse.Namespace) -> tuple[Measured, dict[str, Any]]:
    """`earwise ask` in new processes, about a bundled clip; the first start fills the page cache and does not count."""
    path = next(iter(sorted((STARTER / "clips").iterdir())))
    command = [sys.executable, "-m", "earwise", "ask", str(path), "What do you hear?", "--json"]
    measured: Measured = {"ask": [], "answer": [], "memory": []}
    for number in range(ASKED + 1):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"earwise ask: exit code {process.returncode}")
        if number:
            answer = json.loads(output)
            measured["ask"].append(seconds)
            measured["answer"].append(answer["seconds"])
            measured["memory"].append(usage.ru_maxrss / 1024)
    return measured, {"clip_s": answer["audio_seconds"], "starts": ASKED}


PARTS: dict[str, Callable[[argparse.Namespace], tuple[Measured, dict[str, Any]]]] = {
    "ask": ask,
    "r1-aqa": lambda options: grpo("r1-aqa", options),
    "sft": sft,
    "greedy": lambda options: evaluation("greedy", options),
    "samples": lambda options: evaluation("samples", options),
    "thoughts": lambda options: grpo("thoughts", options),
    "long": lambda options: grpo("long", options),
}


def has_amx() -> bool:
    """Whether this processor multiplies bfloat16 tiles."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, help=f"paired rounds of each step (default {ROUNDS}, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="one round and fewer items: about ten minutes")
    parser.add_argument("--toy", action="store_true", help="a tiny random model, to try the script")
    parser.add_argument("--out", type=Path, help="JSON file for the result, written after every part")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else ROUNDS)
    options.model = "qwen2audio-random:tiny" if options.toy else "embedded"
    options.evaluated = "qwen2audio-random:tiny" if options.toy else "embedded"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts; print and write the result."""
    options = parse(arguments)
    amx = has_amx()
    result: dict[str, Any] = {"machine": machine(), "amx": amx, "quick": options.quick, "rounds": options.rounds}
    result |= {"matmul_gflops": matmul_gflops(512 if options.toy else 2048), "stream_gbs": stream_gbs()}
    result |= {"goals": [], "parts": {}, "seconds": {}}
    for name in options.parts:
        started = time.perf_counter()
        measured, details = PARTS[name](options)
        for key, values in measured.items():
            result["goals"].append(GOALS[key].line(statistics.median(values), values, amx))
        result["parts"][name] = details
        result["seconds"][name] = time.perf_counter() - started
        result["machine"]["load_average_at_end"] = machine()["load_average"]
        if options.out:
            write_json(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
