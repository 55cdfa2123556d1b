"""MMAR's own format (arXiv:2505.13032): 1,000 questions on speech, sound, music and their mixtures, scored by MMAU's
matcher.

Source: the public `MMAR-meta` file of ddlBoJack/MMAR (a JSON list or one object a line). Fields: `id, audio_path,
    question, choices,
answer, modality, category, sub-category, language, source, url, timestamp, thinking, cue, rubric`. `Example.task` is
the modality. The annotators' reasoning and the rubric are public and would leak the answer: they are left out of the
Example.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from earwise.evaluate.tasks import mmau
from earwise.types import Audio, Example, Text, Turn

NAME = "mmar"
PREDICTION_KEY = "answer_prediction"
VERSIONS = {"25cfd0cbafb9fc29": "meta (3bce090)"}
NEEDED = ("id", "audio_path", "question", "choices", "modality")
LEFT_OUT = ("thinking", "cue", "rubric")


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read an MMAR file.

    Args:
        path: The benchmark's meta file.
        audio_root: Folder that holds `audio/` or the clips themselves; the file's own folder by default.
    Returns:
        One Example an item, in the file's order.
    Raises:
        DataError: if the file is not MMAR's, or none of its clips is there.
    """
    rows = mmau.read_rows(path, NEEDED)
    print_ = mmau.fingerprint(rows)
    known = VERSIONS.get(print_, f"unknown ({print_}, {len(rows)} items)")
    examples = [example(row, known, mmau.locate(str(row["audio_path"]), path, audio_root)) for row in rows]
    mmau.check_audio(examples, path)
    return examples


def example(row: dict[str, Any], known: str, clip: Path) -> Example:
    """One item as an Example whose clip lies at `clip`."""
    used = (*NEEDED, *LEFT_OUT, "answer", "category", "language", "source")
    return Example(
        id=str(row["id"]),
        turns=(Turn("user", (Audio(str(clip.absolute())), Text(str(row["question"])))),),
        answer=(str(row["answer"]),) if row.get("answer") else (),
        choices=tuple(map(str, row["choices"])),
        task=str(row["modality"]),
        category=str(row.get("category") or ""),
        source=str(row.get("source") or NAME),
        group=str(row["audio_path"]),
        split="test",
        language=row.get("language") or "",
        meta={"benchmark": NAME, "version": known, **{key: value for key, value in row.items() if key not in used}},
    )


def write_official(
    path: Path, samples: Iterable[Mapping[str, Any]], *, source: Path, key: str = PREDICTION_KEY, field: str = "output"
) -> int:
    """Write predictions in MMAR's own format; as `mmau.write_official`, with MMAR's key."""
    return mmau.write_official(path, samples, source=source, key=key, field=field)
