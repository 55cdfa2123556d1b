"""Reads Parquet files of other programs, row group by row group; audio in them goes to files at once.

At most one row group is held in memory, which `datasets` makes of 100 rows with audio.

A column is audio if it is a struct of `bytes` and `path`, as the `Audio` feature of `datasets` is stored, a list of
such structs, or a struct of `array` and `sampling_rate` (decoded samples). Class labels become their names.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import DatasetLocation, ForeignRow
from earwise.data.interchange.readers.embedded_audio import AudioCell, is_audio_type
from earwise.data.sources.example_builder import split_from_name
from earwise.errors import ConfigError, DataError

BATCH_ROWS = 8


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder (or of its folder `data`), or the file itself."""
    if path.is_file():
        return [path]
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


def read(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """One row per row of the files; where they are named by split (`train-00000-of-00002.parquet`), with its split.

    Raises:
        DataError: for a damaged file, or if no file belongs to the split that is asked for.
        ConfigError: if pyarrow is not installed.
    """
    files = parquet_files(location.path)
    has_splits = len({_split_name(file) for file in files}) > 1 or location.split is not None
    chosen = [file for file in files if location.split in (None, _split_name(file), split_from_name(Path(file.name)))]
    if not chosen:
        names = ", ".join(sorted({_split_name(file) for file in files}))
        raise DataError(f"{location.path}: no file of split {location.split!r}; there are {names}")
    for file in chosen:
        split = split_from_name(Path(file.name)) if has_splits or "-of-" in file.name else None
        yield from _read_file(file, store, split)


def _split_name(file: Path) -> str:
    return file.name.partition("-")[0].removesuffix(".parquet")


def _read_file(file: Path, store: ClipStore, split: str | None) -> Iterator[ForeignRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError('Parquet needs pyarrow: pip install "earwise[data]"') from error
    number = 0
    try:
        with ParquetFile(file, memory_map=True, pre_buffer=False) as table:
            schema = table.schema_arrow
            cells = {name: AudioCell(store) for name in schema.names if is_audio_type(schema.field(name).type)}
            labels = label_names(schema.metadata or {})
            for batch in table.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    row_location = f"{file}:row {number}"
                    for name, cell in cells.items():
                        values[name] = cell.clips(values[name], file.parent, row_location)
                    for name, names in labels.items():
                        values[name] = label_text(values.get(name), names)
                    yield ForeignRow(row_location, values if split is None else {"split": split} | values, file.parent)
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: is not a complete Parquet file ({error}); fetch it again") from error


def label_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of its classes, from the description that `datasets` writes into the schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def label_text(value: Any, names: list[str]) -> Any:
    """Name of a class that is stored as its number; other values, and -1 for a hidden label, as None or unchanged."""
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value
