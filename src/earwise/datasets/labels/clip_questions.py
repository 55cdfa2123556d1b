"""A labelled collection into questions: multiple choice, yes/no, open, captions.

Between `build/collection.py` (rows) and `data/manifest.py` (examples). Each row carries facts, one per *field*: the
sound, the instrument, the language, the emotion, the speaker's gender, the number said, the words said, the kind of
recording. A question asks for one fact in one *task*. Distractors come from the same field (emotions beside emotions),
split and, for words, language, and give nothing away (`build/options.py`). Pure: everything follows from rows and seed,
not from the order of the rows.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.datasets.labels import distractors as options
from earwise.datasets.labels import label_names, question_templates
from earwise.datasets.labels.collection import LabelRow
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example, Text, Turn

TASKS = ("recognition", "yes_no", "open", "caption")
MAX_WORDS_CHARS = 80  # longer sentences make poor options


@dataclass(frozen=True, slots=True)
class _Fact:
    """One thing that is true of one clip."""

    row: LabelRow
    field: str
    name: str
    """As it stands in options and answers."""
    also: Set[str]
    """Other names that are true of the clip, so must not be asked for as wrong."""
    pool: str
    """Options come from facts of the same field, pool and split."""


def build(
    rows: Iterable[LabelRow],
    *,
    root: Path,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    fields: Sequence[str] | None = None,
    n_choices: int = 4,
    per_clip: int | None = None,
    split: str | None = None,
    left_out: Counter[str] | None = None,
) -> list[Example]:
    """Make examples from label rows.

    Args:
        rows: From `collection.load`: path, labels, category, group, split, and where known language, emotion, gender,
            text, licence, source.
        root: Folder that the rows' paths start from.
        seed: Decides which questions are asked, their wording, distractors and the order of options.
        tasks: Out of `TASKS`.
        fields: Out of `FIELDS`; None for all.
        n_choices: Options of a `recognition` question; fewer where a field has fewer classes.
        per_clip: At most this many questions a clip, drawn at random; None for all.
        split: Only rows of this split; None for all (options never mix splits).
        left_out: Gains, for each reason, how many clips give no question, or how many questions were not asked.
    Returns:
        Examples sorted by path. Where a class has more clips than balance allows, some questions are left out.
    Raises:
        ConfigError: for an unknown task or field, or numbers that make no sense.
        DataError: if no question comes out.
    """
    fields = tuple(FIELDS) if fields is None else fields
    _check(tasks, TASKS, "task")
    _check(fields, tuple(FIELDS), "field")
    if n_choices < 2:
        raise ConfigError(f"n_choices is {n_choices}; a question needs 2 options or more")
    if per_clip is not None and per_clip < 1:
        raise ConfigError(f"per_clip is {per_clip}; ask 1 question a clip or more, or set no limit")
    wanted = sorted((row for row in rows if split in (None, row["split"])), key=lambda row: row["path"])
    left_out = Counter() if left_out is None else left_out
    cells: dict[tuple[str, ...], list[_Fact]] = {}
    for row in wanted:
        rng = random.Random(f"{seed}:{row['path']}")
        known = label_facts(row, fields)
        if not known:
            left_out[f"clips of category {row['category']}: none of {', '.join(fields)} is known or can be asked"] += 1
        asked = [(task, fact) for fact in known for task in tasks if (task, fact.field) not in _EMPTY]
        for task, fact in rng.sample(asked, min(len(asked), per_clip or len(asked))):
            cells.setdefault((task, fact.field, fact.pool, row["split"]), []).append(fact)
    examples = []
    for key, members in sorted(cells.items()):
        made = _TASKS[key[0]](members, random.Random(f"{seed}:{key}"), n_choices, root)
        if lacking := len(members) - len(made):
            task, field, _, where = key
            classes = sorted({fact.name for fact in members})
            why = (
                f"all of one class ({classes[0]}), two are needed" if len(classes) == 1
                else "left out so that no answer is too frequent to be fair"
            )  # fmt: skip
            left_out[f"questions {task} about {field} in {where}: {why}"] += lacking
        examples += made
    if not examples:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.most_common(3))
        raise DataError(
            f"{len(wanted)} label rows gave no question of tasks {', '.join(tasks)} and fields {', '.join(fields)}: "
            f"{reasons or 'there are none of this split'}; a question needs at least two classes in the split"
        )
    return sorted(examples, key=lambda example: (str(example.audio_paths[0]), example.id))


def label_facts(row: LabelRow, fields: Sequence[str]) -> list[_Fact]:
    """What a row says about its clip, one fact a field.

    >>> row = {"path": "a.ogg", "labels": ["spoken_digit_7"], "category": "speech", "split": "val", "language": "ja"}
    >>> [(fact.field, fact.name) for fact in label_facts(row, ("digit", "language", "emotion"))]
    [('digit', 'seven'), ('language', 'Japanese')]
    """
    found = []
    for field in fields:
        value = FIELDS[field](row)
        if value:
            also = frozenset(label_names.display_name(label) for label in row["labels"]) - {value}
            pool = str(row.get("language", "")) if field == "words" else ""
            found.append(_Fact(row, field, value, also, pool))
    return found


def _label(row: LabelRow) -> str | None:
    """The first label, unless it says nothing: a clip's further labels are in the background."""
    label = row["labels"][0]
    return None if label.startswith(label_names.UNINFORMATIVE_LABELS) else str(label)


def _sound(row: LabelRow) -> str | None:
    label = _label(row)
    return label_names.display_name(label) if label and row["category"] not in ("music", "speech") else None


def _instrument(row: LabelRow) -> str | None:
    label = _label(row)
    return label_names.display_name(label) if label and row["category"] == "music" else None


def _language(row: LabelRow) -> str | None:
    """A single letter or syllable is the same sound in many languages: not asked."""
    code = row.get("language")
    if not code or row["category"] != "speech" or _label(row) is None:
        return None
    return label_names.LANGUAGES.get(code, str(code))


def _emotion(row: LabelRow) -> str | None:
    emotion = row.get("emotion")
    return label_names.EMOTIONS.get(emotion, str(emotion)) if emotion else None


def _gender(row: LabelRow) -> str | None:
    gender = row.get("gender")
    return label_names.GENDERS.get(gender, str(gender)) if gender else None


def _digit(row: LabelRow) -> str | None:
    label = row["labels"][0]
    return label_names.display_name(label) if label.startswith("spoken_digit_") else None


def _words(row: LabelRow) -> str | None:
    """The transcript; figures are left out, since they are said as words."""
    text = " ".join(str(row.get("text") or "").split())
    spoken = row["category"] == "speech" and _label(row) is not None and not _digit(row)
    return text if spoken and 2 <= len(text) <= MAX_WORDS_CHARS and not re.search(r"\d", text) else None


def _kind(row: LabelRow) -> str | None:
    label = _label(row)
    if row.get("category_assumed"):
        return None
    if (
        label is None
        or label in label_names.AMBIGUOUS_KIND
        or label in label_names.PERCUSSION
        or row.get("family") == "percussion"
    ):
        return None
    return label_names.KINDS.get(row["category"])


FIELDS: Mapping[str, Callable[[LabelRow], str | None]] = {
    "sound": _sound,
    "instrument": _instrument,
    "language": _language,
    "emotion": _emotion,
    "gender": _gender,
    "digit": _digit,
    "words": _words,
    "kind": _kind,
}


def _deck(count: int, rng: random.Random) -> list[int]:
    """0 .. count-1 in random order: taken modulo k, every position of the answer is as frequent as the others."""
    deck = list(range(count))
    rng.shuffle(deck)
    return deck


def _recognition(members: Sequence[_Fact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    answers, own = [fact.name for fact in members], [fact.also for fact in members]
    drawn = options.balanced_distractors(answers, n_choices, rng, confusable=label_names.CONFUSABLE, also_true=own)
    made = []
    deck = _deck(len(drawn), rng)
    for (index, distractors), position in zip(sorted(drawn.items()), deck, strict=True):
        fact = members[index]
        listed = list(distractors)
        rng.shuffle(listed)
        listed.insert(position % (len(listed) + 1), fact.name)
        question = rng.choice(question_templates.QUESTIONS[fact.field])
        made.append(_example(fact, "recognition", question, (fact.name,), tuple(listed), root))
    return made


def _yes_no(members: Sequence[_Fact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    answers, own = [fact.name for fact in members], [fact.also for fact in members]
    drawn = options.balanced_yes_no(answers, rng, confusable=label_names.CONFUSABLE, also_true=own)
    made = []
    deck = _deck(len(drawn), rng)
    for (index, (asked, is_true)), position in zip(sorted(drawn.items()), deck, strict=True):
        fact = members[index]
        answer, other = ("yes", "no") if is_true else ("no", "yes")
        listed = (answer, other) if position % 2 else (other, answer)
        question = question_templates.fill_template(rng.choice(question_templates.YES_NO[fact.field]), asked)
        made.append(_example(fact, "yes_no", question, (answer,), listed, root, asked=asked))
    return made


def _open(members: Sequence[_Fact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    return [
        _example(fact, "open", rng.choice(question_templates.QUESTIONS[fact.field]), (fact.name,), (), root)
        for fact in members
    ]


def _caption(members: Sequence[_Fact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    """Every wording is right; the first, which is trained on, is drawn."""
    made = []
    for fact in members:
        said = list(question_templates.captions(fact.field, fact.name))
        rng.shuffle(said)
        made.append(_example(fact, "caption", rng.choice(CAPTION_QUESTIONS), tuple(said), (), root))
    return made


CAPTION_QUESTIONS = ("Describe the sound.", "Describe this recording in one sentence.", "What happens in this clip?")
_EMPTY = {("caption", "kind")}  # "A recording of speech." of every clip would drown the captions that say something
_TASKS = {"recognition": _recognition, "yes_no": _yes_no, "open": _open, "caption": _caption}


def _example(
    fact: _Fact,
    task: str,
    question: str,
    answer: tuple[str, ...],
    choices: tuple[str, ...],
    root: Path,
    **meta: Any,
) -> Example:
    row = fact.row
    content = "\x1f".join((row["path"], task, fact.field, question, *sorted(choices), *answer))
    identifier = f"{Path(row['path']).stem}-{fact.field}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Example(
        id=identifier,
        turns=(Turn("user", (Audio(row["path"]), Text(question))),),
        answer=answer,
        choices=choices,
        task=task,
        category=row["category"],
        source=row.get("source", ""),
        licence=row.get("licence", ""),
        group=row["group"],
        split=row["split"],
        root=root,
        meta={"field": fact.field, "label": fact.name, **meta},
    )


def _check(given: Sequence[str], known: Sequence[str], what: str) -> None:
    for item in given:
        if item not in known:
            raise ConfigError(f"{what} {item!r} is none of {', '.join(known)}")
    if not given:
        raise ConfigError(f"no {what} is named; choose out of {', '.join(known)}")
