"""Synthetic rows for every manifest that a recipe names, so that it can take a step without any data set.

Clips are tones with noise; no two are the same, and no clip is both trained on and measured. Every row has what any
stage may ask for: options, an answer, reasoning in the parts of each style, rejected replies, a pass rate.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from earwise.config.recipe import Recipe

CHOICES = ("a dog", "a car", "a siren", "a piano")
QUESTION = "What is the source of the sound that is heard in the second half of the recording?"
REASONING = "The sound begins softly. It repeats in a steady rhythm. It is a living being. So it is {answer}."
LABEL_FIELDS = ("sound", "language", "emotion", "gender")
"""What the embedded model's connector needs labels of, for its start by ridge regression."""
RATE = 16000
STARTER_PREFIX = "starter:"
"""Begins the names of the manifests in the package."""
Wanted = tuple[str, Mapping[str, Any], bool]
"""Manifest, the conditions on its rows, and whether they are measured."""


def wanted_rows(recipe: Recipe) -> Iterator[Wanted]:
    """What a recipe trains on, and what its stages measure on the way; not its `eval:`."""
    for stage in recipe.stages:
        for source in stage.data.mixture:
            yield source.manifest, source.where, False
        for measured in (stage.eval_dataset, getattr(stage, "held_out", None)):
            if measured is not None:
                yield measured.manifest, measured.where, True


def write_manifests(recipe: Recipe, base: Path, rows_each: int, seconds: float) -> int:
    """Write the manifests of a recipe and their clips.

    Args:
        recipe: Resolved recipe.
        base: Folder that its manifests start from.
        rows_each: Rows for each manifest and each of its conditions.
        seconds: Length of every clip.
    Returns:
        Number of manifests.
    """
    clips = base / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    contents: dict[Path, list[str]] = {}
    for place, (name, where, measured) in enumerate(wanted_rows(recipe)):
        if name.startswith(STARTER_PREFIX):
            continue
        lines = contents.setdefault(base / name, [])
        for number in range(rows_each):
            clip = clips / f"{'measured' if measured else 'trained'}-{place}-{number}.wav"
            if not clip.exists():
                soundfile.write(clip, tone(place * rows_each + number, seconds), RATE)
            lines.append(json.dumps(row(f"{place}-{number}", clip, number, where)))
    for path, lines in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(contents)


def row(name: str, clip: Path, number: int, where: Mapping[str, Any]) -> dict[str, Any]:
    """One row that meets conditions.

    Args:
        name: Its id.
        clip: Its clip.
        number: Decides which option is right.
        where: Fields that it must have.
    """
    answer = CHOICES[number // len(LABEL_FIELDS) % len(CHOICES)]
    content = [{"type": "audio", "audio": str(clip)}, {"type": "text", "text": f"{QUESTION} ({number})"}]
    fields = {
        "id": name, "messages": [{"role": "user", "content": content}], "choices": list(CHOICES), "answer": answer,
        "reasoning": REASONING.format(answer=answer), "task": "recognition", "category": "sound",
        "rejected": [choice for choice in CHOICES if choice != answer][:1], "pass_count": number % 15 + 1,
        "attempts": 16, "field": LABEL_FIELDS[number % len(LABEL_FIELDS)], "label": answer,
    }  # fmt: skip
    return fields | {
        key: value if isinstance(value, str) else value[number % len(value)] for key, value in where.items()
    }


def tone(number: int, seconds: float) -> np.ndarray:
    """A tone whose pitch depends on the number, with noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(number).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * (150 + 3 * number) * time) + 0.02 * noise).astype(np.float32)
