"""Writes a manifest in another program's form: the table of forms, and the ones that packed data sets already have."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from earwise.data.interchange.readers.huggingface import import_datasets
from earwise.data.interchange.writers.speech_toolkits import write_kaldi, write_lhotse, write_nemo
from earwise.data.interchange.writers.tables import write_table
from earwise.data.parquet import to_parquet
from earwise.data.webdataset import to_webdataset
from earwise.files import atomic_folder


def write_parquet(path: Path, out: Path) -> int:
    """Write Parquet files with an Audio column into the folder `out`; returns the number of rows."""
    return sum(shard["rows"] for shard in to_parquet(path, out))


def write_webdataset(path: Path, out: Path) -> int:
    """Write tar shards into the folder `out`; returns the number of rows."""
    return sum(shard["rows"] for shard in to_webdataset(path, out))


def write_datasets(path: Path, out: Path) -> int:
    """Write the folder `out` for `datasets.load_from_disk`, a dictionary of splits; returns the number of rows.

    Raises:
        DataError: for an invalid row or a missing audio file.
        ConfigError: if the library is not installed.
    """
    library = import_datasets()
    with tempfile.TemporaryDirectory() as temporary, atomic_folder(out) as part:
        count = write_parquet(path, Path(temporary) / "packed")
        data = library.load_dataset(str(Path(temporary) / "packed"), cache_dir=str(Path(temporary) / "cache"))
        data.save_to_disk(str(part))
    return count


WRITERS: dict[str, Callable[[Path, Path], int]] = {
    "parquet": write_parquet,
    "datasets": write_datasets,
    "webdataset": write_webdataset,
    "csv": write_table,
    "tsv": partial(write_table, delimiter="\t"),
    "nemo": write_nemo,
    "lhotse": write_lhotse,
    "kaldi": write_kaldi,
}
"""Name of a form -> function that writes the manifest at a path to another path and returns the number of rows."""
