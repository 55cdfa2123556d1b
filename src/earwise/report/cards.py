"""Sample cards: the clip with a player, the question, and what every run said to it.

Part of `earwise.report`. Samples are drawn by seed, evenly from the four outcomes (gained, lost, right, wrong), so that
a reader meets failures as well; clips are embedded until a budget of bytes is spent.
"""

import base64
import random
from collections.abc import Sequence
from html import escape
from pathlib import Path

from earwise.audio import decode, encode_ogg
from earwise.errors import AudioError
from earwise.evaluate.results import Row, Run

CARDS = 24
AUDIO_BUDGET = 6_000_000  # bytes of base64 in the page
EMBED_AS_IS = 200_000  # larger files are encoded again, mono Ogg Vorbis
PLAYER_RATE = 24_000  # Hz of clips encoded again
MAX_CLIP_S = 30.0
TYPES = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".flac": "audio/flac"}
OUTCOMES = {
    "gained": "wrong before, right after",
    "lost": "right before, wrong after",
    "right": "right",
    "wrong": "wrong",
}


def is_right(row: Row, kind: str) -> bool:
    """Whether the headline score of a row is full."""
    return row["scores"] is not None and row["scores"][kind] >= 1


def outcome(item: str, runs: Sequence[Run], kind: str) -> str:
    """Which of `OUTCOMES` an item has, going by the first and the last run."""
    after = is_right(runs[-1].first[item], kind)
    before = is_right(runs[0].first[item], kind) if item in runs[0].first else after
    if before != after:
        return "gained" if after else "lost"
    return "right" if after else "wrong"


def chosen(runs: Sequence[Run], kind: str, seed: int, limit: int = CARDS) -> list[tuple[str, str]]:
    """Draw items for the cards: `(id, outcome)`, in turn from every outcome that occurs, each shuffled by seed."""
    heaps: dict[str, list[str]] = {name: [] for name in OUTCOMES}
    for item, row in runs[-1].first.items():
        if row["scores"] is not None:
            heaps[outcome(item, runs, kind)].append(item)
    rng = random.Random(seed)
    for heap in heaps.values():
        rng.shuffle(heap)
    picked: list[tuple[str, str]] = []
    while len(picked) < limit and any(heaps.values()):
        picked += [(heap.pop(), name) for name, heap in heaps.items() if heap]
    return picked[:limit]


def data_url(path: Path) -> str:
    """A clip as a `data:` URL; large files are downmixed, cut to `MAX_CLIP_S` and encoded again.

    Raises:
        AudioError: if the file cannot be read.
    """
    mime = TYPES.get(path.suffix.lower())
    if mime is not None and path.is_file() and path.stat().st_size <= EMBED_AS_IS:
        data = path.read_bytes()
    else:
        mime, data = (
            "audio/ogg",
            encode_ogg(decode(path, PLAYER_RATE, long_audio="truncate", max_s=MAX_CLIP_S), PLAYER_RATE),
        )
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def players(clips: Sequence[Path], budget: int) -> tuple[str, int]:
    """A player for each clip (HTML), and how many bytes they take; a clip that is over the budget, or cannot be read,
    is named as such."""
    shown, used = [], 0
    for path in clips:
        try:
            url = data_url(path)
        except AudioError:
            shown.append(f'<p class="noclip">{escape(path.name)} cannot be read here</p>')
            continue
        fits = used + len(url) <= budget
        used += len(url) if fits else 0
        shown.append(
            f'<audio controls preload="metadata" src="{url}"></audio>'
            if fits
            else '<p class="noclip">clip left out to keep the page small</p>'
        )
    return "".join(shown), used


def cards(runs: Sequence[tuple[Run, int]], kind: str, seed: int, budget: int = AUDIO_BUDGET) -> str:
    """The section of sample cards with its filter; `budget` bytes of clips at most."""
    only = [run for run, _ in runs]
    left = budget
    body, picked = [], chosen(only, kind, seed)
    for item, result in picked:
        row = only[-1].first[item]
        played, used = players([only[-1].path / clip for clip in row["audio"]], left)
        left -= used
        having = [(run, colour) for run, colour in runs if item in run.first]
        body.append(_card(row, kind, result, played, having))
    seen = [name for name in OUTCOMES if any(name == result for _, result in picked)]
    buttons = "".join(_button(name, name == "all") for name in ("all", *seen))
    note = (
        f"{len(body)} of {len(only[-1].first)} items, drawn by seed {seed} in turn from each outcome: "
        "read them for what goes well and wrong, not for how often. "
        + " ".join(f"{name.capitalize()}: {OUTCOMES[name]}." for name in seen if OUTCOMES[name] != name)
    )
    return f'<div class="samples">{buttons}<p class="note">{note}</p><div class="cards">{"".join(body)}</div></div>'


def _button(name: str, checked: bool) -> str:
    mark = " checked" if checked else ""
    return (
        f'<input type="radio" name="show" id="show-{name}"{mark}><label for="show-{name}">{name.capitalize()}</label>'
    )


def _card(row: Row, kind: str, result: str, players: str, runs: Sequence[tuple[Run, int]]) -> str:
    said = "".join(_said(kind, run, colour, run.first[row["id"]]) for run, colour in runs)
    options = "".join(
        f'<li class="{"gold" if choice in row["gold"] else ""}">{escape(choice)}</li>' for choice in row["choices"]
    ) or "".join(f'<li class="gold">{escape(gold)}</li>' for gold in row["gold"])
    about = " · ".join(escape(str(row[key])) for key in ("task", "category", "difficulty") if row[key])
    return (
        f'<article class="card" data-o="{result}">'
        f'<header><span class="tag {result}" title="{OUTCOMES[result]}">{result.capitalize()}</span>'
        f"<span>{about}</span></header>"
        f'{players}<p class="question">{escape(row["question"])}</p><ul class="options">{options}</ul>'
        f'<div class="said">{said}</div><footer>{escape(row["id"])}</footer></article>'
    )


def _said(kind: str, run: Run, colour: int, row: Row) -> str:
    """One run's answer: mark, words, and what stands behind them on demand."""
    right = is_right(row, kind)
    mark = f'<span class="{"up" if right else "down"}">{"✓" if right else "✗"}'
    words = row["answer"] if row["answer"] is not None else "no readable answer"
    state = "" if row["status"] == "ok" else f' <span class="state">{escape(row["status"])}</span>'
    why = f'<p class="reasoning">{escape(row["reasoning"])}</p>' if row["reasoning"] else ""
    if row["status"] == "error":
        why += f'<p class="reasoning">{escape(row["explanation"])}</p>'
    raw = (
        ""
        if row["output"].strip() == words
        else f"<details><summary>whole output</summary><pre>{escape(row['output'])}</pre></details>"
    )
    return (
        f'<div class="run"><span class="key" style="--c:var(--c{colour})"></span><b>{escape(run.name)}</b>'
        f"{mark} {escape(str(words))}</span>{state}{why}{raw}</div>"
    )
