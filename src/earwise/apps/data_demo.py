"""`make data-demo`: one small data set of each kind from the bundled clips, each with its checks; asks no service.

Above the command line, which it calls as a user would, line by line; every line is shown first. Teachers are templates
(sentences filled in from labels: no language model), captions are made from labels, speech is synthesised here. What a
builder finished is kept, so the same command goes on where it was stopped.
"""

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from earwise import cli
from earwise.commands.build.check import after
from earwise.data import manifest
from earwise.data.manifest_path import STARTER
from earwise.datasets.labels import clip_questions, collection, label_names, question_templates
from earwise.errors import EarwiseError
from earwise.files import atomic_write, write_json, write_jsonl

CAPTIONS = 5  # a clip, as Clotho has
CAPTIONED_CLIPS = 40
SOME, SOME_STEP = "some-clips.jsonl", 6  # every sixth training clip: a model attempts each of them
# Formant voices are hard to understand for a small recogniser: at the usual 0.1 one of 18 clips passes.
MAX_ERROR = "0.7"
# Two recorder melodies begin with the same notes on the same synthesiser, one in each split: scenes would leak them.
TWIN = "path=clips/recorder_0.ogg"

Line = tuple[str, ...]


def plan(out: Path) -> list[tuple[str, tuple[Line, ...], tuple[Path, ...]]]:
    """Kind of data set, the command lines that build it, and the manifests that come out."""
    one, two, scenes = out / "questions.jsonl", out / "two-clips.jsonl", out / "scenes.jsonl"
    reasonaqa, sari, rated, speech = out / "reasonaqa.jsonl", out / "sari", out / "rated.jsonl", out / "xs-cot"
    build = ("build", "labels", str(STARTER), "--seed", "1", "--no-check", "--out")
    captions = f"clotho={out / 'clotho_captions_development.csv'}"
    speak = ("build", "xs-cot", "--limit", "6", "--max-error", MAX_ERROR, "--no-check", "--out", str(speech))
    speaks = shutil.which("espeak-ng") is not None
    return [
        ("one clip", ((*build, str(one), "--per-clip", "2"),), (one,)),
        ("two clips", ((*build, str(two), "--tasks", "same,compare", "--limit", "60"),), (two,)),
        (
            "scenes",
            ((*build, str(scenes), "--tasks", "order,count,louder,odd_one_out,overlap", "--limit", "40",
              "--without", TWIN),),
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
            (("build", "sari", str(out / SOME), "--policy", "embedded", "--sft", "12", "--rl", "24", "--attempts", "4",
              "--no-check", "--out", str(sari)),),
            (sari / "rl.jsonl", sari / "sft-structured.jsonl", sari / "sft-unstructured.jsonl"),
        ),
        ("XS-CoT", (speak,) if speaks else (), (speech / "manifest.jsonl",)),
        ("difficulty", (("build", "difficulty", str(sari / "rl.jsonl"), "--attempts", "4", "--no-check",
                         "--out", str(rated)),),
         (rated,)),
    ]  # fmt: skip


def run(out: Path, kinds: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Build and check everything.

    Args:
        out: Folder of the demo.
        kinds: Only these kinds of `plan`; empty for all.
    Returns:
        One object a kind: `kind`, `rows`, `clips`, `hours`, `problems`, `seconds`, `report`; or `kind` and `error`.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write_captions(out / "clotho_captions_development.csv")
    _write_some(out / SOME)
    done: list[dict[str, Any]] = []
    for kind, lines, manifests in plan(out):
        if kinds and kind not in kinds:
            continue
        began = perf_counter()
        click.echo(f"== {kind}", err=True)
        if error := _build(lines):
            done.append({"kind": kind, "error": error})
            continue
        if kind == "ReasonAQA":
            _credit(manifests[0])
        built = [path for path in manifests if path.is_file() and path.stat().st_size]
        report = after(built, workers=1)
        sounds = report["sounds"]
        done.append(
            {
                "kind": kind,
                "rows": report["n"],
                "clips": sounds["clips"],
                "hours": round(sum(sounds.get("hours", {}).values()), 3),
                "problems": len(report["problems"]),
                "seconds": round(perf_counter() - began, 1),
                "report": str(built[0].with_suffix(".checks.html")),
            }
        )
    write_json(out / "data-demo.json", done)
    return done


def _build(lines: Iterable[Line]) -> str:
    """Run command lines; returns why it stopped, or nothing."""
    count = 0
    for line in lines:
        count += 1
        click.echo("earwise " + " ".join(line), err=True)
        if code := cli.run(line):
            return f"earwise {line[1]} ended with {code}"
    return "" if count else "espeak-ng is not installed; on Debian: apt install espeak-ng"


def _write_captions(path: Path) -> None:
    """Captions of the first sounds in Clotho's format, said from their labels."""
    rows, _ = collection.load(STARTER)
    with atomic_write(path) as handle:
        table = csv.writer(handle)
        table.writerow(["file_name", *(f"caption_{number}" for number in range(1, CAPTIONS + 1))])
        for row in [row for row in rows if clip_questions.label_facts(row, ("sound",)) and row["split"] == "train"][
            :CAPTIONED_CLIPS
        ]:
            name = clip_questions.label_facts(row, ("sound",))[0].name
            said = [
                *question_templates.captions("sound", name),
                f"A recording of {label_names.with_article(name)}.",
                f"Only {name}.",
            ]
            table.writerow([Path(row["path"]).name, *said[:CAPTIONS]])


def _write_some(path: Path) -> None:
    """A collection of some of the training clips, where they lie."""
    rows = [row for row in collection.load(STARTER)[0] if row["split"] == "train"][::SOME_STEP]
    write_jsonl(path, (dict(row) | {"path": os.path.relpath(STARTER / row["path"], path.parent)} for row in rows))


def _credit(path: Path) -> None:
    """The clips are ours: name their own sources and licences in place of Clotho's."""
    rows = {Path(row["path"]).name: row for row in collection.load(STARTER)[0]}
    examples = []
    for example in manifest.read(path):
        row = rows[example.audio_paths[0].name]
        examples.append(
            replace(example, source=row.get("source", ""), licence=row.get("licence", ""), group=row["group"])
        )
    manifest.write(path, examples)


def main() -> int:
    """Run from a shell: `python -m earwise.apps.data_demo --out runs/data-demo`. The last line of stdout is JSON."""
    parser = argparse.ArgumentParser(prog="earwise.apps.data_demo", description="One small data set of each kind.")
    parser.add_argument("--out", type=Path, default=Path("runs/data-demo"), help="folder of the demo")
    parser.add_argument("--kind", action="append", default=[], help="only this kind; may stand several times")
    given = parser.parse_args()
    try:
        done = run(given.out, given.kind)
    except EarwiseError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        return 2
    except KeyboardInterrupt:
        click.echo("interrupted; finished work is kept, the same command goes on from there", err=True)
        return 130
    for one in done:
        if "error" in one:
            click.echo(f"{one['kind']:12} not built: {one['error']}")
        else:
            click.echo(
                f"{one['kind']:12} {one['rows']:5} rows, {one['clips']:4} sounds, {one['hours']:.2f} h, "
                f"{one['problems']} problems, {one['seconds']:.0f} s: {one['report']}"
            )
    click.echo(json.dumps({"data_demo": done}))
    return 2 if any("error" in one for one in done) else 0


if __name__ == "__main__":
    sys.exit(main())
