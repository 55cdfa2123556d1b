"""Writes the report of `checks/check_examples.py` as one HTML page: problems, figures, and some rows with players.

Written beside the manifest by the builders, and by `earwise build check --html`. The page needs no other files except
the audio, which is linked, not copied: the players work as long as page and audio keep their relative positions.
"""

import html
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from earwise.files import write_json, write_text
from earwise.types import AudioClip, Example

MAX_SHOWN_ROWS = 16
MAX_SHOWN_PROBLEMS = 200
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
        path: File of the page; audio is linked relative to its folder.
        report: Report of `check_examples`.
        title: Heading, usually the names of the manifests.
        examples: Rows of the data set, of which some are shown with players.
        seed: Seed of the draw of the rows that are shown.
    Returns:
        `path`.
    """
    write_json(path.with_suffix(".json"), report)
    write_text(path, render_page(report, title, _sample(examples, random.Random(seed)), path.parent))
    return path


def _sample(examples: Iterable[Example], rng: random.Random) -> list[Example]:
    """A uniform random sample of `MAX_SHOWN_ROWS` examples (reservoir sampling)."""
    sample: list[Example] = []
    for number, example in enumerate(examples):
        if number < MAX_SHOWN_ROWS:
            sample.append(example)
        elif (place := rng.randrange(number + 1)) < MAX_SHOWN_ROWS:
            sample[place] = example
    return sample


def render_page(report: Mapping[str, Any], title: str, rows: Iterable[Example] = (), folder: Path = Path()) -> str:
    """The page as HTML. Everything that comes from the data is escaped.

    Args:
        report: Report of `check_examples`.
        title: Heading.
        rows: Examples to show with players.
        folder: Folder of the page, from which audio is linked.
    """
    problems = report["problems"]
    summary = (
        f'<p class="bad"><b>{len(problems)} problems</b></p>' if problems else '<p class="good"><b>No problems</b></p>'
    )
    parts = [
        f"<h1>{_text(title)}</h1>",
        summary,
        _problems(problems),
        "<h2>Rows</h2>",
        _table([("split", "rows"), *report["splits"].items()]),
        _table([("task", "rows"), *report["tasks"].items()]),
        "<h2>Can it be answered without the audio?</h2>",
        '<p class="muted">Accuracy of baselines that get no audio. The bar is three standard deviations at chance to '
        "either side, the line is chance; a bar to the right of the line is a problem.</p>",
        *(_baselines("all", report["bias"]) if report["bias"] else ["<p>No questions with options.</p>"]),
        *(part for split, scores in report["bias_by_split"].items() if scores for part in _baselines(split, scores)),
        "<h2>Audio</h2>",
        _audio_statistics(report["sounds"]),
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
    """The problems as a list; empty if there are none."""
    if not problems:
        return ""
    more = len(problems) - MAX_SHOWN_PROBLEMS
    lines = [f"<li>{_text(line)}</li>" for line in problems[:MAX_SHOWN_PROBLEMS]]
    return "<ul>" + "\n".join(lines) + (f"<li>and {more} more</li>" if more > 0 else "") + "</ul>"


def _table(rows: Sequence[tuple[Any, Any]]) -> str:
    """Table of two columns; the first row is its heading."""
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>"]
    lines += [f'<tr><td>{_text(name)}</td><td class="n">{_text(count)}</td></tr>' for name, count in body]
    return "<table>" + "".join(lines) + "</table>"


def _baselines(split: str, baselines: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    """Table with the accuracy of each baseline on the questions of a split."""
    yield f"<h3>{_text(split)}</h3><table><tr><th>baseline</th><th>accuracy</th><th>chance</th><th>n</th><th></th></tr>"
    for name, score in baselines.items():
        css_class = "bad" if score["low"] > score["chance"] else ""
        yield (
            f'<tr class="{css_class}"><td>{_text(name.replace("_", " "))}</td>'
            f'<td class="n">{score["accuracy"]:.3f}</td><td class="n">{score["chance"]:.3f}</td>'
            f'<td class="n">{score["n"]:.0f}</td><td>{_interval(score)}</td></tr>'
        )
    yield "</table>"


def _interval(score: Mapping[str, float], width: int = 260) -> str:
    """SVG bar of an accuracy with its interval and the chance level."""
    low, high = (min(max(score[key], 0.0), 1.0) * width for key in ("low", "high"))
    chance, accuracy = score["chance"] * width, score["accuracy"] * width
    return (
        f'<svg width="{width}" height="16" role="img" aria-label="{score["low"]:.2f} to {score["high"]:.2f}">'
        f'<rect x="0" y="7" width="{width}" height="2" fill="#e3e6ea"/>'
        f'<rect x="{low:.1f}" y="4" width="{max(high - low, 1):.1f}" height="8" fill="#9db7d5"/>'
        f'<circle cx="{accuracy:.1f}" cy="8" r="3" fill="#1f4e79"/>'
        f'<rect x="{chance:.1f}" y="0" width="1.5" height="16" fill="#b42318"/></svg>'
    )


def _audio_statistics(sounds: Mapping[str, Any]) -> str:
    """Table and histograms of the report's entry `sounds`."""
    if not sounds.get("clips"):
        return "<p>The audio was not read.</p>"
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


def _histogram(name: str, distribution: Mapping[str, Any], width: int = 420, height: int = 70) -> str:
    """SVG histogram of durations or levels."""
    counts = distribution["counts"]
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{number * step:.1f}" y="{height - height * count / max(counts):.1f}" width="{step - 1:.1f}" '
        f'height="{height * count / max(counts):.1f}" fill="#9db7d5"/>'
        for number, count in enumerate(counts)
    )
    return (
        f"<p>{_text(name)}: {distribution['min']:g} to {distribution['max']:g}, median {distribution['median']:g} "
        f'<span class="muted">(5 % below {distribution["p5"]:g}, 5 % above {distribution["p95"]:g})</span></p>'
        f'<svg width="{width}" height="{height}">{bars}</svg>'
    )


def _time_fragment(clip: AudioClip) -> str:
    """End of an address that lets a player play a segment alone (W3C, Media Fragments, section 4.2.1)."""
    end = "" if clip.end is None else f",{clip.end:g}"
    return f"#t={clip.start:g}{end}" if clip.is_segment else ""


def _row(example: Example, folder: Path) -> str:
    """A row with players, question, options (the answer in bold) and metadata."""
    players = "".join(
        f'<audio controls preload="none" src="{quote(Path(os.path.relpath(clip.path, folder)).as_posix())}'
        f'{_time_fragment(clip)}"></audio>'
        for clip in example.clips
    )
    options = " · ".join(
        f"<b>{_text(choice)}</b>" if choice in example.answer else _text(choice) for choice in example.choices
    )
    answer = options or f"<b>{_text(example.answer[0] if example.answer else '')}</b>"
    return (
        f'<p>{players}{_text(example.question)}<br>{answer}<br><span class="muted">{_text(example.id)} · '
        f"{_text(example.task)} · {_text(example.split)} · {_text(example.licence)}</span></p>"
    )
