"""The result of a rehearsal: JSON, and a table of what was trained."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.files import write_json, write_text
from rehearsal.reductions import REDUCTIONS
from rehearsal.released_files import SIZES

Row = dict[str, Any]
TABLE_BEGIN, TABLE_END = "<!-- table -->", "<!-- end of table -->"
"""Marks around the table in the documentation."""
HEAD = ("recipe", "profile", "arm", "processes", "stages (steps)", "CPU, s", "peak, MB", "verdict")


def summarize(rows: Sequence[Row], machine: Mapping[str, Any], seconds: float) -> Row:
    """The content of rehearsal.json.

    Args:
        rows: `run_page` of every page, one list.
        machine: Description of machine and commit.
        seconds: Seconds of the whole rehearsal; kept if nothing was finished before.
    """
    trainings = [row for row in rows if "stages" in row]
    is_whole = not any(row.get("earlier") for row in rows)
    return {
        **machine, "ok": bool(rows) and all(row["ok"] for row in rows),
        "seconds": round(seconds, 1) if is_whole else None,
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1), "sizes": SIZES, "reductions": REDUCTIONS,
        "pages": {
            page: {
                "commands": sum(row["page"] == page for row in rows),
                "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows if row["page"] == page), 1),
            }
            for page in dict.fromkeys(row["page"] for row in rows)
        },
        "trainings": trainings, "commands": [row for row in rows if "stages" not in row],
    }  # fmt: skip


def cells(row: Mapping[str, Any]) -> list[str]:
    """A training as a row of the table."""
    stages = ", ".join(f"{stage['name']} ({stage['steps']})" for stage in row["stages"])
    return [
        str(row["recipe"]), row["profile"] or "–", row["arm"] or "–", str(row["processes"]), stages,
        f"{row['cpu_seconds']:.0f}", str(row["peak_mb"]), "ok" if row["ok"] else row["problem"],
    ]  # fmt: skip


def markdown(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table in Markdown, with a sentence per failed command."""
    yield "| " + " | ".join(HEAD) + " |"
    yield "|" + "---|" * len(HEAD)
    for row in result["trainings"]:
        yield "| " + " | ".join(cells(row)) + " |"
    for row in result["commands"]:
        if not row["ok"]:
            yield f"\nFAILED (exit code {row.get('status')}): {row['line']}"


def record(result: Mapping[str, Any], results: Path, page: Path) -> None:
    """Keep a result in the repository: its figures as JSON, and the table in the documentation.

    Args:
        result: Content of rehearsal.json.
        results: JSON file of the repository; without the single commands and their output.
        page: Page of the documentation, with the marks around its table.
    """
    kept = {name: value for name, value in result.items() if name != "commands"}
    write_json(results, kept)
    table = "\n".join([TABLE_BEGIN, *page_table(kept), TABLE_END])
    text = page.read_text(encoding="utf-8")
    write_text(page, re.sub(f"{TABLE_BEGIN}.*{TABLE_END}", lambda _: table, text, flags=re.DOTALL))


def page_table(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table in the documentation, with a sentence about the run."""
    yield ""
    yield from markdown({**result, "commands": []})
    commands = sum(page["commands"] for page in result["pages"].values())
    yield ""
    minutes = f" in {result['seconds'] / 60:.1f} minutes" if result["seconds"] else ""
    yield (
        f"{commands} commands of {len(result['pages'])} pages{minutes}, {result['cpu_seconds']:.0f} CPU seconds "
        f"({result['machine']['cpu']}); `benchmarks/results/rehearsal.json`."
    )
    yield ""
