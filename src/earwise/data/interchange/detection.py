"""Recognises the form of a data set by its name, and for JSON lines by the keys of its first row.

Used wherever a manifest is taken: a name that is none of these forms is a manifest or a file of conversations.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from earwise.config.resolve import resolve_entry
from earwise.data.interchange.foreign_row import DatasetLocation, Reader
from earwise.data.interchange.native_rows import COLUMN_NAMES
from earwise.data.interchange.packed_rows import CONVERSATION_KEYS
from earwise.data.interchange.readers.lhotse import find_file
from earwise.data.interchange.readers.parquet_tables import parquet_files
from earwise.data.interchange.readers.tar_samples import tar_files
from earwise.errors import ConfigError

READERS: Mapping[str, str] = {
    "hub": "earwise.data.interchange.readers.huggingface:read_hub",
    "datasets": "earwise.data.interchange.readers.huggingface:read_disk",
    "parquet": "earwise.data.interchange.readers.parquet_tables:read",
    "webdataset": "earwise.data.interchange.readers.tar_samples:read",
    "csv": "earwise.data.interchange.readers.csv_tables:read",
    "nemo": "earwise.data.interchange.readers.nemo:read",
    "lhotse": "earwise.data.interchange.readers.lhotse:read",
    "kaldi": "earwise.data.interchange.readers.kaldi:read",
}
"""Name of a form -> its reader, imported when it is used."""
HUB_PREFIXES = ("hf://datasets/", "hf://")
TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_HEAD_BYTES = 1 << 20


def find_dataset(name: str, base: Path) -> DatasetLocation | None:
    """The data set that a name means, or None if it is a manifest, a file of conversations, or missing.

    Args:
        name: A path, or `hf://datasets/ORG/NAME[@REVISION]`; either may be followed by
            `?split=S&config=C&prompt=TEXT&FIELD=COLUMN`.
        base: Folder that a relative path starts from.
    Raises:
        ConfigError: for an unknown key after `?`, or an incomplete name on a hub.
    """
    path_text, query = (name, "") if "?" not in name or (base / name).exists() else name.split("?", 1)
    options = _query_options(query, name)
    if path_text.startswith("hf://"):
        return _hub_location(path_text, options)
    path = base / Path(path_text).expanduser()
    kind = detect_kind(path)
    if kind is None:
        if query:
            raise ConfigError(f"{name!r}: {path} is no table or data set, so nothing can follow the question mark")
        return None
    return DatasetLocation(kind, path, **options)


def detect_kind(path: Path) -> str | None:
    """Name of the form of a file or folder, a key of `READERS`; None for a manifest or a file of conversations."""
    name = path.name.lower()
    if path.is_dir():
        return _folder_kind(path)
    if not path.is_file():
        return None
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(TAR_SUFFIXES):
        return "webdataset"
    if name.endswith(TABLE_SUFFIXES):
        return "csv"
    if name == "wav.scp":
        return "kaldi"
    if name.endswith((".jsonl", ".jsonl.gz", ".json")):
        return _json_kind(path)
    return None


def reader(kind: str) -> Reader:
    """The reader of a form."""
    loaded: Reader = resolve_entry(READERS, kind, "form")
    return loaded


def _folder_kind(folder: Path) -> str | None:
    """The form of a folder, by the files in it."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "datasets"
    if parquet_files(folder):
        return "parquet"
    if (folder / "wav.scp").is_file():
        return "kaldi"
    if find_file(folder, "cuts") or (find_file(folder, "recordings") and find_file(folder, "supervisions")):
        return "lhotse"
    return "webdataset" if tar_files(folder) else None


def _json_kind(path: Path) -> str | None:
    """The form of a file of JSON lines, by the keys of its first row."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            row = json.loads(handle.readline(_HEAD_BYTES).decode("utf-8-sig"))
    except (OSError, EOFError, ValueError):
        return None
    if not isinstance(row, dict) or CONVERSATION_KEYS & row.keys():
        return None
    if "audio_filepath" in row:
        return "nemo"
    is_cut = str(row.get("type", "")).endswith("Cut") or {"recording", "supervisions"} <= row.keys()
    is_supervision = {"recording_id", "start", "duration"} <= row.keys()
    return "lhotse" if is_cut or is_supervision else None


def _hub_location(name: str, options: dict[str, Any]) -> DatasetLocation:
    prefix = next(prefix for prefix in HUB_PREFIXES if name.startswith(prefix))
    repository, _, revision = name.removeprefix(prefix).partition("@")
    parts = [part for part in repository.split("/") if part]
    if len(parts) not in (1, 2):
        raise ConfigError(f"{name!r} is not hf://datasets/ORGANISATION/NAME[@REVISION]; correct it")
    return DatasetLocation("hub", Path(*parts), revision=revision or None, **options)


def _query_options(query: str, name: str) -> dict[str, Any]:
    """Arguments of a `DatasetLocation` from what follows the question mark of a name."""
    options: dict[str, Any] = {}
    columns: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in ("split", "config", "prompt"):
            options[key] = value
        elif key in COLUMN_NAMES:
            columns[key] = value
        else:
            known = ", ".join(("split", "config", "prompt", *COLUMN_NAMES))
            raise ConfigError(f"{name!r}: {key!r} is none of {known}")
    return options | ({"columns": columns} if columns else {})


def check_columns(columns: Mapping[str, str]) -> None:
    """Check the fields of `--column FIELD=COLUMN`.

    Raises:
        ConfigError: for a field that a manifest row does not have.
    """
    for name in columns:
        if name not in COLUMN_NAMES:
            raise ConfigError(f"--column {name}={columns[name]}: {name!r} is none of {', '.join(COLUMN_NAMES)}")
