"""Clips of a manifest that `build source` or `build labels` wrote, as rows that SARI's builder writes questions about.

A manifest may have several rows about one clip. Captions are the answers of captioning rows or the field `caption`;
labels and spoken words are taken from the answers of rows that say what they ask for (`field`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from earwise.data import manifest
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.labels.label_names import UNINFORMATIVE_LABELS
from earwise.datasets.sari.captions import row_caption
from earwise.types import Example

KEPT_FIELDS = ("category", "source", "licence", "language")
FIELD_NAMES = {"emotion": "emotion", "gender": "gender", "language": "language", "words": "text", "speaker": "speaker"}
"""`field` of a row -> field of a label row that its answer belongs to."""
LABEL_FIELDS = ("sound", "instrument")
"""Values of `field` whose answers are labels; others (tempo, key, sentiment ...) are no names of sounds."""
NO_LABEL = UNINFORMATIVE_LABELS[-1]
"""Label of a clip of which no label is known; nothing is asked about it."""


def read_clips(path: Path) -> list[LabelRow]:
    """The clips of a manifest, each once, sorted by path; rows about several clips are passed over.

    Args:
        path: The manifest. Paths of the rows start from the working folder.
    Raises:
        DataError: if the manifest is wrong.
    """
    return clip_rows(manifest.iterate(path))


def clip_rows(examples: Iterable[Example]) -> list[LabelRow]:
    """Like `read_clips`, for examples."""
    rows: dict[str, dict[str, Any]] = {}
    for example in examples:
        if len(example.audio_paths) != 1 or example.audio_parts[0].start or example.audio_parts[0].end is not None:
            continue  # a label row names a whole file
        clip = example.audio_paths[0].as_posix()
        row = rows.setdefault(clip, _new_row(clip, example))
        _add_facts(row, example)
    return [rows[clip] | {"labels": rows[clip]["labels"] or [NO_LABEL]} for clip in sorted(rows)]


def _new_row(clip: str, example: Example) -> dict[str, Any]:
    kept = {name: value for name in KEPT_FIELDS if (value := getattr(example, name))}
    row: dict[str, Any] = {"path": clip, "labels": [], "group": example.group or clip, "split": example.split} | kept
    if not example.category:
        row |= {"category": "sound", "category_assumed": True}
    row.pop("language")  # of the question, while that of a label row is spoken in the clip
    return row


def _add_facts(row: dict[str, Any], example: Example) -> None:
    """Add what a question's answer says about its clip."""
    caption = row_caption(example.meta) or (example.answer[0] if example.task == "caption" and example.answer else None)
    if caption:
        row.setdefault("caption", caption)
    field = example.meta.get("field")
    if example.task in ("yes_no", "caption"):
        return  # the answer is no name of what is asked for
    if field in FIELD_NAMES and example.answer:
        row.setdefault(FIELD_NAMES[field], example.answer[0])
    if field not in LABEL_FIELDS:
        return
    labels = example.meta.get("labels") or example.meta.get("label") or example.answer[:1]
    for label in labels if isinstance(labels, list | tuple) else [labels]:
        if isinstance(label, str) and label and label not in row["labels"]:
            row["labels"].append(label)
