"""Writes the figures of `docs/results/performance.md` from the files in `benchmarks/results`, so that they agree.

    python benchmarks/performance_page.py [--check]

A block of the page between `<!-- figures NAME -->` and `<!-- end -->` is rendered by the function of that name in
`BLOCKS`. `--check` writes nothing and ends with 1 where the page differs from the files; a test does the same. After
new measurements, run this once.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "performance.md"
BLOCK = re.compile(r"(<!-- figures (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
MISSING = "Not measured yet.\n"


@cache
def result(name: str) -> Any:
    """The content of a file of results; None if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(head: str, rows: list[str]) -> str:
    """A table in Markdown from its head and rows, whose cells are separated by |."""
    rule = "|".join("---" for _ in head.split("|"))
    return "\n".join(f"| {row.strip()} |" if row != rule else f"|{rule}|" for row in (head, rule, *rows)) + "\n"


def number(value: float) -> str:
    """A figure with three digits, or with none behind the point from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def speedups(name: str) -> dict[str, float]:
    """What a file of `grpo_step.py` says under `goals` -> times faster."""
    (measured,) = result(name)["results"]
    return {line["what"]: line["found"] for line in measured["goals"]}


def step(speedup: Mapping[str, float], part: str, baseline: str) -> float:
    """One of `speedups`: of the `whole step` or of `reference, loss and backward`."""
    return speedup[f"{part}: times faster than {baseline}"]


def sft_of(model: str) -> dict[str, Any]:
    """The results of a model in `sft_step.json`."""
    found: dict[str, Any] = next(row for row in result("sft_step")["results"] if row["model"] == model)
    return found


def gains() -> str:
    """What a user gains, and against what."""
    aqa, sft = speedups("grpo_step"), sft_of("embedded")["times_faster_than"]
    greedy, samples = (
        result(file)[kind]["times_faster_than"]["batch-loop"]["median_of_blocks"]
        for file, kind in (("evaluate", "greedy"), ("evaluate_samples", "samples"))
    )
    whole, update = "whole step", "reference, loss and backward"
    rows = [
        ("one GRPO step, whole", "TRL 1.16's `GRPOTrainer`", step(aqa, whole, "trl"), "grpo_step"),
        ("one GRPO step, whole", "a loop that repeats and pads the clip (R1-AQA's way)", step(aqa, whole, "plain"),
         "grpo_step"),
        ("reference, loss and backward of that step", "the same loop", step(aqa, update, "plain"), "grpo_step"),
        ("one SFT step, ten questions about a clip", "transformers' `Trainer`, clips padded to 30 s",
         sft["trainer-padded"], "sft_step"),
        ("one SFT step, ten questions about a clip", "transformers' `Trainer`, clips trimmed",
         sft["trainer-trimmed"], "sft_step"),
        ("evaluation, greedy", "batches of padded rows (R1-AQA's test script)", greedy, "evaluate"),
        ("evaluation, 16 samples an item", "the same", samples, "evaluate_samples"),
    ]  # fmt: skip
    lines = [f"{task} | {against} | **{number(gain)} times** | `{file}.json`" for task, against, gain, file in rows]
    return table("task | against | faster by | file", lines)


def goals() -> str:
    """The goals beside what `goals.py` measured."""
    measured = result("goals")
    if measured is None:
        return MISSING
    lines = []
    for line in measured["goals"]:
        goal = "none" if line["goal"] is None else number(line["goal"])
        reached = "" if line["reached"] is None else "yes" if line["reached"] else "no"
        lines.append(f"{line['what']} | {number(line['measured'])} | {goal} | {reached}")
    machine = measured["machine"]
    rounds = f"{measured['rounds']} round{'s' if measured['rounds'] > 1 else ''}"
    precisions = {
        name: ", ".join(f"{who} {dtype}" for who, dtype in part["precision"].items())
        for name, part in measured["parts"].items()
        if "precision" in part
    }
    in_words = "; ".join(f"{name}: {text}" for name, text in precisions.items())
    return (
        table("what | measured | goal | reached", lines)
        + f"\n{machine['cpu']}, {machine['threads']} threads, {'with' if measured['amx'] else 'without'} AMX, "
        f"{rounds}; commit {machine['commit']}. Precisions: {in_words or 'not measured'}.\n"
    )


def limits() -> str:
    """The phases of a step beside what the machine can do."""
    measured = result("limit")
    if measured is None:
        return MISSING
    lines = []
    for name, phase in measured["phases"].items():
        largest = [f"{operator} {share:.0%}" for operator, share in list(phase["others"].items())[:3] if share >= 0.01]
        bandwidth = phase["few_rows_bandwidth"]
        cells = (
            name, f"{phase['seconds']:.2f}", f"{phase['gflop']:.1f}", f"{phase['share']:.0%}",
            "" if bandwidth is None else f"{bandwidth:.0%}", f"{phase['products']:.0%}",
            ", ".join([*largest, f"outside {phase['outside']:.0%}"]),
        )  # fmt: skip
        lines.append(" | ".join(cells).replace("%", " %"))
    rates, machine = measured["rates"], measured["machine"]
    gflops = ", ".join(f"{dtype} {number(rate)} GFLOP/s" for dtype, rate in rates["gflops"].items())
    head = "phase | s | GFLOP | share of the limit | few rows: of memory's rate | time in products | other time"
    return (
        table(head, lines)
        + f"\n{machine['cpu']}, {machine['threads']} threads, commit {machine['commit']}, products in "
        f"{measured['precision']}; measured rates: {gflops}, memory {number(rates['gigabytes'])} GB/s.\n"
    )


FILES = (
    "goals", "limit", "compute", "grpo_step", "grpo_step_think", "grpo_step_long", "grpo_step_qwen2audio", "sft_step",
    "evaluate", "evaluate_samples", "distinct", "growth", "build", "trimming",
)  # fmt: skip


def files() -> str:
    """Every file with its machine, precision, threads, commit and load."""
    lines = []
    for name in FILES:
        if (content := result(name)) is None:
            continue
        machine = content["machine"]
        precision = machine.get("precision") or content.get("precision")
        if precision is None:
            precision = "fastest of each" if name == "goals" else "no products"
        load = machine.get("load_average")
        cells = (
            f"`{name}.json`", machine["cpu"], precision, machine.get("threads") or f"{machine['workers']} processes",
            machine["commit"], number(load[0]) if load else "",
        )  # fmt: skip
        lines.append(" | ".join(map(str, cells)))
    return table("file | processor | precision | threads | commit | load at start", lines)


def step_seconds() -> str:
    """Seconds of the phases of a GRPO step."""
    seconds = result("grpo_step")["results"][0]["seconds"]
    phases = ("rollout", "rollout_natural", "reference", "loss", "optimizer")
    lines = [
        " | ".join([label, *(f"{seconds[name][phase]:.2f}" for phase in phases)])
        for name, label in (("plain", "loop"), ("trl", "TRL"), ("earwise", "earwise"))
    ]
    tokens = result("grpo_step")["results"][0]["floor"]["decoder_tokens"]
    differences = result("grpo_step")["results"][0]["gradient_differences"]
    return (
        table(" | rollout | rollout that ends by itself | reference | loss and backward | optimizer", lines)
        + f"\nThe update computes {tokens['distinct']:,} decoder tokens in place of {tokens['one_by_one']:,}. The "
        f"largest relative difference of\ngradients is {max(differences.values()):.1e}.\n"
    )


def shares() -> str:
    """How much completions share, by policy."""
    labels = {
        "fresh": "`embedded`, answers alone", "trained": "after `r1-aqa`, profile `cpu`",
        "thinking-fresh": "reasoning, after `ke-omni-r`'s SFT stage",
        "thinking-trained": "reasoning, after its GRPO stage",
    }  # fmt: skip
    lines = []
    for name, policy in result("distinct")["policies"].items():
        cells = (
            labels.get(name, name), f"{policy['mean_length']:.1f}", f"{policy['answer_share']:.2f}",
            f"{policy['tree_share']:.2f}", f"{policy['passes']:.1f} ({policy['passes_without_guesses']:.1f})",
        )  # fmt: skip
        lines.append(" | ".join(cells))
    return table(
        "policy | mean length | distinct share of the answers' tokens | of prompts and answers | passes per question "
        "(without drafts)",
        lines,
    )


GROWTH_LABELS = {
    "clip_s": "s of clip", "group": "completions", "tokens": "tokens a completion", "trees": "prompts",
    "questions": "questions about a clip (SFT)", "clips": "clips of four questions (SFT)",
    "processes": "processes of an evaluation", "rows": "rows of a manifest",
}  # fmt: skip


def growth() -> str:
    """Seconds and memory by size."""
    lines = []
    for axis, points in result("growth")["axes"].items():
        sizes = " / ".join(f"{point[axis]:,}" for point in points)
        seconds = " / ".join(number(point["step_s"]) for point in points)
        memory = " / ".join(f"{point['peak_memory_mb']:,.0f}" for point in points if "peak_memory_mb" in point)
        lines.append(f"{sizes} {GROWTH_LABELS[axis]} | {seconds} | {memory}")
    return table("size | seconds | peak memory, MB", lines)


def sft() -> str:
    """Examples per second of the SFT step."""
    names = {
        "trainer-padded": "`Trainer`, clips padded to 30 s", "trainer-trimmed": "`Trainer`, clips trimmed",
        "earwise": "earwise",
    }  # fmt: skip
    lines = []
    for measured in result("sft_step")["results"]:
        for name, rate in measured["examples_per_s"].items():
            faster = measured["times_faster_than"].get(name)
            memory = measured.get("peak_memory_mb", {}).get(name)
            cells = (measured["model"], names[name], f"{rate:.2f}", number(faster) if faster else "",
                     f"{memory:,.0f}" if memory else "")  # fmt: skip
            lines.append(" | ".join(cells))
    losses = max(max(row["relative_loss_difference"].values()) for row in result("sft_step")["results"])
    gradients = max(max(row["relative_gradient_difference"].values()) for row in result("sft_step")["results"])
    return (
        table("model | implementation | examples per second | earwise is faster by | peak memory, MB", lines)
        + f"\nLosses agree within {losses:.1e}, gradients within {gradients:.1e}.\n"
    )


def evaluation() -> str:
    """Items per second of an evaluation."""
    lines = []
    for file, kind, label in (
        ("evaluate", "greedy", "greedy"), ("evaluate_samples", "samples", "16 samples an item"),
    ):  # fmt: skip
        measured = result(file)[kind]
        rates, times = measured["items_per_s"], measured["seconds_in_blocks"]
        blocks = [slow / fast for slow, fast in zip(times["batch-loop"], times["earwise"], strict=True)]
        gain = measured["times_faster_than"]["batch-loop"]["median_of_blocks"]
        cells = (
            f"{label}, {measured['paired_items']} paired items", number(rates["batch-loop"]), number(rates["earwise"]),
            f"{number(gain)} ({', '.join(number(block) for block in blocks)})",
        )  # fmt: skip
        lines.append(" | ".join(cells))
    return table(" | batch loop, items per second | earwise, items per second | times faster (by block)", lines)


def manifest() -> str:
    """Indexing a million rows."""
    measured = result("build")
    first, again = measured["index_first"], measured["index_again"]
    wav, ogg = (measured[f"scan_{kind}"]["clips_per_s"] for kind in ("wav_16000_mono", "ogg_44100_stereo"))
    return (
        f"`build.json`: a manifest of {measured['manifest']['rows']:,} rows ({measured['manifest']['mb']:.0f} MB) is "
        f"indexed in {first['seconds']:.1f} s with {first['peak_memory_mb']:.0f} MB of memory;\nopened again it is "
        f"ready in {again['ready_s']:.1f} s with {again['peak_memory_mb']:.0f} MB. Decoding and checking clips of 5 s "
        f"runs at {wav:.0f} a\nsecond for 16 kHz mono WAV and {ogg:.0f} for 44.1 kHz stereo Ogg, with two processes.\n"
    )


def precision() -> str:
    """bfloat16 against float32."""
    measured = result("compute")
    faster = ", ".join(f"{name} {value:.2f}" for name, value in measured["times_faster"].items())
    differences, gradient = measured["differences"], measured["lora_gradient"]
    int8 = measured.get("int8", {}).get("differences")
    in_int8 = f"In int8 {int8['equal_answers']:.1%} are equal, {int8['accuracy']:.1%} right.\n" if int8 else ""
    return (
        f"`compute.json`, {measured['machine']['cpu']}: times faster in bfloat16: {faster}, LoRA's forward and "
        f"backward pass\n{gradient['times_faster']:.2f}. Of {differences['items']} greedy answers "
        f"{differences['equal_answers']:.1%} are equal; gradients of LoRA differ by "
        f"{gradient['relative_difference']:.1%}.\n{in_int8}"
    ).replace("%", " %")


BLOCKS: dict[str, Callable[[], str]] = {
    "gains": gains, "goals": goals, "limits": limits, "files": files, "step": step_seconds, "shares": shares,
    "growth": growth, "sft": sft, "evaluation": evaluation, "manifest": manifest, "precision": precision,
}  # fmt: skip


def rendered(page: str) -> str:
    """The page with all blocks as the files have them.

    Raises:
        KeyError: for a block that `BLOCKS` does not know.
    """
    return BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match['name']]()}\n{match[4]}", page)


def main() -> int:
    """Write or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page differs from the files")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = rendered(page)
    if options.check and new != page:
        print(f"{PAGE}: differs from benchmarks/results; run python benchmarks/performance_page.py", file=sys.stderr)
        return 1
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
