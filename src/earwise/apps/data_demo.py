"""One small data set of each kind from the bundled clips, each with its checks, without any service; `make data-demo`.

Above the command line, which it calls as a user would, line by line; every line is printed first. Teachers are
templates (sentences filled in from labels, no language model), captions are made from labels, speech is synthesised
locally. Finished builds are kept, so that the same command continues an interrupted demo.
"""

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from earwise import cli
from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.datasets.checks.check_manifests import check_built_manifests
from earwise.datasets.labels import clip_questions, collection, label_names, question_templates
from earwise.errors import EarwiseError
from earwise.files import atomic_write, write_json, write_jsonl

CAPTIONS = 5
"""Captions of each clip, as in Clotho."""
CAPTIONED_CLIPS = 40
SUBSET, SUBSET_STEP = "some-clips.jsonl", 6
"""Every sixth training clip: a model attempts questions about each of them, which takes time."""
MAX_ERROR = "0.7"
"""Highest word error rate of synthesised speech. A small recogniser hardly understands formant voices: at the usual 0.1
one of 18 clips passes."""
TWIN = "path=clips/recorder_0.ogg"
"""Clip that scenes leave out: two recorder melodies begin with the same notes on the same synthesiser, one in each
split, and scenes would leak one into the other."""

Line = tuple[str, ...]
"""Arguments of one `earwise` command."""


def plan(out: Path) -> list[tuple[str, tuple[Line, ...], tuple[Path, ...]]]:
    """For each kind of data set its name, the command lines that build it, and the manifests that they write.

    Args:
        out: Folder of the demo.
    """
    one_clip, two_clips, scenes = out / "questions.jsonl", out / "two-clips.jsonl", out / "scenes.jsonl"
    reasonaqa, sari, rated, speech = out / "reasonaqa.jsonl", out / "sari", out / "rated.jsonl", out / "xs-cot"
    build = ("build", "labels", str(STARTER), "--seed", "1", "--no-check", "--out")
    captions = f"clotho={out / 'clotho_captions_development.csv'}"
    speak = (
        "build",
        "xs-cot",
        "--limit",
        "6",
        "--val-share",
        "0.25",
        "--max-error",
        MAX_ERROR,
        "--no-check",
        "--out",
        str(speech),
    )
    has_synthesiser = shutil.which("espeak-ng") is not None
    return [
        ("one clip", ((*build, str(one_clip), "--per-clip", "2"),), (one_clip,)),
        ("two clips", ((*build, str(two_clips), "--tasks", "same,compare", "--limit", "60"),), (two_clips,)),
        (
            "scenes",
            ((*build, str(scenes), "--tasks", "order,count,louder,odd_one_out,overlap", "--limit", "40",
              "--where-not", TWIN),),
            (scenes,),
        ),
        (
            "ReasonAQA",
            (("build", "reasonaqa", captions, "--audio-root", str(STARTER / "clips"), "--kinds", "all",
              "--per-caption", "1", "--no-check", "--out", str(reasonaqa)),),
            (reasonaqa,),
        ),
        (
            "SARI",
            (("build", "sari", str(out / SUBSET), "--policy", "embedded", "--sft", "12", "--rl", "24",
              "--attempts", "4", "--no-check", "--out", str(sari)),),
            (sari / "rl.jsonl", sari / "sft-structured.jsonl", sari / "sft-unstructured.jsonl"),
        ),
        ("XS-CoT", (speak,) if has_synthesiser else (), (speech / "manifest.jsonl",)),
        ("difficulty", (("build", "difficulty", str(sari / "rl.jsonl"), "--attempts", "4", "--no-check",
                         "--out", str(rated)),),
         (rated,)),
    ]  # fmt: skip


def run(out: Path, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Build and check all data sets.

    Args:
        out: Folder of the demo.
        kinds: Only these kinds of `plan`; empty: all.
    Returns:
        One object per kind: `kind`, `rows`, `clips`, `hours`, `problems`, `seconds`, `report`; or `kind` and `error`.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write_captions(out / "clotho_captions_development.csv")
    _write_subset(out / SUBSET)
    results = []
    for kind, lines, manifests in plan(out):
        if not kinds or kind in kinds:
            _note(f"== {kind}")
            results.append(_build_kind(kind, lines, manifests))
    write_json(out / "data-demo.json", results)
    return results


def _build_kind(kind: str, lines: Sequence[Line], manifests: Sequence[Path]) -> dict[str, Any]:
    """Build and check one data set; returns its object in the result of `run`."""
    started = perf_counter()
    if error := _build(lines):
        return {"kind": kind, "error": error}
    if kind == "ReasonAQA":
        _restore_credits(manifests[0])
    written = [path for path in manifests if path.is_file() and path.stat().st_size]
    report = check_built_manifests(written, workers=1, notify=_note)
    audio = report["sounds"]
    return {
        "kind": kind,
        "rows": report["n"],
        "clips": audio["clips"],
        "hours": round(sum(audio.get("hours", {}).values()), 3),
        "problems": len(report["problems"]),
        "seconds": round(perf_counter() - started, 1),
        "report": str(written[0].with_suffix(".checks.html")),
    }


def _build(lines: Sequence[Line]) -> str:
    """Run command lines; returns why the build failed, or an empty text."""
    if not lines:
        return "espeak-ng is not installed; on Debian: apt install espeak-ng"
    for line in lines:
        _note("earwise " + " ".join(line))
        if code := cli.run(line):
            return f"earwise {line[1]} ended with exit code {code}"
    return ""


def _write_captions(path: Path) -> None:
    """Write captions of the first training sounds in Clotho's format, made from their labels."""
    rows = [row for row in collection.load(STARTER)[0] if row["split"] == "train"]
    labelled = [(row, facts) for row in rows if (facts := clip_questions.label_facts(row, ("sound",)))]
    with atomic_write(path) as handle:
        table = csv.writer(handle)
        table.writerow(["file_name", *(f"caption_{number}" for number in range(1, CAPTIONS + 1))])
        for row, facts in labelled[:CAPTIONED_CLIPS]:
            name = facts[0].name
            captions = [
                *question_templates.captions("sound", name),
                f"A recording of {label_names.with_article(name)}.",
                f"Only {name}.",
            ]
            table.writerow([Path(row["path"]).name, *captions[:CAPTIONS]])


def _write_subset(path: Path) -> None:
    """Write a collection of every sixth training clip; the clips stay in their folder."""
    rows = [row for row in collection.load(STARTER)[0] if row["split"] == "train"][::SUBSET_STEP]
    write_jsonl(path, (dict(row) | {"path": os.path.relpath(STARTER / row["path"], path.parent)} for row in rows))


def _restore_credits(path: Path) -> None:
    """Name the bundled clips' own sources and licences in a manifest that was built as if they were Clotho's."""
    rows = {Path(row["path"]).name: row for row in collection.load(STARTER)[0]}
    examples = []
    for example in manifest.read(path):
        row = rows[example.audio_paths[0].name]
        examples.append(
            replace(example, source=row.get("source", ""), licence=row.get("licence", ""), group=row["group"])
        )
    manifest.write(path, examples)


def _note(line: str) -> None:
    """Print a line about progress to stderr."""
    click.echo(line, err=True)


def main() -> int:
    """Run from a shell: `python -m earwise.apps.data_demo --out runs/data-demo`. The last line of stdout is JSON."""
    parser = argparse.ArgumentParser(prog="earwise.apps.data_demo", description="One small data set of each kind.")
    parser.add_argument("--out", type=Path, default=Path("runs/data-demo"), help="folder of the demo")
    parser.add_argument("--kind", action="append", default=[], help="only this kind; may be repeated")
    arguments = parser.parse_args()
    try:
        results = run(arguments.out, arguments.kind)
    except EarwiseError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        return 2
    except KeyboardInterrupt:
        _note("interrupted; finished work is kept, the same command continues from there")
        return 130
    for result in results:
        if "error" in result:
            click.echo(f"{result['kind']:12} not built: {result['error']}")
        else:
            click.echo(
                f"{result['kind']:12} {result['rows']:5} rows, {result['clips']:4} sounds, {result['hours']:.2f} h, "
                f"{result['problems']} problems, {result['seconds']:.0f} s: {result['report']}"
            )
    click.echo(json.dumps({"data_demo": results}))
    return 2 if any("error" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
