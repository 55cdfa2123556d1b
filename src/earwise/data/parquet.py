"""A manifest and its sounds as Parquet files in the Hugging Face layout, and back, bit for bit.

Between a folder of files and whoever reads data with `datasets`. `data/train-00000-of-00002.parquet` ... have a column
`audio` {bytes, path} of type Audio (`audio_2` ... where rows have several sounds), fields to filter by, `example` (the
manifest row, whole) and `row` (its number, since splits lie apart). Up to `GROUP_BYTES` of sound are held at a time.
"""

import heapq
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from earwise.data import manifest
from earwise.data.portable_rows import Sample, read_row, samples, sounds, write_sound
from earwise.errors import ConfigError, DataError
from earwise.types import Example

SHARD_BYTES = 500 << 20
GROUP_BYTES, GROUP_ROWS = 32 << 20, 100  # of a row group, whichever is reached first
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
TEXT_COLUMNS = ("id", "question", "task", "category", "source", "licence", "group", "split", "language")
LIST_COLUMNS = ("answer", "choices")


def to_parquet(path: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> list[dict[str, Any]]:
    """Pack a manifest into Parquet files, by split; `datasets.load_dataset(OUT)` reads them.

    Args:
        path: Manifest; it is read twice.
        out: Folder; the files go into `out/data`.
        shard_bytes: A file ends with the sample that reaches this many bytes of sound.
    Returns:
        Name, rows and bytes of sound of each file.
    Raises:
        DataError: for a bad row, a missing sound, or a disk that refuses.
        ConfigError: if pyarrow is not installed.
    """
    arrow = _arrow()
    widest = max((len(sample.files) for sample in samples(path)), default=-1)
    if widest < 0:
        raise DataError(f"{path}: holds no rows; write at least one")
    schema = _schema(arrow, widest)
    folder = out / "data"
    parts: dict[str, list[dict[str, Any]]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writers = {split: _Writer(folder / f".{name}", schema, shard_bytes) for split, name in SPLIT_NAMES.items()}
        for sample in samples(path):
            writers[sample.example.split].add(sample)
        for split, writer in writers.items():
            parts[split] = writer.close()
        shards = []
        for split, name in SPLIT_NAMES.items():
            for number, part in enumerate(parts[split]):
                final = f"{name}-{number:05d}-of-{len(parts[split]):05d}.parquet"
                part["path"].rename(folder / final)
                shards.append({"name": f"data/{final}", "rows": part["rows"], "bytes": part["bytes"]})
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    return shards


def from_parquet(folder: Path, out: Path) -> int:
    """Unpack Parquet files of `to_parquet` into a manifest, in its old order, and its sounds beside it.

    Raises:
        DataError: for a missing or broken file, a file without the columns, or a path that leads out of the folder.
        ConfigError: if pyarrow is not installed.
    """
    _arrow()
    files = sorted((folder / "data" if (folder / "data").is_dir() else folder).glob("*.parquet"))
    if not files:
        raise DataError(f"{folder}: holds no .parquet files; name the folder above `data`")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(file.name.rpartition("-of-")[0].rpartition("-")[0], []).append(file)
    for split, members in splits.items():
        stated = members[0].stem.rpartition("-of-")[2]
        if stated.isdecimal() and int(stated) != len(members):
            raise DataError(f"{folder}: {len(members)} of {int(stated)} files of {split!r} are there; fetch the others")
    streams = [_read_parquet(members, out.parent) for members in splits.values()]
    merged = heapq.merge(*streams, key=lambda pair: pair[0])
    return manifest.write(out, (example for _, example in merged))


class _Writer:
    """Parquet files of one split, one after the other, under hidden names."""

    def __init__(self, stem: Path, schema: Any, shard_bytes: int) -> None:
        self._stem, self._schema, self._limit = stem, schema, shard_bytes
        self._done: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._file: Any = None

    def add(self, sample: Sample) -> None:
        from pyarrow.parquet import ParquetWriter

        if self._file is None:
            path = self._stem.with_name(f"{self._stem.name}-{len(self._done):05d}.part")
            self._file = ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)
            self._done.append({"path": path, "rows": 0, "bytes": 0})
        self._pending.append(_columns(sample, sum(name.startswith("audio") for name in self._schema.names)))
        self._pending_bytes += sample.size
        now = self._done[-1]
        now["rows"], now["bytes"] = now["rows"] + 1, now["bytes"] + sample.size
        if len(self._pending) >= GROUP_ROWS or self._pending_bytes >= GROUP_BYTES:
            self._flush()
        if now["bytes"] >= self._limit:
            self.close()

    def close(self) -> list[dict[str, Any]]:
        if self._file is not None:
            self._flush()
            self._file.close()
            self._file = None
        return self._done

    def _flush(self) -> None:
        import pyarrow

        if self._pending:
            self._file.write_table(pyarrow.Table.from_pylist(self._pending, schema=self._schema))
        self._pending, self._pending_bytes = [], 0


def _columns(sample: Sample, width: int) -> dict[str, Any]:
    example = sample.example
    row: dict[str, Any] = {
        "row": sample.number,
        "example": json.dumps(manifest.to_row(example), ensure_ascii=False),
    }
    row |= {name: getattr(example, name) for name in TEXT_COLUMNS}
    row |= {name: list(getattr(example, name)) for name in LIST_COLUMNS}
    held = [
        {"bytes": file.read_bytes(), "path": part.path}
        for file, part in zip(sample.files, sounds(example), strict=True)
    ]
    return row | dict(zip(_audio_columns(width), [*held, *[None] * (width - len(held))], strict=True))


def _audio_columns(width: int) -> list[str]:
    return ["audio" if number == 1 else f"audio_{number}" for number in range(1, width + 1)]


def _schema(arrow: ModuleType, width: int) -> Any:
    """Arrow types, and the same in the words of `datasets`, which is how it knows sound from bytes."""
    sound = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    text = {"dtype": "string", "_type": "Value"}
    features: dict[str, Any] = {name: {"_type": "Audio"} for name in _audio_columns(width)}
    features |= dict.fromkeys(TEXT_COLUMNS, text)
    features |= {name: {"feature": text, "_type": "List"} for name in LIST_COLUMNS}
    features |= {"example": text, "row": {"dtype": "int64", "_type": "Value"}}
    types = dict.fromkeys(_audio_columns(width), sound) | dict.fromkeys(TEXT_COLUMNS, arrow.string())
    types |= dict.fromkeys(LIST_COLUMNS, arrow.list_(arrow.string())) | {"example": arrow.string()}
    types |= {"row": arrow.int64()}
    return arrow.schema(list(types.items()), metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _read_parquet(files: list[Path], root: Path) -> Iterator[tuple[int, Example]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for file in files:
        try:
            with ParquetFile(file) as table:
                if lacking := {"example", "row"} - set(table.schema_arrow.names):
                    raise DataError(f"{file}: has no column {min(lacking)!r}; only files of `earwise build parquet`")
                for batch in table.iter_batches(batch_size=16):
                    for row in batch.to_pylist():
                        yield row["row"], _restored(row, root, f"{file}: row {row['row']}")
        except (ArrowException, OSError) as error:
            raise DataError(f"{file}: is no whole Parquet file ({error}); fetch it again") from error


def _restored(row: dict[str, Any], root: Path, where: str) -> Example:
    example = read_row(row["example"].encode(), root, where)
    for part, column in zip(sounds(example), _audio_columns(len(sounds(example))), strict=True):
        sound = row.get(column)
        if not sound or sound["bytes"] is None:
            raise DataError(f"{where}: {column} holds no bytes; pack it again")
        write_sound(root, part.path, sound["bytes"], where)
    return example


def _arrow() -> ModuleType:
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError('Parquet needs pyarrow: pip install "earwise[data]"') from error
    return pyarrow
