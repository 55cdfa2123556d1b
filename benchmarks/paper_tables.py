"""The tables of the five papers for a model on fixtures: hand-made rows on the bundled clips, marked as such.

Shows that every column of every table is filled, or says why not; the figures say nothing about a model.

    python benchmarks/paper_tables.py --out runs/tables
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from earwise.apps.paper_tables.fixtures import write_fixtures
from earwise.apps.paper_tables.published import papers


def measure(paper: str, data: Path, model: str, out: Path) -> dict[str, Any]:
    """Run `earwise table` as a process of its own, and read the table that it wrote.

    Args:
        paper: Name of the paper.
        data: Folder of the fixtures.
        model: Name or folder of the model.
        out: Folder of all papers.
    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    folder = out / paper
    command = [sys.executable, "-m", "earwise", "table", paper, "--data", str(data), "--model", model]
    subprocess.run([*command, "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    return result


def filled(result: dict[str, Any]) -> str:
    """One line about a paper: columns with a figure, and the notes on those without.

    Raises:
        ValueError: if the table is not marked as one of fixtures, or a column is empty and no note says why.
    """
    here = [figure for table in result["tables"] for figure in table["here"]]
    notes = list(dict.fromkeys(note for table in result["tables"] for note in table["notes"]))
    num_filled = sum(figure is not None for figure in here)
    if not result["fixtures"] or (num_filled < len(here) and not notes):
        raise ValueError(f"{result['paper']}: not marked as fixtures, or empty columns without a note")
    return f"{result['paper']}: {num_filled} of {len(here)} columns\n" + "".join(f"  {note}\n" for note in notes)


def main() -> None:
    """Measure all papers and print what was filled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", help="name or folder of the model")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="folder of the runs")
    parser.add_argument("--rows", type=int, default=2, help="rows of each set and kind of sound")
    options = parser.parse_args()
    data = options.out / "sets"
    if not data.exists():
        write_fixtures(data, rows=options.rows)
    for paper in papers():
        print(filled(measure(paper, data, options.model, options.out)), flush=True)


if __name__ == "__main__":
    main()
