"""Writes the measured table of `docs/papers/later.md` from `benchmarks/results/later-recipes.json`, so that they agree.

    python benchmarks/recipes.py --only gkd --only audio-r1 --only audiomcq --only hyper \\
        --out runs/later --json benchmarks/results/later-recipes.json
    python benchmarks/later_page.py [--check]

`--check` writes nothing and ends with 1 where the page differs from the file; a test does the same.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance_page import BLOCK, MISSING, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "later-recipes.json"
PAGE = ROOT / "docs" / "papers" / "later.md"
NAMES = ("hyper", "audiomcq", "audio-r1", "gkd")
HEAD = (
    "recipe | steps | n | before, % (95 %) | after, % | under silence, % | in the format, % | "
    "difference, points (95 %) | commit"
)


def rendered(page: str) -> str:
    """The page with its block of figures as the file has them.

    Args:
        page: The page as it is.
    """
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None
    body = MISSING if result is None else measured(result)
    return BLOCK.sub(lambda match: match[1] + body + match[4], page)


def measured(result: Mapping[str, Any]) -> str:
    """The table of the recipes that ran, and a line about those that did not."""
    rows = {row["recipe"]: row for row in result["recipes"]}
    text = table(HEAD, [line(rows[name]) for name in NAMES if name in rows])
    text += f"\n{result['machine']['cpu']}, {result['machine']['threads']} thread, one seed.\n"
    missing = [f"`{name}`" for name in NAMES if name not in rows]
    return text + (f"Not measured yet: {', '.join(missing)}.\n" if missing else "")


def line(row: Mapping[str, Any]) -> str:
    """The row of a recipe: its first held-out set before and after training."""
    held_out = row["held_out"][0]
    before, after, gap = held_out["before"], held_out["after"], held_out["difference"]
    steps = " + ".join(str(stage["steps"]) for stage in row["stages"])
    return (
        f"`{row['recipe']}` | {steps} | {held_out['n']} | {score(before)} | {score(after)} | "
        f"{percent(before['blind'])} → {percent(after['blind'])} | "
        f"{percent(before['format'])} → {percent(after['format'])} | "
        f"{100 * gap['difference']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}) | "
        f"{', '.join(row['commits'])}"
    )


def score(value: Mapping[str, float]) -> str:
    """An accuracy with its interval, in percent."""
    return f"{percent(value['accuracy'])} ({percent(value['low'])} to {percent(value['high'])})"


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def main() -> int:
    """Rewrite the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    page = PAGE.read_text(encoding="utf-8")
    new = rendered(page)
    if parser.parse_args().check:
        print("the page and the file agree" if new == page else "the page differs; run this without --check")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
