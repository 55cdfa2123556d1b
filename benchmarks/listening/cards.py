"""The part of the page about an item: players, question, options, answers, reasoning, and where the clip comes from."""

from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any

from earwise.audio import probe
from earwise.data.manifest_path import STARTER
from earwise.datasets.labels import collection
from listening.failures import KINDS, failure_kind
from listening.items import Item
from listening.licences import mixture_rights, rights_of
from listening.questions import scene_clips
from listening.sounds import look, spectrogram_note

CLIPS_URL, SCENES_URL = "../../audio/starter", "../../audio/scenes"
"""Folders of the built documentation, as seen from the page."""


def card(number: int, item: Item, reasoned: Mapping[str, Any] | None, shown: Mapping[str, str]) -> str:
    """The HTML of an item.

    Args:
        number: Place on the page, from 1.
        item: The item.
        reasoned: Row of `samples.jsonl` of the same question in a style that reasons; None if it was not asked so.
        shown: File name of a clip -> words that the connector shows the decoder about it.
    """
    verdict = "right" if item.is_right else "wrong"
    lines = [
        f'<div class="clip {verdict}" id="clip-{number}">',
        f'<p class="clip-head"><b>{number}</b> <span class="verdict">{verdict}</span> '
        f"<span>{escape(_task_name(item))}</span> <span>{_seconds(item)}</span></p>",
        *_players(item),
        f'<p class="clip-question">{_text(item.example.question)}</p>',
        *_options(item),
        "<dl>",
        f"<dt>Model</dt><dd>{_text(_answer(item.row))}</dd>",
        f"<dt>Right</dt><dd>{_text(' / '.join(item.example.answer))}</dd>",
        f"<dt>Silence</dt><dd>{_text(_answer(item.silent))}</dd>",
        "</dl>",
        *_reasoning(item.row, "Reasoning"),
    ]
    if reasoned is not None:
        grade = "right" if reasoned["scores"].get("lenient", reasoned["scores"]["official"]) else "wrong"
        lines += _reasoning(reasoned, f"Asked to reason first: {_answer(reasoned)} ({grade})")
    names = [path.name for path in item.example.audio_paths]
    lines += [_folded("Words that the connector shows the decoder", shown[name]) for name in names if name in shown]
    if not item.is_right:
        lines.append(f'<p class="clip-why">{_text(_why(item))}</p>')
    return "\n".join([*lines, f'<p class="clip-source">{_text(_source(item))}</p>', "</div>"])


def _text(text: str) -> str:
    """Text as HTML on a single line."""
    return escape(" ".join(text.split()), quote=False)


def _task_name(item: Item) -> str:
    field = str(item.example.meta.get("field") or "")
    return item.example.task + (f", {field}" if field and field != item.example.task else "").replace("_", " ")


def _seconds(item: Item) -> str:
    """Length of the recordings of the question."""
    return " and ".join(f"{probe(path).duration_s:.1f} s" for path in item.example.audio_paths)


def _players(item: Item) -> list[str]:
    """One player for each recording of the question, which loads nothing until it is used."""
    folder = SCENES_URL if scene_clips(item.example) else CLIPS_URL
    names = [path.name for path in item.example.audio_paths]
    labels = [f"recording {place}" for place in range(1, len(names) + 1)] if len(names) > 1 else ["the recording"]
    return [
        f'<audio controls preload="none" aria-label="Play {label}" src="{folder}/{escape(name)}"></audio>'
        for name, label in zip(names, labels, strict=True)
    ]


def _options(item: Item) -> list[str]:
    """The options in the order in which they were asked; the right one and the chosen one are marked."""
    if not item.row["choices"]:
        return []
    entries = []
    for choice in item.row["choices"]:
        marks = [
            *(["right"] if choice in item.example.answer else []),
            *(["chosen"] if choice == item.row["answer"] else []),
        ]
        entries.append(f'<li class="{" ".join(marks)}">{_text(choice)}</li>' if marks else f"<li>{_text(choice)}</li>")
    return ["<ul>", *entries, "</ul>"]


def _answer(row: Mapping[str, Any]) -> str:
    """What the model answered; where it named no option, what it wrote."""
    output = str(row["output"]).strip()
    if row["answer"] is None or (row["choices"] and row["answer"] not in row["choices"]):
        return f"names no option: “{output}”" if output else "nothing"
    return str(row["answer"])


def _reasoning(row: Mapping[str, Any], summary: str) -> list[str]:
    """The reasoning of a completion, folded; nothing if there is none."""
    if not row.get("reasoning"):
        return []
    return [_folded(summary, row["reasoning"])]


def _folded(summary: str, text: str) -> str:
    """A text that opens on demand."""
    return f"<details><summary>{_text(summary)}</summary><p>{_text(text)}</p></details>"


def _why(item: Item) -> str:
    """What went wrong, and what the clip measures."""
    name, meaning = KINDS[failure_kind(item)]
    looks = "; ".join(str(look(path)) for path in item.example.audio_paths)
    notes = [note for path in item.example.audio_paths if (note := spectrogram_note(path.name))]
    return " ".join([f"{name}: {meaning}. Measured: {looks}.", *(f"Spectrogram: {note}" for note in notes)])


def _source(item: Item) -> str:
    """What the recording is, by its label, and whose."""
    events = item.example.meta.get("events", ())
    if events:
        parts = ", ".join(f"{event['label']} at {event['at_s']:.1f} s" for event in events)
        rights = mixture_rights(scene_clips(item.example))
        return f"Scene: {parts}. From {item.example.source}, {rights.licence if rights else ''}."
    names = [path.name for path in item.example.audio_paths]
    labels = item.example.meta.get("labels") or [item.example.meta.get("label") or item.example.answer[0]]
    said = "".join(f" Said: “{texts()[name]}”" for name in names if name in texts())
    licences = dict.fromkeys(rights_of(name).licence for name in names)
    return f"Label: {', '.join(labels)}.{said} {', '.join(names)}, from {item.example.source}, {', '.join(licences)}."


@cache
def texts() -> Mapping[str, str]:
    """File name of a bundled clip -> the words that are spoken in it, where its source states them."""
    rows, _ = collection.load(STARTER / "labels.jsonl")
    return {row["path"].rpartition("/")[2]: row["text"] for row in rows if row.get("text")}
