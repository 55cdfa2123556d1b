"""The published figures of `published.json`: which sets a paper measures, its tables, and who reported what.

Percentages and BLEU are in [0, 100] as printed. A figure that we did not find is null, never a guess; every row names
its source. Where a set is one of several editions or copies, the file's place below the data folder is ours.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from earwise.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BenchmarkSet:
    """A file that a paper measures on."""

    name: str
    task: str
    """Key of `task_table.TASKS`."""
    file: str
    """Its place below the data folder."""
    items: int | None = None
    """Number of items of the published file; None: it is not fixed."""
    version: str = ""
    """Beginning of the edition's name, where several are published."""
    style: str = ""
    """Prompt style; empty: the task's own."""
    hidden: bool = False
    """Whether its answers are hidden, so that only a submission gives a score."""
    judge: bool = False
    """Whether the paper's measure needs a judge."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a paper's table."""

    label: str
    set: str
    """Key of the sets."""
    score: str = ""
    """Name of the metric, or `delay` (tokens before the answer); empty: the headline."""
    group: str = ""
    """Field by whose values the figure is broken down; empty: all items."""
    match: str = ""
    """Regular expression of the value of `group`."""
    scale: float = 100.0
    """What our figures, which are in [0, 1], are multiplied by; 10 for points from 0 to 10."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """What one source reports for one model."""

    model: str
    source: str
    values: tuple[float | None, ...]
    """One figure a column; None where there is none."""


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table of a paper."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper with its tables."""

    title: str
    tables: tuple[PaperTable, ...]

    @property
    def sets(self) -> list[str]:
        """Keys of the sets that its tables need, each once."""
        return list(dict.fromkeys(column.set for table in self.tables for column in table.columns))


@cache
def _content() -> tuple[dict[str, Paper], dict[str, BenchmarkSet]]:
    """The papers and the sets of the package's file."""
    text = files("earwise.apps.paper_tables").joinpath("published.json").read_text(encoding="utf-8")
    content = json.loads(text)
    papers = {}
    for key, paper in content["papers"].items():
        tables = tuple(
            PaperTable(
                table["caption"],
                tuple(Column(**column) for column in table["columns"]),
                tuple(PublishedRow(row["model"], row["source"], tuple(row["values"])) for row in table["rows"]),
                tuple(table.get("notes", ())),
            )
            for table in paper["tables"]
        )
        papers[key] = Paper(paper["title"], tables)
    return papers, {key: BenchmarkSet(**entry) for key, entry in content["sets"].items()}


def papers() -> dict[str, Paper]:
    """Name of a paper -> its tables."""
    return _content()[0]


def benchmark_sets() -> dict[str, BenchmarkSet]:
    """Key -> set."""
    return _content()[1]


def find_paper(name: str) -> Paper:
    """A paper by its name.

    Raises:
        ConfigError: if there is no such paper.
    """
    if name not in papers():
        raise ConfigError(f"paper {name!r} is none of {', '.join(papers())}")
    return papers()[name]
