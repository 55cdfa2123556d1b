"""What the default model hears and reads, by skill, from evaluations on validation recordings.

    earwise evaluate --task manifest=val.jsonl --style plain --controls silence --out runs/unseen
    python benchmarks/default_model.py --questions val.jsonl --run unseen=runs/unseen --out default-model.json

The questions are those of `earwise build labels --tasks varied,...` for the split `val`: recordings that were not
trained on, asked in wordings that were not trained on (`unseen`), or in those that were (`seen`). For each skill it
writes the share of answers whose text is right (official score), its Wilson interval, and the same under silence.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines.timing import machine

from earwise.data import manifest
from earwise.datasets.labels import collection
from earwise.datasets.labels.varied.clip_questions import varied_facts
from earwise.evaluation.metrics.stats import wilson
from earwise.files import write_json

RARE_CLIPS = 10
"""A sound is rare if the training split has fewer clips of it."""
LABEL_TASKS = ("varied", "yes_no", "longer")
"""Tasks that ask about different fields."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Summarise evaluation runs."""
    parser = argparse.ArgumentParser(description="accuracy of the default model by skill")
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument(
        "--questions", action="append", type=Path, default=[], help="manifest that was evaluated, which has the fields"
    )
    parser.add_argument("--collection", type=Path, help="labelled collection, which says which sounds are rare")
    parser.add_argument("--model", default="embedded", help="what was evaluated, for the record")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    rare = rare_sounds(options.collection) if options.collection else frozenset[str]()
    fields = {example.id: example.meta.get("field") for path in options.questions for example in manifest.read(path)}
    runs = {}
    for named in options.run:
        name, _, folder = named.partition("=")
        runs[name] = by_skill(Path(folder), fields, rare)
    write_json(options.out, {"machine": machine(), "model": options.model, "runs": runs})


def rare_sounds(path: Path) -> frozenset[str]:
    """Ids of validation clips whose sound has fewer than `RARE_CLIPS` training clips."""
    rows, _ = collection.load(path)
    sounds = [(row, fact.label) for row in rows for fact in varied_facts(row) if fact.field == "sound"]
    trained = Counter(label for row, label in sounds if row["split"] == "train")
    return frozenset(Path(row["path"]).stem for row, label in sounds if trained[label] < RARE_CLIPS)


def by_skill(folder: Path, fields: Mapping[str, str | None], rare: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Skill -> n, right, interval, and the share that is right under silence, if that was asked.

    Args:
        folder: Folder of an evaluation; that of its control `silence` is in it.
        fields: Field of each question by its id.
        rare: Stems of clips of rare sounds, which are counted once more as a skill of their own.
    """
    heard: dict[str, list[float]] = defaultdict(list)
    silent: dict[str, list[float]] = defaultdict(list)
    for scores, path in ((heard, folder), (silent, folder / "silence")):
        for sample in _samples(path):
            for skill in _skills(sample, fields.get(sample["id"]), rare):
                scores[skill].append(sample["scores"]["official"])
    summary = {}
    for skill, scores in sorted(heard.items()):
        right = int(sum(scores))
        low, high = wilson(right, len(scores))
        summary[skill] = {"n": len(scores), "right": right / len(scores), "low": low, "high": high}
        if silent[skill]:
            summary[skill]["silence"] = sum(silent[skill]) / len(silent[skill])
    return summary


def _samples(folder: Path) -> list[dict[str, Any]]:
    """Samples of an evaluation, or of one of its controls; none if there are no such."""
    path = folder / "samples.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _skills(sample: dict[str, Any], field: str | None, rare: frozenset[str]) -> list[str]:
    """Skills that a question asks for: its task and field where the task is about a label, else task and category."""
    task = sample["task"]
    if field and task in LABEL_TASKS:
        is_rare = task == "varied" and field == "sound" and Path(sample["audio"][0]).stem in rare
        return [f"{task} {field}", *(["rare sounds"] if is_rare else [])]
    return [task, f"{task} ({sample['category']})"]


if __name__ == "__main__":
    main()
