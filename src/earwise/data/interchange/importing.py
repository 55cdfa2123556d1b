"""Converts a data set of another program to a manifest, once: into a file of the user's, or into the cache.

`import_dataset` writes OUT and, for clips that were stored inside the data set, `clips/` beside it. `cached_manifest`
does the same below `EARWISE_HOME` and finds the result again while the files of the data set stay as they are, which is
how a data set can be named wherever a manifest is taken.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from earwise import progress
from earwise.data import manifest
from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.detection import reader
from earwise.data.interchange.foreign_row import Clip, DatasetLocation, ForeignRow
from earwise.data.interchange.native_rows import native_row
from earwise.data.interchange.packed_rows import conversation_row, is_clip_value, packed_row
from earwise.data.interchange.readers.csv_tables import FALLBACK_ENCODING
from earwise.data.interchange.readers.huggingface import hub_files
from earwise.data.interchange.readers.parquet_tables import parquet_files
from earwise.data.interchange.readers.tar_samples import tar_files
from earwise.data.readers.row_files import count_rows
from earwise.data.readers.text_lines import csv_rows
from earwise.data.sources.example_builder import short_hash
from earwise.errors import DataError
from earwise.files import atomic_folder, cache_dir, relative_path, write_json, write_jsonl
from earwise.types import Example

CLIPS_FOLDER = "clips"
MANIFEST_NAME = "manifest.jsonl"
TABLE_NAME = "table.jsonl"
VERSION = 1  # incremented whenever the content of a cached conversion changes
OnSkip = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How the rows of a data set become rows of a manifest."""

    absolute_paths: bool = False
    """Whether the manifest names files outside its folder by absolute paths."""
    on_skip: OnSkip | None = None
    """Called with one line about every row that cannot be used; None stops at the first."""
    val_share: float = 0.0
    """Share of the groups (or clips) whose rows get the split `val`, if the data set states no split."""


def import_dataset(location: DatasetLocation, out: Path, options: ImportOptions | None = None) -> int:
    """Write the manifest of a data set.

    Args:
        location: The data set.
        out: Manifest to write; clips that were stored inside the data set go to `clips/` beside it.
        options: How paths are written and what becomes of rows that cannot be used.
    Returns:
        Number of rows.
    Raises:
        DataError: for the first row that cannot be used (unless they are skipped), or if no row is left.
        ConfigError: if a library that the form needs is not installed.
    """
    options = options or ImportOptions()
    store = ClipStore(out.parent / CLIPS_FOLDER)
    rows = reader(location.kind)(location, store)
    examples = _not_empty(_examples(rows, location, out, options), location)
    return manifest.write(out, progress.track(examples, "rows read", _known_total(location)))


def cached_manifest(location: DatasetLocation) -> Path:
    """The manifest of a data set in the cache; written now if it is not there.

    Raises:
        DataError: see `import_dataset`.
    """
    folder = cache_dir() / "converted" / _cache_name(location)
    path = folder / MANIFEST_NAME
    if path.is_file():
        return path
    with _exclusive(folder):
        if not path.is_file():
            with atomic_folder(folder) as part:
                import_dataset(location, part / MANIFEST_NAME, ImportOptions(absolute_paths=True))
                write_json(part / "dataset.json", asdict(location) | {"path": str(location.path)})
    return path


def cached_table(location: DatasetLocation) -> Path:
    """The rows of a data set in the cache, as JSON lines under their own column names; written now if they are not
    there.

    Clips that were stored inside the data set are files beside it; a column that held them holds their absolute paths.

    Raises:
        DataError: if the data set cannot be read, or has no rows.
        ConfigError: if a library that the form needs is not installed.
    """
    folder = cache_dir() / "tables" / _cache_name(location)
    path = folder / TABLE_NAME
    if path.is_file():
        return path
    with _exclusive(folder):
        if not path.is_file():
            with atomic_folder(folder) as part:
                rows = reader(location.kind)(location, ClipStore(part / CLIPS_FOLDER))
                plain_rows = (plain_values(row.values, part, folder) for row in rows)
                if not write_jsonl(part / TABLE_NAME, progress.track(plain_rows, "rows read", _known_total(location))):
                    raise DataError(f"{location.path}: holds no rows; is it the right file, and the right split?")
    return path


def plain_values(values: Mapping[str, Any], part: Path, folder: Path) -> dict[str, Any]:
    """A row as JSON can hold it: clips as paths, numbers that are none as null.

    Args:
        values: Column -> value.
        part: Folder that clips of the data set are written to now.
        folder: The name that this folder will have.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Clip):
            path = value.path.absolute()
            return str(folder / path.relative_to(part) if path.is_relative_to(part) else path)
        if isinstance(value, Mapping):
            return {str(name): plain(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if isinstance(value, str | int | float | bool) or value is None else str(value)

    return {name: plain(value) for name, value in values.items()}


def _examples(
    rows: Iterator[ForeignRow], location: DatasetLocation, out: Path, options: ImportOptions
) -> Iterator[Example]:
    """The Examples of the rows; a row that cannot be used is skipped or raised."""
    existing = set[Path]()
    prefix = location.path.name.partition(".")[0] or "row"

    def path_text(path: Path) -> str:
        if path not in existing:
            if not path.is_file():
                raise DataError(f"audio file {path} is missing; paths start from the data set's own folder")
            existing.add(path)
        if options.absolute_paths and not path.is_relative_to(out.parent):
            return str(path.absolute())
        return Path(relative_path(path, out.parent)).as_posix()

    for number, row in enumerate(rows, 1):
        try:
            example = _example(row, f"{prefix}-{number}", location, out.parent, path_text)
            yield _with_split(example, row, options.val_share)
        except DataError as error:
            message = str(error) if str(error).startswith(row.location) else f"{row.location}: {error}"
            if options.on_skip is None:
                raise DataError(message) from error
            options.on_skip(message)


def _with_split(example: Example, row: ForeignRow, val_share: float) -> Example:
    """The example, held out as `val` if the hash of its group, or of its clips, is among the lowest `val_share`."""
    if not val_share or any(name.strip().lower() == "split" for name in row.values):
        return example
    # the last two parts of a path, so that the same clips are held out wherever the data set lies
    unit = example.group or " ".join("/".join(path.parts[-2:]) for path in example.audio_paths)
    is_held_out = int(short_hash(unit), 16) / 16 ** len(short_hash(unit)) < val_share
    return replace(example, split="val") if is_held_out else example


def _example(
    row: ForeignRow, identifier: str, location: DatasetLocation, root: Path, path_text: Callable[[Path], str]
) -> Example:
    """The Example of one row."""
    conversation = packed_row(row, path_text) or conversation_row(row, path_text)
    if conversation is not None:
        has_stored_clips = any(is_clip_value(value) for value in row.values.values())
        # paths that the row itself names start from the data set's folder
        return manifest.from_row(conversation, root=root if has_stored_clips else row.root, location=row.location)
    native = native_row(row, identifier, columns=location.columns, prompt=location.prompt, path_text=path_text)
    example = manifest.from_row(native, root=root, location=row.location)
    manifest.check_has_audio(example, row.location)
    return example


def _known_total(location: DatasetLocation) -> int | None:
    """Number of rows of a data set, where its files state it or counting them is cheap; None elsewhere."""
    if location.split is not None:
        return None
    if location.kind == "csv":
        try:
            return sum(1 for _ in csv_rows(location.path, fallback=FALLBACK_ENCODING))
        except DataError:  # the reader says so at the row in question
            return None
    if location.kind == "parquet":
        from pyarrow import parquet

        files = parquet_files(location.path)
        try:
            return sum(parquet.read_metadata(file).num_rows for file in files) if files else None
        except (OSError, ValueError):  # a damaged file, which the reader refuses
            return None
    if location.kind == "nemo":
        return count_rows(location.path)
    if location.kind == "kaldi":
        folder = location.path if location.path.is_dir() else location.path.parent
        return count_rows(folder / "text")
    return None


def _not_empty(examples: Iterator[Example], location: DatasetLocation) -> Iterator[Example]:
    """Pass the examples on; raise if there are none, so that no manifest is written."""
    first = next(examples, None)
    if first is None:
        raise DataError(f"{location.path}: no row can be used; is it the right file, and the right split?")
    yield first
    yield from examples


def _cache_name(location: DatasetLocation) -> str:
    """Folder of a conversion: the data set's name, and a hash of its options and its files' sizes and times."""
    files = hub_files(location) if location.kind == "hub" else _files(location.path)
    stamps = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = [VERSION, asdict(location) | {"path": str(location.path)}, stamps]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return f"{location.path.name.partition('.')[0]}-{digest}"


def _files(path: Path) -> list[Path]:
    """The files whose change makes a cached conversion stale."""
    if path.is_file():
        return [path]
    files = parquet_files(path) or tar_files(path)
    return files or sorted(file for file in path.rglob("*") if file.is_file())


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one process convert at a time; the others wait, and then find the result."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(os.fspath(folder) + ".lock"):
        yield
