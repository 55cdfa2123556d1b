"""Reads data sets through the `datasets` library: on a hub (`hf://datasets/ORG/NAME`) and as `save_to_disk` wrote them.

The library downloads, caches and, with `HF_HUB_OFFLINE=1`, finds again; here its rows are read without decoding audio.
It is an optional extra. It runs no code from a hub (versions from 4 on refuse loading scripts).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import DatasetLocation, ForeignRow
from earwise.data.interchange.readers.embedded_audio import AudioCell
from earwise.data.interchange.readers.parquet_tables import label_text
from earwise.errors import ConfigError, DataError


def read_hub(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """The rows of a data set on a hub, downloaded once into the library's cache.

    Raises:
        DataError: if the hub cannot be reached and the cache does not hold the data set, or there is no such data set,
            split, configuration or revision.
        ConfigError: if the library is not installed.
    """
    data = _load(location)
    yield from _dataset_rows(data, f"hf://datasets/{location.path.as_posix()}", location.split, store, Path())


def hub_files(location: DatasetLocation) -> list[Path]:
    """The files of a data set on a hub in the library's cache, downloaded if they are not there.

    Their folders are named by the commit, so that they tell editions apart.

    Raises:
        DataError: see `read_hub`.
    """
    data = _load(location)
    parts = data.values() if isinstance(data, dict) else [data]
    return [Path(file["filename"]) for part in parts for file in part.cache_files]


def _load(location: DatasetLocation) -> Any:
    """The data set, from the hub or the library's cache."""
    library, name = import_datasets(), location.path.as_posix()
    try:
        return library.load_dataset(name, location.config, split=location.split, revision=location.revision)
    except Exception as error:  # the library and its HTTP clients share no base class
        raise DataError(f"hf://datasets/{name}: {_reason(error)}") from error


def read_disk(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """The rows of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DataError: for a damaged folder, or if there is no such split.
        ConfigError: if the library is not installed.
    """
    library = import_datasets()
    try:
        data = library.load_from_disk(str(location.path))
    except Exception as error:
        raise DataError(
            f"{location.path}: is not a whole folder of `save_to_disk` ({error}); write it again"
        ) from error
    if location.split is not None and isinstance(data, dict):
        if location.split not in data:
            raise DataError(f"{location.path}: no split {location.split!r}; there are {', '.join(data)}")
        data = data[location.split]
    yield from _dataset_rows(data, str(location.path), location.split, store, location.path)


def _dataset_rows(data: Any, name: str, split: str | None, store: ClipStore, root: Path) -> Iterator[ForeignRow]:
    """The rows of a data set, or of all splits of a dictionary of them, each with its split."""
    if isinstance(data, dict):
        for split_name, part in data.items():
            yield from _dataset_rows(part, f"{name} {split_name}", str(split_name), store, root)
        return
    features = dict(data.features)
    audio = [column for column, feature in features.items() if _holds_audio(feature)]
    labels = {column: feature.names for column, feature in features.items() if _kind(feature) == "ClassLabel"}
    cell = AudioCell(store)
    # `with_format("arrow")` hands out the stored bytes; reading rows as Python values would decode them
    for number, table in enumerate(data.with_format("arrow").iter(batch_size=1), 1):
        values: dict[str, Any] = table.to_pylist()[0]
        location = f"{name}:row {number}"
        for column in audio:
            values[column] = cell.clips(values[column], root, location)
        for column, names in labels.items():
            values[column] = label_text(values[column], names)
        yield ForeignRow(location, values if split is None else {"split": split} | values, root)


def _holds_audio(feature: Any) -> bool:
    """Whether a feature is Audio, or a list of Audio."""
    return _kind(feature) == "Audio" or _kind(getattr(feature, "feature", None)) == "Audio"


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _reason(error: Exception) -> str:
    """One line that says why a hub gave no data set, and what to do."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    names = {type(cause).__name__ for cause in chain}
    text = " ".join(str(error).split())[:200]
    if names & {"ConnectionError", "ConnectError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectTimeout"}:
        return (
            "the hub cannot be reached and the cache does not hold this data set; check the network (HF_ENDPOINT, "
            "proxy, HF_HUB_OFFLINE), or fetch it on another machine and give the folder"
        )
    if names & {"GatedRepoError"}:
        return "the data set is gated: accept its terms on the hub and run `hf auth login`"
    if names & {"DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}:
        return f"no such data set or revision, or it is private (`hf auth login`): {text}"
    return f"{type(error).__name__}: {text}; add ?split=NAME or &config=NAME if the data set has several"


def import_datasets() -> Any:
    """The `datasets` library.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            'data sets of Hugging Face need the `datasets` library: pip install "earwise[hub]"'
        ) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets
