"""The folder of an evaluation run: its settings, its finished rows, and how it is read back.

Written by `evaluation.run`, read by `evaluation.compare` and `earwise.report`. `samples.jsonl` only grows.
`settings.json` holds everything that decides the answers (not the batch size); a folder whose rows were made with other
settings is refused, because old and new rows would mix.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from earwise.errors import ConfigError, DataError
from earwise.files import read_log, write_json, write_jsonl

SAMPLES = "samples.jsonl"
METRICS = "metrics.json"
SETTINGS = "settings.json"
TIMING = "timing.json"
"""Where the time of the newest call went, see `run.ask`."""

EvalSettings = dict[str, Any]
"""What `settings.json` holds: model, revision, style, decoding, seed, control, scorer, and a hash of the items."""
Row = dict[str, Any]
"""One line of `samples.jsonl`: one item under one order of its options."""
ItemContents = Mapping[tuple[str, int], tuple[str, tuple[str, ...]]]
"""Id of an item and number of the order of its options -> text of the prompt, and accepted answers."""


@dataclass(frozen=True)
class EvalRun:
    """A finished run."""

    name: str
    """Name in tables and figures."""
    path: Path
    """Folder of the run."""
    rows: tuple[Row, ...]
    metrics: dict[str, Any]
    settings: EvalSettings

    @cached_property
    def first(self) -> dict[str, Row]:
        """The rows by item id, in the first order of the options only."""
        return {row["id"]: row for row in self.rows if not row.get("permutation")}


def settings_hash(value: object) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resume(out: Path, settings: EvalSettings, contents: ItemContents) -> list[Row]:
    """The finished rows in `out`; writes `settings.json`. A last line that was not written whole is cut off.

    A run over more items than an earlier one in the same folder keeps the rows of the earlier one, if nothing else has
    changed; they then count as made with the settings of this run.

    Args:
        out: Folder of the run; it need not exist.
        settings: Settings of this run.
        contents: What the items of this run ask.
    Raises:
        ConfigError: if `out` holds rows that were made with other settings; the message names those that differ.
        DataError: if a line of the samples is not JSON, or the disk refuses.
    """
    rows = read_log(out / SAMPLES)
    if rows:
        expected_hash = settings_hash(settings)
        if any(row.get("settings") != expected_hash for row in rows):
            if _is_extended(out, settings, rows, contents):
                rows = [row | {"settings": expected_hash} for row in rows]
                write_jsonl(out / SAMPLES, rows)
                write_json(out / SETTINGS, settings)
                return rows
            raise ConfigError(
                f"{out} holds samples made with other settings ({_difference(out, settings)}); "
                "choose a new --out folder or delete this one"
            )
    write_json(out / SETTINGS, settings)
    return rows


def _is_extended(out: Path, settings: EvalSettings, rows: list[Row], contents: ItemContents) -> bool:
    """Whether a run asks what the rows in its folder answer, word for word, and more, under the same settings."""
    try:
        old = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if {**old, "items": settings["items"]} != json.loads(json.dumps(settings)):
        return False
    old_hashes = {settings_hash(old), settings_hash(settings)}
    return all(
        row.get("settings") in old_hashes
        and contents.get((row["id"], row["permutation"])) == (row["prompt"], tuple(row["gold"]))
        for row in rows
    )


def read_run(path: Path, name: str | None = None) -> EvalRun:
    """Read the folder of a finished run.

    Args:
        path: Folder with `samples.jsonl`, `metrics.json` and `settings.json`.
        name: Name for tables; the folder's name by default.
    Raises:
        DataError: if there are no samples, or no metrics (the run was stopped before its end).
    """
    rows = read_log(path / SAMPLES)
    if not rows:
        raise DataError(f"{path}: no {SAMPLES} with rows in it; give the folder that `earwise evaluate --out` wrote")
    metrics = _read_json(path / METRICS, "the run is not finished: run the same evaluate command again")
    settings = _read_json(path / SETTINGS, "run the same evaluate command again")
    return EvalRun(name or path.resolve().name, path, tuple(rows), metrics, settings)


def _difference(out: Path, settings: EvalSettings) -> str:
    """Names and values of the settings that differ from those on disk."""
    try:
        old = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {SETTINGS} beside them"
    changed = [name for name in settings if old.get(name) != settings[name]]
    phrases = [
        "other items or another edition of them"
        if name == "items"
        else f"{name}: {old.get(name)} there, {settings[name]} now"
        for name in changed
    ]
    return "; ".join(phrases) or "rows of another run"


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: is not there; {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error
