"""The figures of a finished demo, with machine and commit, as one file that the documentation quotes.

    python benchmarks/demo_figures.py runs/demo --out benchmarks/results/demo.json

Run it from the checkout and on the machine that ran the demo: both are recorded as they are now.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from baselines.timing import machine

from earwise.evaluation.compare import compare
from earwise.files import write_json


def measurement(folder: Path) -> dict[str, Any]:
    """Accuracy with its interval, format, unreadable answers and categories of one evaluation folder.

    Args:
        folder: Folder that an evaluation wrote, holding metrics.json.
    """
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    headline = metrics["headline"]
    return {
        "accuracy": metrics["accuracy"][headline],
        "score": headline,
        "chance": metrics["chance"],
        "format": metrics["format"],
        "unparsed": metrics["unparsed"],
        "categories": {name: scores[headline] for name, scores in metrics["by"]["category"].items()},
    }


def figures(run: Path) -> dict[str, Any]:
    """All figures of a demo's folder.

    Args:
        run: The folder given to `earwise demo --out`.

    Raises:
        FileNotFoundError: If the demo has not been finished.
    """
    steps = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    paired = compare(run / "before", run / "after")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=True
    )
    return {
        "commit": commit.stdout.strip(),
        "machine": machine(),
        "demo": json.loads((run / "demo.json").read_text(encoding="utf-8")),
        "steps": max(row["step"] for row in steps if "step" in row),
        "before": measurement(run / "before"),
        "after": measurement(run / "after"),
        "silence": measurement(run / "after" / "silence"),
        "shuffled": measurement(run / "after" / "shuffled"),
        "difference": paired[paired["headline"]],
    }


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    options = parser.parse_args()
    write_json(options.out, figures(options.run))


if __name__ == "__main__":
    main()
