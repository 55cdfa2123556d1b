"""ReasonAQA, Mellow's training set: one JSON list a split, read item by item (train.json has 968k of them).

Source: Zenodo record 15036628; papers: Mellow (arXiv:2503.08540). Fields `taskname, filepath1, filepath2, caption1,
caption2, input, answer, subtype`. Captions and differences carry a symbol in `input` that the authors' loader replaces
by one of many wordings: so do we, by ours. Multiple choice is written into the question, `a) .. b) .. c) .. d) ..`, and
the answer is letter and text; both are taken apart, and an item whose letter and text disagree is a bad one.
`meta.subset` names the row of the specification's table (`build/reasonaqa.py` counts them). Deviation: the case of
questions and answers is kept, the released loader lowers all but the differences.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earwise.data.sources import adiff, example_builder, row_readers
from earwise.data.sources.clothoaqa import YES_NO
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import CAPTION_BOTH, CAPTION_FIRST, CAPTION_SECOND, DIFFERENCE, EMOTION
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "see Zenodo record 15036628 (questions); audio as Clotho and AudioCaps"
FIELDS = ("taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer", "subtype")
EMOTION_SYMBOL = "emo_emo_emo"
_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([a-jA-J])\)\s*")
_ANSWER = re.compile(r"\s*\(?([a-j])\)\s*(.*)", re.DOTALL | re.IGNORECASE)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example an item; ids follow the item's number, since some items occur twice."""
    for number, (where, row) in enumerate(row_readers.json_rows(path, FIELDS, on_skip)):

        def make(where: str, row: Row, number: int = number) -> Iterator[Example]:
            yield _example(row, where, f"reasonaqa-{split}-{number}", split, audio_root)

        yield from example_builder.convert_rows([(where, row)], make, on_skip)


def subset_of(row: Row) -> str:
    """The row of the specification's table that an item belongs to; `unknown: SUBTYPE` where nothing tells.

    >>> subset_of({"subtype": "ACD-1.json", "taskname": "audiocaps", "input": "explain the difference in few words"})
    'ACD'
    >>> subset_of({"subtype": "AudioCaps-MCQ.json", "taskname": "audiocaps", "input": "what is it? a) ..."})
    'AudioCaps-MCQ'
    """
    kind = str(row["subtype"]).removesuffix(".json").lower().replace("_", "-")
    family = "AudioCaps" if str(row["taskname"]).lower().startswith("audiocaps") else "Clotho"
    for short in ("ACD", "CLD", "ACE", "CLE"):
        if kind == short.lower() or kind.startswith(short.lower() + "-"):
            return short
    if "clothoaqa" in kind.replace("-", "") or str(row["taskname"]).lower().startswith("clotho_aqa"):
        return "ClothoAQA"
    if "mcq" in kind:
        return f"{family}-MCQ"
    if "detail" in kind:
        return f"{family}-Detail"
    if str(row["input"]).lower().startswith("caption"):
        return f"{family} caption"
    return f"unknown: {row['subtype']}"


def options_of(question: str) -> tuple[str, tuple[str, ...]]:
    """A question and the options written into it in order, as `a) .. b) ..` or `(A) .. (B) ..`; no options where there
    are fewer than two.

    >>> options_of("what is it? a) a dog b) a car (red) c) rain")
    ('what is it?', ('a dog', 'a car (red)', 'rain'))
    """
    marks: list[re.Match[str]] = []
    for mark in _OPTION.finditer(question):
        if mark[1].lower() == "abcdefghij"[len(marks)]:
            marks.append(mark)
        if len(marks) == 10:
            break
    if len(marks) < 2:
        return question, ()
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    options = (question[mark.end() : end].strip(" ,;\n") for mark, end in zip(marks, ends, strict=True))
    return question[: marks[0].start()].strip(), tuple(options)


def _example(row: Row, where: str, identifier: str, split: str, audio_root: Path) -> Example:
    subset, symbol = subset_of(row), example_builder.text_field(row, "input", where)
    clips = [example_builder.string_field(row, "filepath1", where).replace("\\", "/")]
    if row["filepath2"]:
        clips.append(example_builder.string_field(row, "filepath2", where).replace("\\", "/"))
    question, answer, task, choices = _asked(row, where, identifier)
    meta: dict[str, Any] = {"subset": subset, "subtype": row["subtype"], "input": symbol}
    meta |= {key: row[key] for key in ("caption1", "caption2") if row[key]}
    if symbol in adiff.TIERS:
        meta["tier"] = adiff.TIERS[symbol]
    return example_builder.build_example(
        SourceInfo("ReasonAQA", LICENCE, audio_root, split),
        identifier,
        clips,
        question,
        [answer],
        choices=choices,
        task=task,
        category="sound",
        group=adiff.group_of(clips[0]),
        meta=meta,
    )


def _asked(row: Row, where: str, key: str) -> tuple[str, str, str, tuple[str, ...]]:
    """Question, answer, task and choices of an item."""
    symbol = example_builder.text_field(row, "input", where)
    if symbol == "caption both audios":
        first, second = (
            example_builder.text_field(row, field, where).rstrip(".") for field in ("caption1", "caption2")
        )
        return (
            example_builder.pick_by_hash(CAPTION_BOTH, key),
            f"The first: {first}. The second: {second}.",
            "caption",
            (),
        )
    if symbol == "caption first audio":
        return (
            example_builder.pick_by_hash(CAPTION_FIRST, key),
            example_builder.text_field(row, "caption1", where),
            "caption",
            (),
        )
    if symbol == "caption second audio":
        return (
            example_builder.pick_by_hash(CAPTION_SECOND, key),
            example_builder.text_field(row, "caption2", where),
            "caption",
            (),
        )
    answer = example_builder.text_field(row, "answer", where)
    if symbol in adiff.TIERS:
        return example_builder.pick_by_hash(DIFFERENCE[adiff.TIERS[symbol]], key), answer, "difference", ()
    asked = symbol.replace(EMOTION_SYMBOL, example_builder.pick_by_hash(EMOTION, key))
    if answer.lower().rstrip(".") in YES_NO:
        return asked, answer.lower().rstrip("."), "yes_no", YES_NO
    question, choices = options_of(asked)
    if not choices:
        return asked, answer, "detail", ()
    task = "entailment" if subset_of(row) in ("CLE", "ACE") else "multiple_choice"
    return question, choices[key_of(answer, choices, where)], task, choices


def key_of(answer: str, choices: tuple[str, ...], where: str) -> int:
    """Which option the answer names by letter and text.

    Raises:
        DataError: if options are empty or equal, or letter and text name no option or two.
    """
    plain = [_plain(choice) for choice in choices]
    if not all(plain) or len(set(plain)) < len(plain):
        raise DataError(f"{where}: options {', '.join(choices)!r:.80}: one is empty or stands twice")
    lettered = _ANSWER.fullmatch(answer)
    said = _plain(lettered[2] if lettered else answer)
    by_text = plain.index(said) if said in plain else None
    by_letter = "abcdefghij".index(lettered[1].lower()) if lettered else by_text
    if by_letter is None or by_letter >= len(choices) or (said and by_text != by_letter):
        raise DataError(f"{where}: answer {answer!r:.60} is not one of the options by letter and text")
    return by_letter


def _plain(words: str) -> str:
    return " ".join(re.findall(r"\w+", words.lower()))
