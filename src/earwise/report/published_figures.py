"""Published figures of other models, drawn beside the runs of a report.

Part of `earwise.report`. A figure is a number that somebody printed, with its source: it has no interval here, and
whether its items, prompt and scorer were those of the run is for the source to say.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from earwise.errors import ConfigError, DataError
from earwise.report.tables import table

FIELDS = ("model", "value", "source")
NOTE = (
    "Published figures are as printed in their sources, in percent; their items, prompts and scorers may differ from "
    "those of the runs."
)


@dataclass(frozen=True, slots=True)
class PublishedFigure:
    """A number that somebody published."""

    model: str
    """The model, with what distinguishes the row in its source."""
    value: float
    """The score in percent."""
    source: str
    """Paper and table, or repository."""


def read_published(path: Path) -> list[PublishedFigure]:
    """Read published figures from a JSON list of objects, or a CSV with a header, with the fields `FIELDS`.

    Args:
        path: The file, `.json` or `.csv`.
    Raises:
        DataError: if the file cannot be read, or an entry lacks a field or has a value that is not a percentage.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = list(csv.DictReader(text.splitlines())) if path.suffix.lower() == ".csv" else json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); give a JSON list or a CSV of {', '.join(FIELDS)}"
        ) from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: holds no list; give a JSON list of objects with {', '.join(FIELDS)}")
    return [_figure(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]


def matching(figures: Sequence[PublishedFigure], models: Sequence[str]) -> list[PublishedFigure]:
    """The figures of models whose names contain one of the texts, whatever their case; all of them without a text.

    Raises:
        ConfigError: if a text is in no name.
    """
    for text in models:
        if not any(text.lower() in figure.model.lower() for figure in figures):
            names = ", ".join(dict.fromkeys(figure.model for figure in figures)) or "no figure is known for this run"
            raise ConfigError(f"--published-model {text!r} is in none of the models: {names}")
    wanted = [text.lower() for text in models]
    return [figure for figure in figures if not wanted or any(text in figure.model.lower() for text in wanted)]


def published_table(figures: Sequence[PublishedFigure]) -> str:
    """The figures with their sources (HTML); empty without figures."""
    body = [[escape(each.model), f"{each.value:g}", escape(each.source)] for each in figures]
    return table(["Published", "%", "Source"], body, NOTE) if body else ""


def _figure(entry: Any, place: str) -> PublishedFigure:
    """One entry, checked."""
    if not isinstance(entry, Mapping) or any(not str(entry.get(field) or "").strip() for field in FIELDS):
        raise DataError(f"{place}: lacks one of {', '.join(FIELDS)}; a figure without its source is not shown")
    try:
        value = float(entry["value"])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1000:
        raise DataError(f"{place}: value {entry['value']!r} is no percentage; write 64.5 for 64.5 %")
    return PublishedFigure(str(entry["model"]).strip(), value, str(entry["source"]).strip())
