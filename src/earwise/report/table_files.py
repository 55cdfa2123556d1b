"""The tables of a page as CSV, Markdown and LaTeX.

Part of `earwise.report`. The tables are read from the page's own HTML, so that every table has its files, whichever
function made it. Small print in a cell (an interval, a count) is a column of its own in CSV, and stands in brackets in
the other two forms.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from earwise.files import write_text

FORMS = ("csv", "md", "tex")
"""Suffixes of the files of a table."""
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$", "×": r"$\times$", "→": r"$\to$",
    "\u00a0": "~",
}  # fmt: skip
FORMULA = re.compile(r"^[=+\-@\t\r]")
NUMBER = re.compile(r"^[+-]?\d[\d.,]*( %)?$")


@dataclass(slots=True)
class Cell:
    """A cell as plain text."""

    text: str = ""
    small: str = ""
    """The small print of the cell."""

    @property
    def joined(self) -> str:
        """The text with its small print in brackets."""
        return f"{self.text} ({self.small})" if self.text and self.small else self.text or self.small


@dataclass(slots=True)
class PageTable:
    """A table of a page."""

    section: str
    """Heading of the section in which it stands."""
    rows: list[list[Cell]] = field(default_factory=list)
    """The head first."""


def page_tables(html: str) -> list[PageTable]:
    """The tables of a page in their order.

    Args:
        html: The page, or its sections.
    """
    reader = _TableReader()
    reader.feed(html)
    return reader.tables


def table_forms(tables: Sequence[PageTable]) -> list[dict[str, str]]:
    """Each table as text: `name` (of a file, without suffix) and one text for each of `FORMS`."""
    return [
        {"name": f"{number:02}-{slug(table.section)}", "csv": as_csv(table), "md": as_markdown(table),
         "tex": as_latex(table)}
        for number, table in enumerate(tables, 1)
    ]  # fmt: skip


def write_tables(html: str, folder: Path) -> list[Path]:
    """Write the tables of a page into a folder, three files each.

    Args:
        html: The page.
        folder: Folder to write into; created where it is missing.
    Returns:
        The files.
    Raises:
        DataError: if the disk refuses.
    """
    paths = []
    for forms in table_forms(page_tables(html)):
        for suffix in FORMS:
            paths.append(folder / f"{forms['name']}.{suffix}")
            write_text(paths[-1], forms[suffix])
    return paths


def slug(title: str) -> str:
    """A heading as the name of a file or the id of a section.

    >>> slug("Does it hear?")
    'does-it-hear'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "table"


def as_csv(table: PageTable) -> str:
    """The table as CSV; a column with small print is followed by one that holds it.

    Numbers have an ASCII minus sign. Other cells that a spreadsheet would read as a formula begin with an apostrophe.
    """
    width = max(map(len, table.rows), default=0)
    has_small = [any(len(row) > column and row[column].small for row in table.rows) for column in range(width)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for number, row in enumerate(table.rows):
        cells: list[str] = []
        for column, small in enumerate(has_small):
            cell = row[column] if column < len(row) else Cell()
            cells.append(_csv_cell(cell.text))
            if small:
                cells.append(_csv_cell(cell.small or (f"{cell.text}: detail" if number == 0 else "")))
        writer.writerow(cells)
    return out.getvalue()


def as_markdown(table: PageTable) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(_markdown_cell(cell.joined) for cell in row) + " |" for row in table.rows]
    if lines:
        lines.insert(1, "| --- |" + " ---: |" * (len(table.rows[0]) - 1))
    return "\n".join(lines) + "\n"


def as_latex(table: PageTable) -> str:
    """The table in LaTeX, as a `tabular` with the rules of the package booktabs."""
    lines = [" & ".join(_latex(cell.joined) for cell in row) + r" \\" for row in table.rows]
    columns = "l" + "r" * (len(table.rows[0]) - 1) if table.rows else "l"
    head, body = lines[:1], lines[1:]
    rules = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*rules, r"\end{tabular}"]) + "\n"


class _TableReader(HTMLParser):
    """Collects the tables of a page, with the heading before each."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[PageTable] = []
        self.section = ""
        self.element = ""
        self.in_small = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "h2":
            self.section, self.element = "", "h2"
        elif tag == "table":
            self.tables.append(PageTable(self.section))
        elif tag == "tr" and self.tables:
            self.tables[-1].rows.append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[-1].rows[-1].append(Cell())
            self.element = "cell"
        elif tag == "small":
            self.in_small = True
        elif tag == "br" and self.element == "cell":
            self.handle_data("; ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "small":
            self.in_small = False
        elif tag in ("h2", "td", "th"):
            self.element = ""

    def handle_data(self, data: str) -> None:
        if self.element == "h2":
            self.section += data
        elif self.element == "cell":
            cell = self.tables[-1].rows[-1][-1]
            if self.in_small:
                cell.small += data
            else:
                cell.text += data


def _csv_cell(text: str) -> str:
    number = text.replace("−", "-").replace("\u00a0", " ")
    if NUMBER.match(number):
        return number
    return f"'{text}" if FORMULA.match(text) else text


def _markdown_cell(text: str) -> str:
    """A text that neither ends its cell nor becomes markup."""
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(
        LATEX_ESCAPES.get(character, character) for character in " ".join(text.split(" ")).replace("\n", " ")
    )
