"""Questions for what is not in the clip, answered with a sentence that says so: `earwise build labels --tasks refusal`.

Asked for the instrument in the sound of a siren, a model that has only met questions with an answer names one. A share
of the clips is asked for something that clips of another category have: sounds for an instrument or speech, music for
an animal or speech, speech for an instrument. Clips that could hold what is asked for (a street with music, a choir)
are left out. All functions are pure.
"""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from earwise.datasets.labels.collection import LabelRow, clip_example
from earwise.datasets.labels.label_names import AMBIGUOUS_KIND
from earwise.datasets.labels.varied import wordings
from earwise.types import Example

TASK = "refusal"
SHARE = 0.35
"""Share of the clips that are asked."""
ABSENT: Mapping[str, tuple[str, ...]] = {
    "sound": ("instrument", "speech"),
    "music": ("animal", "speech"),
    "speech": ("instrument",),
}
"""Category of a clip -> what it is asked for and does not have; keys of the wordings behind `absent.`."""
ANSWERS: Mapping[str, str] = {
    "instrument": "There is no instrument in this recording.",
    "animal": "There is no animal in this recording.",
    "speech": "Nobody speaks in this recording.",
}
VOICES = frozenset({"choir", "singing", "vocals", "voice", "laughing", "laughter"})
"""Further labels of clips in which it is not certain that nobody speaks."""


def build_refusals(rows: Iterable[LabelRow], root: Path, *, seed: int = 0, split: str | None = None) -> list[Example]:
    """Build the questions, at most one about a clip.

    Args:
        rows: Label rows (`collection.load`).
        root: Folder that the rows' paths start from.
        seed: Seed of all choices.
        split: Split of the rows to use; None for all.
    Returns:
        Examples sorted by path.
    """
    examples = []
    for row in sorted(rows, key=lambda row: row["path"]):
        rng = random.Random(f"{seed}:{TASK}:{row['path']}")
        if split not in (None, row["split"]) or rng.random() >= SHARE or not _is_clear(row):
            continue
        absent = rng.choice(ABSENT[row["category"]])
        examples.append(_example(row, absent, wordings.draw_question(f"absent.{absent}", row["split"], rng), root))
    return examples


def _is_clear(row: LabelRow) -> bool:
    """Whether a clip certainly lacks what it would be asked for."""
    return row["category"] in ABSENT and not (AMBIGUOUS_KIND | VOICES).intersection(row["labels"])


def _example(row: LabelRow, absent: str, question: str, root: Path) -> Example:
    """Example about one clip; its id is a hash of its content."""
    return clip_example(
        row,
        root,
        question,
        name=TASK,
        content=(question,),
        answer=(ANSWERS[absent],),
        task=TASK,
        meta={"field": absent},
    )
