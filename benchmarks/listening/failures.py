"""Kinds of wrong answers, from the question, the right answer and what the model wrote; and each kind in words."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from listening.items import Item

YES_NO = {"yes", "no"}
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
KINDS = {
    "nothing": ("No answer", "the model or the clip failed, and nothing was written"),
    "unreadable": (
        "No option named",
        "what is written is none of the options, so that nothing can be counted as heard",
    ),
    "label": (
        "The label instead of the option",
        "what is written is right, but in the words of training and not in those of the option: heard, but not read",
    ),
    "form": (
        "Right, in other words",
        "the text means the right option but does not have its words; the official score counts that as wrong",
    ),
    "yes": ("Yes to what is not there", "the question names something that cannot be heard, and the answer agrees"),
    "no": ("No to what is there", "the question names what can be heard, and the answer denies it"),
    "turned": ("Order turned round", "both sounds are taken from the scene, but the one is given for the other"),
    "absent": ("A sound that is not in the scene", "the answer names a sound that the scene does not contain"),
    "few": ("Counted too few", "fewer events than the scene was composed of"),
    "many": ("Counted too many", "more events than the scene was composed of"),
    "weaker": ("The wrong one of two", "of two sounds, the one that is not louder (or not softer) as asked"),
    "place": ("The wrong place", "another of the sounds of the scene is taken for the odd one"),
    "overlap": ("Together or in turn", "two sounds at the same time are taken for a sequence, or the other way round"),
    "pair": ("Same or different", "two recordings of one kind are taken for different ones, or the other way round"),
    "sound": ("One sound for another", "an option that names another sound"),
    "instrument": ("One instrument for another", "an option that names another instrument"),
    "kind": ("The wrong kind of recording", "speech, music and other sounds are taken for each other"),
    "language": ("One language for another", "an option that names another language than the one spoken"),
    "words": ("One word for another", "an option with other words than those spoken"),
    "digit": ("One number for another", "an option with another number than the one spoken"),
    "open": ("Another name, without options", "the question has no options, and the name written down is a wrong one"),
    "invented": ("Other words written down", "asked what is said, the model writes words that are not spoken"),
    "unrefused": ("Told what cannot be told", "the question asks for what the clip does not have, and gets an answer"),
    "other": ("Another wrong option", "a wrong option of a question that is none of the above"),
}
"""Kind -> its name, and what it is."""


def failure_kind(item: Item) -> str:
    """The kind of a wrong answer, a key of `KINDS`.

    Args:
        item: An item whose answer is wrong.
    """
    row, example = item.row, item.example
    if row["status"] == "error" or not str(row["output"]).strip():
        return "nothing"
    if row["scores"].get("lenient"):
        return "form"
    if not example.choices:
        return _open_kind(item)
    if row["answer"] is None:
        label = str(example.meta.get("label", "")).lower()
        return "label" if label and str(row["output"]).strip(" .").lower() == label else "unreadable"
    return _task_kind(item) or (_yes_or_no(item) if set(example.choices) == YES_NO else _field_kind(item))


def _open_kind(item: Item) -> str:
    """The kind of a wrong answer to a question without options."""
    if item.example.task == "refusal":
        return "unrefused"
    return "invented" if item.example.meta.get("field") == "words" else "open"


def _task_kind(item: Item) -> str | None:
    """The kind of a wrong answer to a question about a scene or a pair; None for other questions."""
    task = item.example.task
    if task in ("order", "before", "nth"):
        return "turned" if task != "nth" or _is_in_scene(item) else "absent"
    if task in ("count", "different", "events"):
        return _count_kind(item)
    kinds = {
        "louder": "weaker", "quieter": "weaker", "longer": "weaker", "shorter": "weaker", "odd_one_out": "place",
        "overlap": "overlap", "same": "pair",
    }  # fmt: skip
    return kinds.get(task)


def _count_kind(item: Item) -> str:
    right, counted = (_number(text) for text in (item.example.answer[0], str(item.row["answer"])))
    if right is None or counted is None:
        return "other"
    return "few" if counted < right else "many"


def _number(text: str) -> int | None:
    """The number that an option names; None if it names none that is known here."""
    word = text.strip().lower()
    if word.isdecimal():
        return int(word)
    return COUNTS.index(word) + 1 if word in COUNTS else None


def _is_in_scene(item: Item) -> bool:
    """Whether the answer is the label of an event of the scene, letter for letter."""
    return any(event["label"] == item.row["answer"] for event in item.example.meta.get("events", ()))


def _yes_or_no(item: Item) -> str:
    return "yes" if item.row["answer"] == "yes" else "no"


def _field_kind(item: Item) -> str:
    field = str(item.example.meta.get("field"))
    return field if field in KINDS else "other"


def in_words(kind: str, items: Sequence[Item], shown: Mapping[str, str]) -> str:
    """The line of the page about a kind of failure.

    Args:
        kind: A key of `KINDS`.
        items: All wrong answers of this kind in the evaluation.
        shown: File name of a clip -> words that the connector shows the decoder about it (`shown_words`).
    """
    name, meaning = KINDS[kind]
    silent = sum(item.silent["output"] == item.row["output"] for item in items)
    named = [item for item in items if set(item.example.choices) != YES_NO]
    pairs = Counter((item.example.answer[0], _written(item)) for item in named)
    repeated = [(right, written, n) for (right, written), n in pairs.most_common(3) if n > 1]
    line = f"**{name}** ({len(items)}): {meaning}."
    if repeated:
        texts = (f"{_literal(right)} → {_literal(written)} ({n})" for right, written, n in repeated)
        line += f" Most often (right → written): {'; '.join(texts)}."
    if silent:
        line += f" {silent} of {len(items)} read the same under silence."
    labelled = [is_label_shown(item, shown) for item in items if item.example.meta.get("label")]
    if shown and labelled:
        line += f" In {sum(labelled)} of {len(labelled)} the label is among the words shown: heard, but not read."
    return line


def is_label_shown(item: Item, shown: Mapping[str, str]) -> bool:
    """Whether the label of a question is among the words that the connector shows the decoder.

    The first word of the label counts, because the rest of a long label is shown as a mean.

    Args:
        item: An item about a labelled recording.
        shown: See `in_words`.
    """
    first_word = str(item.example.meta["label"]).lower().split()[0]
    return any(
        re.search(rf"\b{re.escape(first_word)}\b", shown.get(path.name, "").lower())
        for path in item.example.audio_paths
    )


def _written(item: Item) -> str:
    """What the model answered, or wrote if it named no option."""
    return str(item.row["answer"] if item.row["answer"] is not None else item.row["output"]).strip()


def _literal(text: str) -> str:
    """Text as Markdown that shows it letter for letter, on a single line."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
