"""A manifest row as tables and speech toolkits can hold it: one clip, one question, one answer. Used by the writers."""

from dataclasses import dataclass
from pathlib import Path

from earwise.errors import DataError
from earwise.types import Audio, Example, Text


@dataclass(frozen=True, slots=True)
class SingleClipRow:
    """A question about one clip."""

    example: Example
    file: Path
    """The clip's file, absolute."""
    start: float
    """First second of the part that is meant."""
    end: float | None
    """Second at which the part ends; None for the end of the file."""

    @property
    def answer(self) -> str:
        """The first accepted answer; empty for an unlabelled row."""
        return self.example.answer[0] if self.example.answer else ""


def single_clip(example: Example, form: str) -> SingleClipRow:
    """Take a row apart.

    Args:
        example: The row.
        form: Name of the form that is written, for messages.
    Raises:
        DataError: if the row has another number of clips than one, several turns, or text before its clip: the form
            could not hold it, and it must not be shortened in silence.
    """
    clips = example.audio_parts
    kinds = [type(part) for turn in example.turns for part in turn.parts]
    if len(example.turns) != 1 or kinds != [Audio, Text]:
        raise DataError(
            f"row {example.id!r}: {len(example.turns)} turns and {len(clips)} clips; {form} holds one clip and the "
            "question after it. Write --to parquet, datasets or webdataset, which keep everything"
        )
    clip = clips[0]
    return SingleClipRow(example, (example.root / clip.path).absolute(), clip.start or 0.0, clip.end)
