"""ReasonAQA, Mellow's training set: one JSON list per split, read item by item (train.json has 968k items).

Source: Zenodo record 15036628; paper: Mellow (arXiv:2503.08540). Fields `taskname, filepath1, filepath2, caption1,
caption2, input, answer, subtype`. For captions and differences, `input` is a symbol that the authors' loader replaces
by one of many wordings; we do the same with our own wordings. The options of multiple-choice questions are written into
the question, `a) .. b) .. c) .. d) ..`, and the answer is letter and text; both are separated here, and an item whose
letter and text disagree is skipped. `meta.subset` is the row of the paper's table that an item belongs to
(`datasets/published/reasonaqa.py` compares the counts). Deviation: the case of questions and answers is kept; the
released loader lowers all but the differences.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earwise.data.sources import adiff
from earwise.data.sources.clothoaqa import YES_NO
from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    pick_by_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import CAPTION_BOTH, CAPTION_FIRST, CAPTION_SECOND, DIFFERENCE, EMOTION
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "see Zenodo record 15036628 (questions); audio as Clotho and AudioCaps"
FIELDS = ("taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer", "subtype")
EMOTION_SYMBOL = "emo_emo_emo"
_OPTION = re.compile(r"(?:(?<=\s)|^)\(?([a-jA-J])\)\s*")
_ANSWER = re.compile(r"\s*\(?([a-j])\)\s*(.*)", re.DOTALL | re.IGNORECASE)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per item; ids contain the item's number, because some items occur twice."""
    for number, (location, row) in enumerate(json_rows(path, FIELDS, on_skip)):

        def convert(location: str, row: Row, number: int = number) -> Iterator[Example]:
            yield _example(row, location, f"reasonaqa-{split}-{number}", split, audio_root)

        yield from convert_rows([(location, row)], convert, on_skip)


def subset_of(row: Row) -> str:
    """Row of the paper's table that an item belongs to; `unknown: SUBTYPE` if it cannot be determined.

    >>> subset_of({"subtype": "ACD-1.json", "taskname": "audiocaps", "input": "explain the difference in few words"})
    'ACD'
    >>> subset_of({"subtype": "AudioCaps-MCQ.json", "taskname": "audiocaps", "input": "what is it? a) ..."})
    'AudioCaps-MCQ'
    """
    kind = str(row["subtype"]).removesuffix(".json").lower().replace("_", "-")
    family = _family(row)
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


def _family(row: Row) -> str:
    """Data set that the clips of an item come from."""
    return "AudioCaps" if str(row["taskname"]).lower().startswith("audiocaps") else "Clotho"


def split_options(question: str) -> tuple[str, tuple[str, ...]]:
    """Separate a question from the options written into it in order, as `a) .. b) ..` or `(A) .. (B) ..`.

    Returns:
        The question without its options, and the options; the whole question and no options if there are fewer than
        two.

    >>> split_options("what is it? a) a dog b) a car (red) c) rain")
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


def _example(row: Row, location: str, identifier: str, split: str, audio_root: Path) -> Example:
    subset, symbol = subset_of(row), text_field(row, "input", location)
    clips = [string_field(row, "filepath1", location).replace("\\", "/")]
    if row["filepath2"]:
        clips.append(string_field(row, "filepath2", location).replace("\\", "/"))
    question, answer, task, choices = _question(row, location, identifier)
    meta: dict[str, Any] = {"subset": subset, "subtype": row["subtype"], "input": symbol}
    meta |= {key: row[key] for key in ("caption1", "caption2") if row[key]}
    if symbol in adiff.TIERS:
        meta["tier"] = adiff.TIERS[symbol]
    if len(clips) > 1:
        meta["clip_groups"] = sorted({adiff.group_of(clip) for clip in clips})
    return build_example(
        SourceInfo(f"ReasonAQA ({_family(row)})", LICENCE, audio_root, split),
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


def _question(row: Row, location: str, key: str) -> tuple[str, str, str, tuple[str, ...]]:
    """Question, answer, task and choices of an item; `key` selects the wording."""
    symbol = text_field(row, "input", location)
    if symbol == "caption both audios":
        first, second = (text_field(row, field, location).rstrip(".") for field in ("caption1", "caption2"))
        return (
            pick_by_hash(CAPTION_BOTH, key),
            f"The first: {first}. The second: {second}.",
            "caption",
            (),
        )
    if symbol == "caption first audio":
        return (
            pick_by_hash(CAPTION_FIRST, key),
            text_field(row, "caption1", location),
            "caption",
            (),
        )
    if symbol == "caption second audio":
        return (
            pick_by_hash(CAPTION_SECOND, key),
            text_field(row, "caption2", location),
            "caption",
            (),
        )
    answer = text_field(row, "answer", location)
    if symbol in adiff.TIERS:
        return pick_by_hash(DIFFERENCE[adiff.TIERS[symbol]], key), answer, "difference", ()
    text = symbol.replace(EMOTION_SYMBOL, pick_by_hash(EMOTION, key))
    if answer.lower().rstrip(".") in YES_NO:
        return text, answer.lower().rstrip("."), "yes_no", YES_NO
    question, choices = split_options(text)
    if not choices:
        return text, answer, "detail", ()
    task = "entailment" if subset_of(row) in ("CLE", "ACE") else "multiple_choice"
    return question, choices[answer_index(answer, choices, location)], task, choices


def answer_index(answer: str, choices: tuple[str, ...], location: str) -> int:
    """Index of the option that an answer such as "b) a car" names.

    Raises:
        DataError: if options are empty or equal, or letter and text do not name the same option.
    """
    plain_choices = [_plain(choice) for choice in choices]
    if not all(plain_choices) or len(set(plain_choices)) < len(plain_choices):
        raise DataError(f"{location}: options {', '.join(choices)!r:.80}: one is empty or occurs twice")
    lettered = _ANSWER.fullmatch(answer)
    text = _plain(lettered[2] if lettered else answer)
    by_text = plain_choices.index(text) if text in plain_choices else None
    by_letter = "abcdefghij".index(lettered[1].lower()) if lettered else by_text
    if by_letter is None or by_letter >= len(choices) or (text and by_text != by_letter):
        raise DataError(f"{location}: answer {answer!r:.60} is not one of the options by letter and text")
    return by_letter


def _plain(text: str) -> str:
    """The words of a text in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))
