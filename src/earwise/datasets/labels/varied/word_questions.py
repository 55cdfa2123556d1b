"""Questions about the words of single clips: `earwise build labels --tasks words`.

Each clip with a transcript is asked for it in an open question, as a choice among other texts of its language that are
about as long, and in a yes/no question. Open questions about clips without speech are answered with `NOTHING`. As in
`labels/varied/clip_questions.py`, labels are balanced, and the wordings of validation are never trained on. All
functions are pure.
"""

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from earwise.datasets.labels.collection import LabelRow, clip_example
from earwise.datasets.labels.distractors import balanced_distractors, balanced_yes_no
from earwise.datasets.labels.varied import wordings
from earwise.types import Example

TASK = "words"
TRANSCRIPT_TASK = "transcript"
"""Task of the open questions, whose answers are whole transcripts."""
NOTHING = "Nothing is said."
SILENT_SHARE = 0.1
"""Share of the clips without speech that are asked for words."""
MAX_CHARS = 140
NUM_CHOICES = (2, 3, 4, 4, 6)
"""Numbers of options to draw from for training. Validation has four."""
SHORT_WORDS = 2
"""Texts of up to this many words, and longer texts, are not options of the same question."""


def build_word_questions(
    rows: Iterable[LabelRow], root: Path, *, seed: int = 0, split: str | None = None
) -> list[Example]:
    """Build the questions.

    Args:
        rows: Label rows (`collection.load`).
        root: Folder that the rows' paths start from.
        seed: Seed of all choices.
        split: Split of the rows to use; None for all.
    Returns:
        Examples sorted by path and id. Texts that cannot be balanced are not asked for by choice.
    """
    examples: list[Example] = []
    pools: dict[tuple[str, str, bool], list[tuple[LabelRow, str]]] = {}
    for row in sorted(rows, key=lambda row: row["path"]):
        if split not in (None, row["split"]):
            continue
        rng = random.Random(f"{seed}:words:{row['path']}")
        text = spoken_text(row)
        if text is not None:
            examples.append(_open(row, text, rng, root))
            pool = (row["split"], str(row.get("language", "")), len(text.split()) <= SHORT_WORDS)
            pools.setdefault(pool, []).append((row, text))
        elif row["category"] != "speech" and rng.random() < SILENT_SHARE:
            examples.append(_open(row, NOTHING, rng, root))
    for pool, members in sorted(pools.items()):
        rng = random.Random(f"{seed}:words:{pool}")
        examples += [*_choices(members, pool[0], rng, root), *_yes_no(members, pool[0], rng, root)]
    return sorted(examples, key=lambda example: (str(example.audio_paths[0]), example.id))


def spoken_text(row: LabelRow) -> str | None:
    """The transcript of a clip; None if it has none, or one that is not written as it is spoken.

    >>> row = {"category": "speech", "text": " Press  one. "}
    >>> spoken_text(row), spoken_text(row | {"text": "dash [-]"}), spoken_text(row | {"text": "x"})
    ('Press one.', None, None)
    """
    text = " ".join(str(row.get("text") or "").split())
    letters = sum(character.isalpha() for character in text)
    is_plain = letters >= 2 and len(text) <= MAX_CHARS and not re.search(r"[()=/\[\]]", text)
    return text if row["category"] == "speech" and is_plain else None


def _open(row: LabelRow, answer: str, rng: random.Random, root: Path) -> Example:
    """A question for the whole transcript."""
    question = wordings.draw_question("words", row["split"], rng)
    return _example(row, TRANSCRIPT_TASK, question, answer, (), root)


def _choices(members: Sequence[tuple[LabelRow, str]], split: str, rng: random.Random, root: Path) -> list[Example]:
    """One choice among texts about each clip that can be balanced."""
    by_size: dict[int, list[tuple[LabelRow, str]]] = {}
    for member in members:
        by_size.setdefault(rng.choice(NUM_CHOICES) if split == "train" else 4, []).append(member)
    examples = []
    for size, sized in sorted(by_size.items()):
        texts = [text for _, text in sized]
        distractors = balanced_distractors(texts, size, rng, confusable={}, also_true=[frozenset()] * len(texts))
        for index, wrong_texts in sorted(distractors.items()):
            row, text = sized[index]
            choices = [text, *wrong_texts]
            rng.shuffle(choices)
            question = wordings.draw_question("choice.words", split, rng)
            examples.append(_example(row, TASK, question, text, tuple(choices), root))
    return examples


def _yes_no(members: Sequence[tuple[LabelRow, str]], split: str, rng: random.Random, root: Path) -> list[Example]:
    """One yes/no question about each clip that can be balanced; as many are true as false."""
    texts = [text for _, text in members]
    questions = balanced_yes_no(texts, rng, confusable={}, also_true=[frozenset()] * len(texts))
    examples = []
    for index, (asked, is_true) in sorted(questions.items()):
        question = wordings.draw_question("yes_no.words", split, rng).format(x=asked)
        answer, wrong = ("yes", "no") if is_true else ("no", "yes")
        listed = (answer, wrong) if rng.random() < 0.5 else (wrong, answer)
        # Half of the questions that are trained on list no options, as people ask.
        choices = () if split == "train" and rng.random() < 0.5 else listed
        examples.append(_example(members[index][0], "yes_no", question, answer, choices, root, asked))
    return examples


def _example(
    row: LabelRow, task: str, question: str, answer: str, choices: tuple[str, ...], root: Path, asked: str = ""
) -> Example:
    """Example about one clip; its id is a hash of its content."""
    return clip_example(
        row,
        root,
        question,
        name="words",
        content=(task, question, *choices, answer),
        answer=(answer,),
        choices=choices,
        task=task,
        language=str(row.get("language") or "en"),
        meta={"field": "words"} | ({"asked": asked} if asked else {}),
    )
