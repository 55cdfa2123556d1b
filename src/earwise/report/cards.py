"""Sample cards: the clip with a player, the question, and the answer of every run.

Part of `earwise.report`. Samples are drawn by seed, evenly from the four outcomes (gained, lost, right, wrong), so that
a reader meets failures as well. Clips are embedded until a budget of bytes is spent.
"""

import base64
import random
from collections.abc import Sequence
from html import escape

from earwise.audio import decode, encode_ogg
from earwise.data.clip_fields import clips_of_row
from earwise.errors import AudioError
from earwise.evaluation.results import EvalRun, Row
from earwise.evaluation.scores import is_correct
from earwise.report.tables import ColouredRun
from earwise.types import AudioClip

CARDS = 24
AUDIO_BUDGET = 6_000_000
"""Bytes of embedded clips on a page, as base64."""
EMBED_AS_IS = 200_000
"""Size in bytes from which a file is encoded again, as mono Ogg Vorbis."""
PLAYER_RATE = 24_000
"""Sample rate in Hz of clips that are encoded again."""
MAX_CLIP_S = 30.0
MIME_TYPES = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".flac": "audio/flac"}
OUTCOMES = {
    "gained": "wrong before, right after",
    "lost": "right before, wrong after",
    "right": "right",
    "wrong": "wrong",
}
"""Outcome of an item, by the first and the last run of a page."""


def outcome(item: str, runs: Sequence[EvalRun], name: str) -> str:
    """Which of `OUTCOMES` an item has in the first and the last run, by the score `name`."""
    correct_after = is_correct(runs[-1].first[item], name)
    correct_before = is_correct(runs[0].first[item], name) if item in runs[0].first else correct_after
    if correct_before != correct_after:
        return "gained" if correct_after else "lost"
    return "right" if correct_after else "wrong"


def draw_items(runs: Sequence[EvalRun], name: str, seed: int, limit: int = CARDS) -> list[tuple[str, str]]:
    """Draw items for the cards, in turn from every outcome that occurs.

    Args:
        runs: The runs of the page.
        name: Name of the score that decides the outcome.
        seed: Seed of the random draw.
        limit: Number of items at most.
    Returns:
        Pairs `(item id, outcome)`.
    """
    items_by_outcome: dict[str, list[str]] = {result: [] for result in OUTCOMES}
    for item, row in runs[-1].first.items():
        if row["scores"] is not None:
            items_by_outcome[outcome(item, runs, name)].append(item)
    rng = random.Random(seed)
    for items in items_by_outcome.values():
        rng.shuffle(items)
    drawn: list[tuple[str, str]] = []
    while len(drawn) < limit and any(items_by_outcome.values()):
        drawn += [(items.pop(), result) for result, items in items_by_outcome.items() if items]
    return drawn[:limit]


def data_url(clip: AudioClip) -> str:
    """A clip as a `data:` URL; large files and segments are mixed down to mono, cut to `MAX_CLIP_S` and encoded again.

    Raises:
        AudioError: if the file cannot be read.
    """
    mime, path = MIME_TYPES.get(clip.path.suffix.lower()), clip.path
    if mime is not None and not clip.is_segment and path.is_file() and path.stat().st_size <= EMBED_AS_IS:
        data = path.read_bytes()
    else:
        waveform = decode(clip, PLAYER_RATE, long_audio="truncate", max_s=MAX_CLIP_S)
        mime, data = "audio/ogg", encode_ogg(waveform, PLAYER_RATE)
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def players(clips: Sequence[AudioClip], budget: int) -> tuple[str, int]:
    """A player for each clip.

    Args:
        clips: The files, or segments of them.
        budget: Number of bytes that the clips may take; a clip that does not fit, or cannot be read, is named instead.
    Returns:
        The players (HTML), and the number of bytes that they take.
    """
    elements, bytes_used = [], 0
    for clip in clips:
        try:
            url = data_url(clip)
        except AudioError:
            elements.append(f'<p class="noclip">{escape(clip.path.name)} cannot be read here</p>')
            continue
        if bytes_used + len(url) > budget:
            elements.append('<p class="noclip">clip left out to keep the page small</p>')
            continue
        bytes_used += len(url)
        elements.append(f'<audio controls preload="metadata" src="{url}"></audio>')
    return "".join(elements), bytes_used


def cards(runs: Sequence[ColouredRun], name: str, seed: int, budget: int = AUDIO_BUDGET) -> str:
    """The section of sample cards with its filter.

    Args:
        runs: The runs of the page; clips and questions are those of the last one.
        name: Name of the score that decides between right and wrong.
        seed: Seed of the random draw.
        budget: Number of bytes that all clips together may take.
    """
    plain_runs = [run for run, _ in runs]
    last_run = plain_runs[-1]
    articles, drawn = [], draw_items(plain_runs, name, seed)
    for item, result in drawn:
        row = last_run.first[item]
        audio, bytes_used = players(clips_of_row(row, last_run.path), budget)
        budget -= bytes_used
        runs_with_item = [(run, colour) for run, colour in runs if item in run.first]
        articles.append(_card(row, name, result, audio, runs_with_item))
    present = [result for result in OUTCOMES if any(result == drawn_result for _, drawn_result in drawn)]
    buttons = "".join(_button(result, result == "all") for result in ("all", *present))
    legend = " ".join(f"{result.capitalize()}: {OUTCOMES[result]}." for result in present if OUTCOMES[result] != result)
    note = (
        f"{len(articles)} of {len(last_run.first)} items, drawn by seed {seed} in turn from each outcome: they show "
        f"what goes right and wrong, not how often. {legend}"
    )
    cards_html = f'<div class="cards">{"".join(articles)}</div>'
    return f'<div class="samples">{buttons}<p class="note">{note}</p>{cards_html}</div>'


def _button(name: str, checked: bool) -> str:
    mark = " checked" if checked else ""
    return (
        f'<input type="radio" name="show" id="show-{name}"{mark}><label for="show-{name}">{name.capitalize()}</label>'
    )


def _card(row: Row, name: str, result: str, audio: str, runs: Sequence[ColouredRun]) -> str:
    answers = "".join(_answer(run.first[row["id"]], run, colour, name) for run, colour in runs)
    options = "".join(
        f'<li class="{"gold" if choice in row["gold"] else ""}">{escape(choice)}</li>' for choice in row["choices"]
    ) or "".join(f'<li class="gold">{escape(gold)}</li>' for gold in row["gold"])
    groups = " · ".join(escape(str(row[key])) for key in ("task", "category", "difficulty") if row[key])
    return (
        f'<article class="card" data-o="{result}">'
        f'<header><span class="tag {result}" title="{OUTCOMES[result]}">{result.capitalize()}</span>'
        f"<span>{groups}</span></header>"
        f'{audio}<p class="question">{escape(row["question"])}</p><ul class="options">{options}</ul>'
        f'<div class="said">{answers}</div><footer>{escape(row["id"])}</footer></article>'
    )


def _answer(row: Row, run: EvalRun, colour: int, name: str) -> str:
    """The answer of one run: mark, answer, and the reasoning and the whole output on demand."""
    correct = is_correct(row, name)
    mark = f'<span class="{"up" if correct else "down"}">{"✓" if correct else "✗"}'
    answer = row["answer"] if row["answer"] is not None else "no readable answer"
    status = "" if row["status"] == "ok" else f' <span class="state">{escape(row["status"])}</span>'
    details = f'<p class="reasoning">{escape(row["reasoning"])}</p>' if row["reasoning"] else ""
    if row["status"] == "error":
        details += f'<p class="reasoning">{escape(row["explanation"])}</p>'
    if row["output"].strip() != answer:
        details += f"<details><summary>whole output</summary><pre>{escape(row['output'])}</pre></details>"
    return (
        f'<div class="run"><span class="key" style="--c:var(--c{colour})"></span><b>{escape(run.name)}</b>'
        f"{mark} {escape(str(answer))}</span>{status}{details}</div>"
    )
