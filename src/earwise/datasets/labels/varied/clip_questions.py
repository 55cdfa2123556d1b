"""Questions about single labelled clips in many wordings and forms: `earwise build labels --tasks varied`.

`labels/clip_questions.py` asks for a fact with the label's display name in four options. Here the question, the options
and the form vary: 2 to 8 options, in a list, in a sentence or with letters; "none of these" as an option; yes or no.
Every fact is asked in several draws. Labels are balanced as there (`labels/distractors.py`), so that options alone do
not give the answer away; the wordings of validation (`labels/varied/wordings.py`) are never trained on. All functions
are pure.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.datasets.labels import clip_questions, label_names
from earwise.datasets.labels.collection import LabelRow, clip_example
from earwise.datasets.labels.distractors import balanced_distractors, balanced_yes_no
from earwise.datasets.labels.varied import wordings
from earwise.types import Example

TASK = "varied"
NUM_CHOICES: Mapping[int, float] = {2: 0.15, 3: 0.15, 4: 0.4, 5: 0.1, 6: 0.1, 8: 0.1}
"""Number of options -> share of the training questions. Validation has four."""
FORMS: Mapping[str, float] = {"list": 0.66, "sentence": 0.16, "letters": 0.18}
"""Form of the options -> share of the training questions. Validation has lists."""
NONE_SHARE = 0.08
"""Share of the training questions with three options or more that have "none of these" among them."""
NONE = ("none of these", "none of the above", "something else")
LETTERS = "ABCDEFGH"
LETTER_LAYOUTS = ("{letter}. {option}", "({letter}) {option}", "{letter}) {option}", "{letter}: {option}")
LETTER_REQUESTS = ("Answer with the letter.", "Which letter is right?", "Give the letter of the answer.")
FAST_BPM, SLOW_BPM = 150, 80
HIGH_OCTAVE, LOW_OCTAVE = 5, 2


@dataclass(frozen=True, slots=True)
class VariedFact:
    """One fact about one clip: its label as the collection states it, and the label's display name."""

    row: LabelRow
    field: str
    label: str
    name: str
    also_true: Set[str]


def build_varied_questions(
    rows: Iterable[LabelRow], root: Path, *, seed: int = 0, draws: int = 2, split: str | None = None
) -> list[Example]:
    """Build the questions.

    Args:
        rows: Label rows (`collection.load`).
        root: Folder that the rows' paths start from.
        seed: Seed of all choices.
        draws: How often each fact is asked as a choice; yes/no once.
        split: Split of the rows to use; None for all.
    Returns:
        Examples sorted by path and id. Facts whose labels cannot be balanced are not asked.
    """
    pools: dict[tuple[str, str], list[VariedFact]] = {}
    for row in sorted(rows, key=lambda row: row["path"]):
        if split in (None, row["split"]):
            for fact in varied_facts(row):
                pools.setdefault((fact.field, row["split"]), []).append(fact)
    examples: dict[str, Example] = {}
    for (field, pool_split), facts in sorted(pools.items()):
        for draw in range(draws):
            rng = random.Random(f"{seed}:{field}:{pool_split}:{draw}")
            questions = _choices(facts, pool_split, rng, root)
            if draw == 0 and f"yes_no.{field}" in wordings.question_wordings():
                questions += _yes_no(facts, pool_split, rng, root)
            examples |= {example.id: example for example in questions}
    return sorted(examples.values(), key=lambda example: (str(example.audio_paths[0]), example.id))


def varied_facts(row: LabelRow) -> list[VariedFact]:
    """The facts that a row states about its clip, at most one per field.

    >>> row = {"path": "a.ogg", "labels": ["flute"], "category": "music", "split": "val", "note": "C6"}
    >>> [(fact.field, fact.name) for fact in varied_facts(row)]
    [('instrument', 'flute'), ('kind', 'music'), ('register', 'high')]
    """
    facts = []
    also_true = frozenset(label_names.display_name(label) for label in row["labels"])
    for field, read_label in _LABELS.items():
        label = read_label(row)
        if label is None:
            continue
        reader = clip_questions.FIELDS.get(field)
        name = reader(row) if reader else label
        if name:
            facts.append(VariedFact(row, field, label, name, also_true - {name}))
    return facts


def labels_by_name(rows: Iterable[LabelRow]) -> dict[str, tuple[str, str]]:
    """Display name of each sound and instrument of the rows -> its field and label, for `wordings.draw_label`."""
    return {
        fact.name: (fact.field, fact.label)
        for row in rows
        for fact in varied_facts(row)
        if fact.field in ("sound", "instrument")
    }


def _label_of_field(field: str, key: str | None) -> Callable[[LabelRow], str | None]:
    """Reader of the label behind a field of `clip_questions.FIELDS`: the row's value of `key`, or its first label."""

    def read(row: LabelRow) -> str | None:
        if clip_questions.FIELDS[field](row) is None:
            return None
        return str(row[key] if key else row["labels"][0]).removeprefix("spoken_digit_")

    return read


def _plain(key: str) -> Callable[[LabelRow], str | None]:
    """Reader of a value that is its own label."""
    return lambda row: str(row[key]) if row.get(key) else None


def _pace(row: LabelRow) -> str | None:
    """Fast or slow, where a melody is clearly one of them."""
    tempo = float(row.get("tempo_bpm") or 0)
    return "fast" if tempo >= FAST_BPM else "slow" if 0 < tempo <= SLOW_BPM else None


def _dynamic(row: LabelRow) -> str | None:
    """Loud or soft, where a note is clearly one of them."""
    return {"forte": "loud", "fortissimo": "loud", "piano": "soft", "pianissimo": "soft"}.get(row.get("dynamic", ""))


def _register(row: LabelRow) -> str | None:
    """High, low or middle, from the octave of a note (`As3` is the A sharp below middle C)."""
    note = str(row.get("note") or "")
    if not note[-1:].isdigit():
        return None
    octave = int(note[-1])
    return "high" if octave >= HIGH_OCTAVE else "low" if octave <= LOW_OCTAVE else "middle"


_LABELS: Mapping[str, Callable[[LabelRow], str | None]] = {
    "sound": _label_of_field("sound", None),
    "instrument": _label_of_field("instrument", None),
    "language": _label_of_field("language", "language"),
    "emotion": _label_of_field("emotion", "emotion"),
    "gender": _label_of_field("gender", "gender"),
    "digit": _label_of_field("digit", None),
    "kind": _label_of_field("kind", "category"),
    "mode": _plain("mode"),
    "metre": _plain("metre"),
    "contour": _plain("contour"),
    "pace": _pace,
    "dynamic": _dynamic,
    "register": _register,
}


def _choices(facts: Sequence[VariedFact], split: str, rng: random.Random, root: Path) -> list[Example]:
    """One multiple-choice question about each fact that can be balanced."""
    labels = {fact.name: fact.label for fact in facts}
    by_size: dict[int, list[VariedFact]] = {}
    for fact in facts:
        size = rng.choices(list(NUM_CHOICES), list(NUM_CHOICES.values()))[0] if split == "train" else 4
        by_size.setdefault(min(size, len(labels)), []).append(fact)
    examples = []
    for size, members in sorted(by_size.items()):
        names = [fact.name for fact in members]
        also_true = [fact.also_true for fact in members]
        distractors = balanced_distractors(names, size, rng, confusable=label_names.CONFUSABLE, also_true=also_true)
        for index, wrong_names in sorted(distractors.items()):
            fact = members[index]
            options = [
                wordings.draw_label(fact.field, labels[name], name, split, rng) for name in (fact.name, *wrong_names)
            ]
            if len({option.lower() for option in options}) == len(options):
                examples.append(_choice(fact, options, split, rng, root))
    return examples


def _choice(fact: VariedFact, options: Sequence[str], split: str, rng: random.Random, root: Path) -> Example:
    """A multiple-choice question.

    Args:
        fact: The fact that is asked for.
        options: Wordings of the options, the right one first.
        split: Split of the fact.
        rng: Source of randomness.
        root: Folder that the rows' paths start from.
    """
    choices, answer = list(options), options[0]
    if split == "train" and len(choices) > 2 and rng.random() < NONE_SHARE:
        # The option takes the place of each other option equally often, of the right one too.
        replaced = rng.randrange(len(choices))
        choices[replaced] = rng.choice(NONE)
        answer = choices[0]
    rng.shuffle(choices)
    question = wordings.draw_question(fact.field, split, rng)
    form = rng.choices(list(FORMS), list(FORMS.values()))[0] if split == "train" else "list"
    if form == "list":
        return _example(fact, form, question, answer, tuple(choices), root)
    if form == "sentence":
        listed = f"{', '.join(choices[:-1])} or {choices[-1]}?"
        return _example(fact, form, f"{question} {listed[:1].upper()}{listed[1:]}", answer, (), root)
    layout = rng.choice(LETTER_LAYOUTS)
    lines = [layout.format(letter=letter, option=option) for letter, option in zip(LETTERS, choices, strict=False)]
    letter = LETTERS[choices.index(answer)]
    text = f"{question}\n" + rng.choice(("\n", " ")).join(lines) + f"\n{rng.choice(LETTER_REQUESTS)}"
    return _example(fact, form, text, letter, (), root)


def _yes_no(facts: Sequence[VariedFact], split: str, rng: random.Random, root: Path) -> list[Example]:
    """One yes/no question about each fact that can be balanced; as many are true as false."""
    labels = {fact.name: fact.label for fact in facts}
    questions = balanced_yes_no(
        [fact.name for fact in facts],
        rng,
        confusable=label_names.CONFUSABLE,
        also_true=[fact.also_true for fact in facts],
    )
    examples = []
    for index, (name, is_true) in sorted(questions.items()):
        fact = facts[index]
        wording = wordings.draw_label(fact.field, labels[name], name, split, rng)
        question = wordings.draw_question(f"yes_no.{fact.field}", split, rng).format(x=wording)
        answer, wrong = ("yes", "no") if is_true else ("no", "yes")
        listed = (answer, wrong) if rng.random() < 0.5 else (wrong, answer)
        # Half of the questions that are trained on list no options, as people ask.
        choices = () if split == "train" and rng.random() < 0.5 else listed
        examples.append(_example(fact, "yes_no", question, answer, choices, root, asked=name))
    return examples


def _example(
    fact: VariedFact, form: str, question: str, answer: str, choices: tuple[str, ...], root: Path, **meta: Any
) -> Example:
    """Example about one clip; its id is a hash of its content."""
    return clip_example(
        fact.row,
        root,
        question,
        name=fact.field,
        content=(form, fact.field, question, *choices, answer),
        answer=(answer,),
        choices=choices,
        task=TASK if form != "yes_no" else "yes_no",
        meta={"field": fact.field, "label": fact.name, "form": form, **meta},
    )
