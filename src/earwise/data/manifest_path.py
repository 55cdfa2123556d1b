"""Resolves the names that recipes and commands accept for a manifest: paths, `starter:train`, `starter:val`, and data
sets in other programs' forms, which are converted once into the cache."""

from pathlib import Path

from earwise.data.interchange.detection import find_dataset
from earwise.data.interchange.importing import cached_manifest
from earwise.errors import ConfigError

STARTER = Path(__file__).parents[1] / "assets" / "starter"


def manifest_path(name: str, base: Path) -> Path:
    """File of a manifest.

    Args:
        name: `starter:train` or `starter:val` for the bundled starter set, a path, or a data set (a table, a folder of
            `datasets`, Parquet, tar shards, NeMo, lhotse, Kaldi, `hf://datasets/ORG/NAME`), with options after `?` (see
            `interchange.detection.find_dataset`).
        base: Folder that a relative path starts from.
    Raises:
        ConfigError: for any other name that begins with `starter:`.
        DataError: if a data set cannot be converted.
    """
    if name.startswith("starter:"):
        path = STARTER / f"{name.removeprefix('starter:')}.jsonl"
        if not path.exists():
            raise ConfigError(f"manifest {name!r}: the bundled ones are starter:train and starter:val")
        return path
    location = find_dataset(name, base)
    return base / Path(name).expanduser() if location is None else cached_manifest(location)


def task_file(task: str, name: str, base: Path) -> Path:
    """File that a task reads: for the task `manifest` a manifest, as `manifest_path` finds it; for any other task the
    file itself, which its own reader understands, also where it is a table.

    Args:
        task: Name of the task.
        name: Path of the file, or `starter:train`, `starter:val`.
        base: Folder that a relative path starts from.
    Raises:
        ConfigError, DataError: as `manifest_path`.
    """
    if task == "manifest" or name.startswith("starter:"):
        return manifest_path(name, base)
    return base / Path(name).expanduser()
