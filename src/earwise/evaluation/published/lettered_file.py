"""Benchmarks whose items hold their options as `choice_a` to `choice_d` and the right one as text (AIR-Bench, MMSU).

Their programs count the option of the letter that the output names (`metrics/letters.py`). `official` is that verdict;
`strict` and `lenient` read the answer as everywhere else (`metrics/mmau.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.metrics import mmau
from earwise.evaluation.metrics.letters import LETTERS, choice_verdict, first_or_second_last, lettered_choices
from earwise.evaluation.published.choice_file import check_audio, locate, read_items
from earwise.evaluation.results import Row
from earwise.types import Audio, Example, Score, Text, Turn

SCORE_NOTES = {"official": "the option of the letter that the official program reads in the raw output"} | {
    name: note for name, note in mmau.SCORE_NOTES.items() if name != "official"
}
FAR_APART = 0.05
"""Difference between `lenient` and `official` from which a run says so."""
REQUIRED_FIELDS = ("question", "choice_a", "choice_b", "answer_gt")


def shown_choices(row: Mapping[str, Any], number: int, path: Path) -> tuple[str, ...]:
    """The options of a row that are there, in order.

    Raises:
        DataError: if fewer than two are there, or the right answer is none of them.
    """
    choices = tuple(str(choice) for choice in lettered_choices(row) if choice not in (None, ""))
    if len(choices) < 2 or str(row["answer_gt"]) not in choices:
        raise DataError(
            f"{path}: item {number}: the answer {row['answer_gt']!r} is none of the options {list(choices)}; "
            "download the file again"
        )
    return choices


@dataclass(frozen=True, slots=True)
class LetteredItem:
    """What a benchmark's own fields say of an item."""

    identifier: str
    clip: str
    """The clip, relative to the folder of clips."""
    task: str
    category: str


Describe = Callable[[Mapping[str, Any], int], LetteredItem]
"""`describe(row, number)`: the item of a row, counted from 1."""


def read_lettered_examples(
    path: Path, audio_root: Path | None, required: tuple[str, ...], describe: Describe, key: str = ""
) -> list[Example]:
    """The items of a file as Examples, in the file's order.

    Args:
        path: The file, or a name on a hub.
        audio_root: Folder of the clips; None: the file's own folder.
        required: Fields that every item must have, beside `REQUIRED_FIELDS`.
        describe: Reads the fields that differ from benchmark to benchmark.
        key: Field that must differ from item to item; empty: none.
    Raises:
        DataError: if the file is not the benchmark's, or none of its clips exists.
    """
    examples = []
    for number, row in enumerate(read_items(path, (*REQUIRED_FIELDS, *required), key), 1):
        item = describe(row, number)
        clip = locate(item.clip, path, audio_root)
        examples.append(lettered_example(row, shown_choices(row, number, path), clip, item))
    check_audio(examples, path)
    return examples


def lettered_example(row: Mapping[str, Any], choices: tuple[str, ...], clip: Path, item: LetteredItem) -> Example:
    """One item as an Example."""
    used_fields = {*REQUIRED_FIELDS, "choice_c", "choice_d", "task_name", "category", "audio", "path", "id"}
    return Example(
        id=item.identifier,
        turns=(Turn("user", (Audio(str(clip.absolute())), Text(str(row["question"])))),),
        answer=(str(row["answer_gt"]),),
        choices=choices,
        task=item.task,
        category=item.category,
        group=str(clip),
        split="test",
        meta={key: value for key, value in row.items() if key not in used_fields},
    )


def lettered_lines(choices: Sequence[str], missing: str | None = None) -> str:
    """Options as `A. rain`, one a line; letters without an option are left out, or shown with the text `missing`.

    >>> lettered_lines(["rain", "wind"])
    'A. rain\\nB. wind'
    """
    texts: list[str | None] = [*choices, *[missing] * (len(LETTERS) - len(choices))]
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False) if text is not None)


def ideal_answer(example: Example) -> str:
    """The letter of the right option in the order that is shown; its text if it is not among them."""
    gold = next(iter(example.answer), "")
    return LETTERS[example.choices.index(gold)] if gold in example.choices[: len(LETTERS)] else gold


def remarks(rows: Sequence[Row]) -> list[str]:
    """A sentence where `official` and `lenient` lie far apart, which says how many outputs the letter decides."""
    means = {name: sum(row["scores"][name] for row in rows) / len(rows) for name in ("official", "lenient")}
    if means["lenient"] - means["official"] < FAR_APART:
        return []
    num_words = sum(row["scores"]["lenient"] > row["scores"]["official"] for row in rows)
    return [
        f"official reads a letter and nothing else: {num_words} of {len(rows)} outputs name the right option in "
        f"another form; read as everywhere else (lenient) the score is {100 * means['lenient']:.1f}, not "
        f"{100 * means['official']:.1f}"
    ]


def score(example: Example, completion: str) -> Score:
    """The official verdict, and the answer as `answers.parse` reads it.

    Args:
        example: The item, with its options in the order that was shown.
        completion: The model's output.
    """
    general = mmau.score(example, completion)
    shown = [*example.choices, *[None] * (len(LETTERS) - len(example.choices))]
    official = bool(example.answer) and choice_verdict(shown, example.answer[0], completion)
    letter = first_or_second_last(completion)
    explanation = general.explanation if letter else f"the official program reads no letter; {general.explanation}"
    return Score(
        {**general.values, "official": float(official)}, general.status, general.answer, explanation.rstrip("; ")
    )
