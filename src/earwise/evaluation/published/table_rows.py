"""Benchmarks that are published as tables: Parquet files, folders of `datasets`, and names on a hub.

Their rows are read under their own column names, with clips as paths; what a column means is the task's business. A
table is converted once into the cache (`data/interchange/importing.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.data.interchange.detection import find_dataset
from earwise.data.interchange.foreign_row import DatasetLocation
from earwise.data.interchange.importing import cached_table
from earwise.data.readers import row_files
from earwise.errors import DataError

TABLE_KINDS = ("parquet", "datasets", "hub")
"""Forms of `interchange.detection` in which benchmarks are published beside JSON and CSV."""
HUB = "hf:/"


def dataset_name(path: Path) -> str:
    """What the user wrote: a `Path` of a name on a hub has lost a slash.

    >>> dataset_name(Path("hf://datasets/a/b?split=test")), dataset_name(Path("a/b.json"))
    ('hf://datasets/a/b?split=test', 'a/b.json')
    """
    text = path.as_posix()
    return text.replace(HUB, f"{HUB}/", 1) if text.startswith(HUB) else str(path)


def table_location(path: Path) -> DatasetLocation | None:
    """The table that a path or name means; None if it is no table.

    Raises:
        ConfigError: if a name on a hub is incomplete.
    """
    location = find_dataset(dataset_name(path), Path())
    return location if location is not None and location.kind in TABLE_KINDS else None


def subset_of(path: Path, subsets: Sequence[str]) -> str | None:
    """The subset that a path or a name on a hub says: its `config`, or a part of its path that is, or begins with, the
    name of a subset; the longest that fits.

    >>> subset_of(Path("hf://datasets/a/b?config=sd-qa&split=usa"), ["ifeval", "sd-qa"])
    'sd-qa'
    """
    location = table_location(path)
    names = [location.config] if location is not None and location.config else []
    names += [part for part in reversed(Path(dataset_name(path).partition("?")[0]).parts)]
    for name in names:
        fitting = [subset for subset in subsets if name.lower().replace("_", "-").startswith(subset.replace("_", "-"))]
        if fitting:
            return max(fitting, key=len)
    return None


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, a JSON list, or a file with one JSON object per line.

    Raises:
        DataError: if the file cannot be read, or holds no rows.
    """
    location = table_location(path)
    rows = [dict(row) for _, row in row_files.read_rows(path if location is None else cached_table(location))]
    if not rows:
        raise DataError(f"{path}: holds no items; download it again")
    return rows


def first_value(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these columns that is there and not empty; None if there is none."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def clip_names(value: Any) -> list[str]:
    """The clips of a cell: a path, a list of paths, or objects with a `path`."""
    cells = value if isinstance(value, list) else [value]
    return [str(cell["path"] if isinstance(cell, dict) else cell) for cell in cells if cell]
