"""The checks of a data set as one HTML page that needs nothing else: what is wrong, figures, some rows to listen to.

After `build/checks.py`; written beside the manifest by the builders and by `earwise build check --html`. Sounds are
linked, not copied: players work while the page stays where it is relative to them. `page` is pure.
"""

import html
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from earwise.files import write_json, write_text
from earwise.types import Example

SHOWN_ROWS = 16
SHOWN_PROBLEMS = 200
CSS = """
body{font:15px/1.45 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#1c2330;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}
td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top;border-bottom:1px solid #e3e6ea}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.good{color:#1a7f37}.bad{color:#b42318}li{margin:.2em 0}.muted{color:#667085}audio{height:2em;display:block}
svg{display:block}.wide{overflow-x:auto}
"""


def write(path: Path, report: Mapping[str, Any], title: str, examples: Iterable[Example] = (), seed: int = 0) -> Path:
    """Write the page, and the report as JSON beside it (`.json` in place of `.html`).

    Args:
        path: Of the page; sounds are linked relative to its folder.
        report: From `checks.check`.
        title: Heading, usually the names of the manifests.
        examples: To draw rows from that are shown with players.
        seed: Decides which rows.
    Returns:
        `path`.
    """
    write_json(path.with_suffix(".json"), report)
    write_text(path, page(report, title, _drawn(examples, random.Random(seed)), path.parent))
    return path


def _drawn(examples: Iterable[Example], rng: random.Random) -> list[Example]:
    """A few of any number, each as likely as the others."""
    kept: list[Example] = []
    for number, example in enumerate(examples):
        if number < SHOWN_ROWS:
            kept.append(example)
        elif (place := rng.randrange(number + 1)) < SHOWN_ROWS:
            kept[place] = example
    return kept


def page(report: Mapping[str, Any], title: str, rows: Iterable[Example] = (), folder: Path = Path()) -> str:
    """The page as text; everything that comes from the data is escaped."""
    problems = report["problems"]
    verdict = (
        f'<p class="bad"><b>{len(problems)} problems</b></p>' if problems else '<p class="good"><b>No problems</b></p>'
    )
    parts = [
        f"<h1>{_text(title)}</h1>",
        verdict,
        _problems(problems),
        "<h2>Rows</h2>",
        _table([("split", "rows"), *report["splits"].items()]),
        _table([("task", "rows"), *report["tasks"].items()]),
        "<h2>Can it be answered without ears?</h2>",
        '<p class="muted">Share of right answers of listeners that hear nothing. The bar is three standard deviations '
        "of pure chance, the line is chance; a bar to the right of the line is a problem.</p>",
        *(_listeners("all", report["bias"]) if report["bias"] else ["<p>No questions with options.</p>"]),
        *(part for split, found in report["bias_by_split"].items() if found for part in _listeners(split, found)),
        "<h2>Sounds</h2>",
        _sounds(report["sounds"]),
        "<h2>Licences</h2>",
        _table([("licence", "clips"), *((name or "(none)", count) for name, count in report["licences"].items())]),
        "<h2>Most frequent answers</h2>",
        _table([("answer", "rows"), *report["answers"]]),
        "<h2>Some rows, drawn at random</h2>",
        *(_row(example, folder) for example in rows),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Checks: {_text(title)}</title>\n'
        f"<style>{CSS}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    more = len(problems) - SHOWN_PROBLEMS
    lines = [f"<li>{_text(line)}</li>" for line in problems[:SHOWN_PROBLEMS]]
    return "<ul>" + "\n".join(lines) + (f"<li>and {more} more</li>" if more > 0 else "") + "</ul>"


def _table(rows: Sequence[tuple[Any, Any]]) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>"]
    lines += [f'<tr><td>{_text(name)}</td><td class="n">{_text(count)}</td></tr>' for name, count in body]
    return "<table>" + "".join(lines) + "</table>"


def _listeners(where: str, listeners: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    yield f"<h3>{_text(where)}</h3><table><tr><th>listener</th><th>right</th><th>chance</th><th>n</th><th></th></tr>"
    for name, rate in listeners.items():
        kind = "bad" if rate["low"] > rate["chance"] else ""
        yield (
            f'<tr class="{kind}"><td>{_text(name.replace("_", " "))}</td><td class="n">{rate["accuracy"]:.3f}</td>'
            f'<td class="n">{rate["chance"]:.3f}</td><td class="n">{rate["n"]:.0f}</td><td>{_interval(rate)}</td></tr>'
        )
    yield "</table>"


def _interval(rate: Mapping[str, float], width: int = 260) -> str:
    low, high = (min(max(rate[key], 0.0), 1.0) * width for key in ("low", "high"))
    chance, right = rate["chance"] * width, rate["accuracy"] * width
    return (
        f'<svg width="{width}" height="16" role="img" aria-label="{rate["low"]:.2f} to {rate["high"]:.2f}">'
        f'<rect x="0" y="7" width="{width}" height="2" fill="#e3e6ea"/>'
        f'<rect x="{low:.1f}" y="4" width="{max(high - low, 1):.1f}" height="8" fill="#9db7d5"/>'
        f'<circle cx="{right:.1f}" cy="8" r="3" fill="#1f4e79"/>'
        f'<rect x="{chance:.1f}" y="0" width="1.5" height="16" fill="#b42318"/></svg>'
    )


def _sounds(sounds: Mapping[str, Any]) -> str:
    if not sounds.get("clips"):
        return "<p>Not listened to.</p>"
    rows = [("", ""), ("clips", f"{sounds['clips']:,}")]
    rows += [(f"hours, {split}", f"{hours:.2f}") for split, hours in sounds["hours"].items()]
    rows += [
        ("more than half silence", sounds["mostly_silent"]),
        ("at full scale (clipped)", sounds["clipped"]),
        ("near copies inside one split", sounds["near_copies_in_one_split"]),
        ("sample rates", ", ".join(f"{rate} Hz: {count}" for rate, count in sounds["sample_rates"].items())),
        ("channels", ", ".join(f"{number}: {count}" for number, count in sounds["channels"].items())),
    ]
    return (
        _table(rows)
        + _histogram("duration, seconds", sounds["duration_s"])
        + _histogram("level, dB of full scale", sounds["loudness_db"])
    )


def _histogram(name: str, spread: Mapping[str, Any], width: int = 420, height: int = 70) -> str:
    counts = spread["counts"]
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{at * step:.1f}" y="{height - height * count / max(counts):.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / max(counts):.1f}" fill="#9db7d5"/>'
        for at, count in enumerate(counts)
    )
    return (
        f"<p>{_text(name)}: {spread['min']:g} to {spread['max']:g}, middle {spread['median']:g} "
        f'<span class="muted">(5 % below {spread["p5"]:g}, 5 % above {spread["p95"]:g})</span></p>'
        f'<svg width="{width}" height="{height}">{bars}</svg>'
    )


def _row(example: Example, folder: Path) -> str:
    players = "".join(
        f'<audio controls preload="none" src="{quote(Path(os.path.relpath(path, folder)).as_posix())}"></audio>'
        for path in example.audio_paths
    )
    options = " · ".join(
        f"<b>{_text(choice)}</b>" if choice in example.answer else _text(choice) for choice in example.choices
    )
    said = options or f"<b>{_text(example.answer[0] if example.answer else '')}</b>"
    return (
        f'<p>{players}{_text(example.question)}<br>{said}<br><span class="muted">{_text(example.id)} · '
        f"{_text(example.task)} · {_text(example.split)} · {_text(example.licence)}</span></p>"
    )
