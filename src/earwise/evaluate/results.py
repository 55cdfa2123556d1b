"""A run's folder: which settings it was made with, which rows are finished, and how it is read back.

Written by `evaluate.run`, read by `evaluate.compare` and `earwise.report`. `samples.jsonl` only grows; `settings.json`
holds what decides the answers (not the batch size), and a run under other settings is refused, since its rows would mix
with the old.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.errors import ConfigError, DataError
from earwise.files import read_log, write_json

SAMPLES = "samples.jsonl"
METRICS = "metrics.json"
SETTINGS = "settings.json"

Settings = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its name for tables, its folder, its rows, metrics and settings."""

    name: str
    path: Path
    rows: tuple[Row, ...]
    metrics: dict[str, Any]
    settings: Settings

    @property
    def first(self) -> dict[str, Row]:
        """The rows by id, of the first permutation of the options."""
        return {row["id"]: row for row in self.rows if not row.get("permutation")}


def settings_hash(value: object) -> str:
    """16 hex digits of the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resume(out: Path, settings: Settings) -> list[Row]:
    """The finished rows of a run with these settings in `out`; a torn last line is cut. A new folder is begun with
    `settings.json`.

    Raises:
        ConfigError: if `out` holds samples that were made with other settings, naming those that differ.
        DataError: if a line of the samples is not JSON, or the disk refuses.
    """
    rows = read_log(out / SAMPLES)
    if rows:
        mine = settings_hash(settings)
        strange = next((row for row in rows if row.get("settings") != mine), None)
        if strange is not None:
            differ = _difference(out, settings)
            raise ConfigError(
                f"{out} holds samples made with other settings ({differ}); choose a new --out folder or delete this one"
            )
    write_json(out / SETTINGS, settings)
    return rows


def _difference(out: Path, settings: Settings) -> str:
    """Which settings differ from those on disk, in words."""
    try:
        old = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {SETTINGS} beside them"
    names = [name for name in settings if old.get(name) != settings[name]]
    words = [
        f"{name}: {old.get(name)} there, {settings[name]} now"
        if name != "items"
        else "other items or another edition of them"
        for name in names
    ]
    return "; ".join(words) or "rows of another run"


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run's folder.

    Args:
        path: Folder with `samples.jsonl` and `metrics.json`.
        name: Name for tables; the folder's name by default.
    Raises:
        DataError: if there are no samples or no metrics (the run was stopped and not finished).
    """
    rows = read_log(path / SAMPLES)
    if not rows:
        raise DataError(f"{path}: no {SAMPLES} with rows in it; give the folder that `earwise evaluate --out` wrote")
    metrics = _read_json(path / METRICS, "the run is not finished: run the same evaluate command again")
    settings = _read_json(path / SETTINGS, "run the same evaluate command again")
    return Run(name or path.resolve().name, path, tuple(rows), metrics, settings)


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: is not there; {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error
