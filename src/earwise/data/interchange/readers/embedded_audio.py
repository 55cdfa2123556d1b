"""Audio that is stored inside a table: bytes with a path, a path alone, or decoded samples with their rate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from earwise.audio import encode_samples
from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import Clip
from earwise.errors import DataError


def is_audio_type(arrow_type: Any) -> bool:
    """Whether an Arrow type is that of stored audio: a struct with `bytes` and `path` or with `array` and
    `sampling_rate`, or a list of such structs."""
    from pyarrow import types

    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        return is_audio_type(arrow_type.value_type)
    if not types.is_struct(arrow_type):
        return False
    names = {arrow_type.field(number).name for number in range(arrow_type.num_fields)}
    return {"bytes", "path"} <= names or {"array", "sampling_rate"} <= names


class AudioCell:
    """Writes the audio of a column's cells to files.

    Args:
        store: Where clips are written to.
    """

    def __init__(self, store: ClipStore) -> None:
        self._store = store

    def clips(self, value: Any, root: Path, location: str) -> Clip | list[Clip] | None:
        """The clips of a cell.

        Args:
            value: The cell: a mapping, a list of mappings, or None.
            root: Folder that a path without bytes starts from.
            location: Prefix of error messages.
        Raises:
            DataError: if the cell holds neither bytes nor a path.
        """
        if value is None:
            return None
        if isinstance(value, list):
            clips = [self.clips(item, root, location) for item in value]
            return [clip for clip in clips if isinstance(clip, Clip)]
        name = str(value.get("path") or "")
        if value.get("array") is not None:
            return Clip(self._store.add(_wav_bytes(value, location), "decoded.wav", location))
        if value.get("bytes") is not None:
            return Clip(self._store.add(value["bytes"], name, location))
        if not name:
            raise DataError(f"{location}: the audio holds neither bytes nor a path; take the row out")
        return Clip(root / name)


def _wav_bytes(value: Mapping[str, Any], location: str) -> bytes:
    """A WAV file of decoded samples `(samples,)` or `(channels, samples)`."""
    samples = np.asarray(value["array"], np.float32)
    if samples.size == 0 or samples.ndim > 2 or not value.get("sampling_rate"):
        raise DataError(f"{location}: the decoded audio has no samples or no sampling_rate; take the row out")
    return encode_samples(samples.T if samples.ndim == 2 else samples[:, None], int(value["sampling_rate"]))
