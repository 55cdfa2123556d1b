"""Packs a manifest and its audio files into Parquet files that `datasets` reads, and unpacks them, byte for byte.

The files `data/train-00000-of-00002.parquet` ... have a column `audio` {bytes, path} of the `datasets` type Audio
(`audio_2` ... if rows have several clips), columns to filter by, the complete manifest row as JSON in `example`, and
its row number in `row` (each split has files of its own). Up to `GROUP_BYTES` of audio are held in memory at a time.
"""

import heapq
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from earwise.data import manifest
from earwise.data.portable_rows import PortableRow, audio_parts, portable_rows, read_row, write_audio
from earwise.errors import ConfigError, DataError
from earwise.files import atomic_folder
from earwise.types import Example

SHARD_BYTES = 500 << 20
GROUP_BYTES, GROUP_ROWS = 32 << 20, 100  # a row group of a file ends at whichever limit is reached first
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
TEXT_COLUMNS = ("id", "question", "task", "category", "source", "licence", "group", "split", "language")
LIST_COLUMNS = ("answer", "choices")


def to_parquet(path: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> list[dict[str, Any]]:
    """Pack a manifest into Parquet files, one set of files per split; `datasets.load_dataset(out)` reads them.

    Args:
        path: Manifest; it is read twice.
        out: Folder; the files are written to `out/data`, which appears when all of them are complete.
        shard_bytes: A file ends with the row that reaches this many bytes of audio.
    Returns:
        `name`, `rows` and `bytes` (of audio) of each file.
    Raises:
        DataError: for an invalid row, a missing audio file, or a file that cannot be written.
        ConfigError: if pyarrow is not installed.
    """
    arrow = _import_pyarrow()
    max_clips = max((len(row.files) for row in portable_rows(path)), default=-1)
    if max_clips < 0:
        raise DataError(f"{path}: holds no rows; write at least one")
    schema = _schema(arrow, max_clips)
    folder = out / "data"
    parts: dict[str, list[dict[str, Any]]] = {}
    try:
        with atomic_folder(folder) as unfinished:
            writers = {
                split: _SplitWriter(unfinished / f".{name}", schema, shard_bytes) for split, name in SPLIT_NAMES.items()
            }
            for row in portable_rows(path):
                writers[row.example.split].add(row)
            for split, writer in writers.items():
                parts[split] = writer.close()
            shards = []
            for split, name in SPLIT_NAMES.items():
                for number, part in enumerate(parts[split]):
                    final = f"{name}-{number:05d}-of-{len(parts[split]):05d}.parquet"
                    part["path"].rename(unfinished / final)
                    shards.append({"name": f"data/{final}", "rows": part["rows"], "bytes": part["bytes"]})
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    return shards


def from_parquet(folder: Path, out: Path) -> int:
    """Unpack Parquet files that `to_parquet` wrote into a manifest, in its original order, and its audio files.

    Args:
        folder: Folder with the files, or with their folder `data`.
        out: Manifest to write; audio files go into its folder.
    Returns:
        Number of rows.
    Raises:
        DataError: for a missing or damaged file, a missing column, or a path that leads out of the folder.
        ConfigError: if pyarrow is not installed.
    """
    _import_pyarrow()
    files = sorted((folder / "data" if (folder / "data").is_dir() else folder).glob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: holds no .parquet files; name the folder above `data`")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(file.name.rpartition("-of-")[0].rpartition("-")[0], []).append(file)
    for split, members in splits.items():
        file_count = members[0].stem.rpartition("-of-")[2]
        if file_count.isdecimal() and int(file_count) != len(members):
            raise DataError(
                f"{folder}: {len(members)} of {int(file_count)} files of {split!r} are there; fetch the others"
            )
    streams = [_read_parquet(members, out.parent) for members in splits.values()]
    merged = heapq.merge(*streams, key=lambda pair: pair[0])
    return manifest.write(out, (example for _, example in merged))


class _SplitWriter:
    """Writes the Parquet files of one split, one after the other, under temporary hidden names."""

    def __init__(self, stem: Path, schema: Any, shard_bytes: int) -> None:
        self._stem, self._schema, self._shard_bytes = stem, schema, shard_bytes
        self._shards: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._file: Any = None

    def add(self, row: PortableRow) -> None:
        """Append a row; starts a new file if the last one is full."""
        from pyarrow.parquet import ParquetWriter

        if self._file is None:
            path = self._stem.with_name(f"{self._stem.name}-{len(self._shards):05d}.part")
            self._file = ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)
            self._shards.append({"path": path, "rows": 0, "bytes": 0})
        self._pending.append(_columns(row, sum(name.startswith("audio") for name in self._schema.names)))
        self._pending_bytes += row.size
        shard = self._shards[-1]
        shard["rows"], shard["bytes"] = shard["rows"] + 1, shard["bytes"] + row.size
        if len(self._pending) >= GROUP_ROWS or self._pending_bytes >= GROUP_BYTES:
            self._flush()
        if shard["bytes"] >= self._shard_bytes:
            self.close()

    def close(self) -> list[dict[str, Any]]:
        """Finish the current file; returns `path`, `rows` and `bytes` of all files so far."""
        if self._file is not None:
            self._flush()
            self._file.close()
            self._file = None
        return self._shards

    def _flush(self) -> None:
        """Write the pending rows as one row group."""
        import pyarrow

        if self._pending:
            self._file.write_table(pyarrow.Table.from_pylist(self._pending, schema=self._schema))
        self._pending, self._pending_bytes = [], 0


def _columns(row: PortableRow, max_clips: int) -> dict[str, Any]:
    """Column name -> value of a row; `max_clips` is the number of audio columns."""
    example = row.example
    columns: dict[str, Any] = {
        "row": row.number,
        "example": json.dumps(manifest.to_row(example), ensure_ascii=False),
    }
    columns |= {name: getattr(example, name) for name in TEXT_COLUMNS}
    columns |= {name: list(getattr(example, name)) for name in LIST_COLUMNS}
    clips = [
        {"bytes": file.read_bytes(), "path": part.path}
        for file, part in zip(row.files, audio_parts(example), strict=True)
    ]
    padding = [None] * (max_clips - len(clips))
    return columns | dict(zip(_audio_columns(max_clips), [*clips, *padding], strict=True))


def _audio_columns(count: int) -> list[str]:
    """Names of the first `count` audio columns."""
    return ["audio" if number == 1 else f"audio_{number}" for number in range(1, count + 1)]


def _schema(arrow: ModuleType, max_clips: int) -> Any:
    """Arrow schema; its metadata describes the same types to `datasets`, which thereby decodes the audio columns."""
    audio = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    text = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {name: {"_type": "Audio"} for name in _audio_columns(max_clips)}
    features |= dict.fromkeys(TEXT_COLUMNS, text)
    features |= {name: {"feature": text, "_type": "List"} for name in LIST_COLUMNS}
    features |= {"example": text, "row": {"dtype": "int64", "_type": "Value"}}
    types = dict.fromkeys(_audio_columns(max_clips), audio) | dict.fromkeys(TEXT_COLUMNS, arrow.string())
    types |= dict.fromkeys(LIST_COLUMNS, arrow.list_(arrow.string())) | {"example": arrow.string()}
    types |= {"row": arrow.int64()}
    return arrow.schema(list(types.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _read_parquet(files: list[Path], root: Path) -> Iterator[tuple[int, Example]]:
    """Row number and Example of every row of a split's files; audio files are written to `root`."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for file in files:
        try:
            with ParquetFile(file) as table:
                if missing := {"example", "row"} - set(table.schema_arrow.names):
                    raise DataError(f"{file}: has no column {min(missing)!r}; only files of `earwise build parquet`")
                for batch in table.iter_batches(batch_size=16):
                    for row in batch.to_pylist():
                        yield row["row"], _unpack_row(row, root, f"{file}: row {row['row']}")
        except (ArrowException, OSError) as error:
            raise DataError(f"{file}: is not a complete Parquet file ({error}); fetch it again") from error


def _unpack_row(row: dict[str, Any], root: Path, location: str) -> Example:
    """The Example of a row of a Parquet file, with its audio files written to `root`."""
    example = read_row(row["example"].encode(), root, location)
    parts = audio_parts(example)
    for part, column in zip(parts, _audio_columns(len(parts)), strict=True):
        audio = row.get(column)
        if not audio or audio["bytes"] is None:
            raise DataError(f"{location}: {column} holds no bytes; pack it again")
        write_audio(root, part.path, io.BytesIO(audio["bytes"]), location)
    return example


def _import_pyarrow() -> ModuleType:
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError('Parquet needs pyarrow: pip install "earwise[data]"') from error
    return pyarrow
