"""Clips in the rows of logs: `audio` lists the files, `audio_segments` the seconds of clips that are parts of a file.

Written by evaluation and training, read by the reports and trackers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.types import AudioClip


def segments_field(clips: Sequence[AudioClip]) -> dict[str, list[list[float | None]]]:
    """The field `audio_segments` of a row: `[start, end]` of each clip in seconds; no field if all are whole files.

    >>> segments_field([AudioClip(Path("a.wav"), 1.5, 3.0)]), segments_field([AudioClip(Path("a.wav"))])
    ({'audio_segments': [[1.5, 3.0]]}, {})
    """
    if not any(clip.is_segment for clip in clips):
        return {}
    return {"audio_segments": [[clip.start, clip.end] for clip in clips]}


def clips_of_row(row: Mapping[str, Any], folder: Path) -> list[AudioClip]:
    """The clips of a row whose paths start from `folder`.

    >>> [str(clip) for clip in clips_of_row({"audio": ["a.wav"], "audio_segments": [[1.5, None]]}, Path("clips"))]
    ['clips/a.wav [1.5-end]']
    """
    segments = row.get("audio_segments") or [(0.0, None)] * len(row["audio"])
    return [AudioClip(folder / name, start, end) for name, (start, end) in zip(row["audio"], segments, strict=True)]
