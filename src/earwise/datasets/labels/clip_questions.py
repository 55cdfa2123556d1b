"""Questions about single labelled clips: multiple choice, yes/no, open questions, captions.

Converts label rows (`labels/collection.py`) to Examples. A row states facts about its clip, each in one *field*: the
sound, the instrument, the language, the emotion, the speaker's gender, the spoken digit, the spoken words, the kind of
recording. A question asks for one fact in one *task*. The distractors come from the same field (emotions with
emotions), the same split and, for words, the same language, and are balanced (`labels/distractors.py`). All functions
are pure: the questions depend on the rows and the seed, not on the order of the rows.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.datasets.labels import label_names, question_templates
from earwise.datasets.labels.collection import LabelRow, clip_example
from earwise.datasets.labels.distractors import balanced_distractors, balanced_yes_no
from earwise.errors import ConfigError, DataError
from earwise.types import Example

TASKS = ("recognition", "yes_no", "open", "caption")
CAPTION_QUESTIONS = ("Describe the sound.", "Describe this recording in one sentence.", "What happens in this clip?")
MAX_WORDS_CHARS = 80  # longer sentences are not used as options
# A caption of the field `kind` would be "A recording of speech." for every clip, which says too little.
EXCLUDED_QUESTIONS = frozenset({("caption", "kind")})


@dataclass(frozen=True, slots=True)
class ClipQuestionOptions:
    """Which questions to ask about single clips."""

    seed: int = 0
    """Seed of the choice of questions, their wording, their distractors and the order of options."""
    tasks: Sequence[str] = TASKS
    fields: Sequence[str] | None = None
    """Fields to ask for, of `FIELDS`; None for all."""
    n_choices: int = 4
    """Number of options of a `recognition` question; fewer if a field has fewer classes."""
    per_clip: int | None = None
    """Maximum number of questions per clip, drawn at random; None for all."""
    split: str | None = None
    """Split of the rows to use; None for all. The options of a question always come from its split."""


@dataclass(frozen=True, slots=True)
class LabelFact:
    """One fact about one clip."""

    row: LabelRow
    field: str
    name: str
    """Display name of the fact in options and answers."""
    also_true: Set[str]
    """Other names that are true of the clip, which must not be used as wrong options."""
    pool: str
    """Distractors come from facts of the same field, split and pool (the language, for words)."""


def build_clip_questions(
    rows: Iterable[LabelRow],
    root: Path,
    options: ClipQuestionOptions | None = None,
    excluded: Counter[str] | None = None,
) -> list[Example]:
    """Build the questions about single clips.

    Args:
        rows: Label rows (`collection.load`): path, labels, category, group, split, and optionally language, emotion,
            gender, text, licence, source.
        root: Folder that the rows' paths start from.
        options: Which questions to ask; None for the defaults.
        excluded: Counter to which the number of clips without a question and of questions that were not asked is added,
            by reason.
    Returns:
        Examples sorted by path. If a class has more clips than balance allows, some questions are not asked.
    Raises:
        ConfigError: for an unknown task or field, or an invalid number.
        DataError: if there are no questions.
    """
    options = options or ClipQuestionOptions()
    fields = tuple(FIELDS) if options.fields is None else tuple(options.fields)
    _check_options(options, fields)
    excluded = Counter() if excluded is None else excluded
    selected = sorted((row for row in rows if options.split in (None, row["split"])), key=lambda row: row["path"])
    pools: dict[tuple[str, ...], list[LabelFact]] = {}
    for row in selected:
        for task, fact in _draw_questions(row, fields, options, excluded):
            pools.setdefault((task, fact.field, fact.pool, row["split"]), []).append(fact)
    examples = []
    for key, facts in sorted(pools.items()):
        task, field, _, split = key
        questions = _TASK_BUILDERS[task](facts, random.Random(f"{options.seed}:{key}"), options.n_choices, root)
        if missing := len(facts) - len(questions):
            excluded[f"{task} questions about {field} in {split}: {_reason_for_missing(facts)}"] += missing
        examples += questions
    if not examples:
        reasons = "; ".join(f"{count} {reason}" for reason, count in excluded.most_common(3))
        raise DataError(
            f"{len(selected)} label rows gave no question of tasks {', '.join(options.tasks)} and fields "
            f"{', '.join(fields)}: {reasons or 'there are none of this split'}; a question needs at least two classes "
            "in the split"
        )
    return sorted(examples, key=lambda example: (str(example.audio_paths[0]), example.id))


def label_facts(row: LabelRow, fields: Sequence[str]) -> list[LabelFact]:
    """The facts that a row states about its clip, at most one per field.

    >>> row = {"path": "a.ogg", "labels": ["spoken_digit_7"], "category": "speech", "split": "val", "language": "ja"}
    >>> [(fact.field, fact.name) for fact in label_facts(row, ("digit", "language", "emotion"))]
    [('digit', 'seven'), ('language', 'Japanese')]
    """
    facts = []
    for field in fields:
        name = FIELDS[field](row)
        if name:
            also_true = frozenset(label_names.display_name(label) for label in row["labels"]) - {name}
            pool = str(row.get("language", "")) if field == "words" else ""
            facts.append(LabelFact(row, field, name, also_true, pool))
    return facts


def _draw_questions(
    row: LabelRow, fields: Sequence[str], options: ClipQuestionOptions, excluded: Counter[str]
) -> list[tuple[str, LabelFact]]:
    """Tasks and facts of the questions about one clip, in random order and at most `options.per_clip`."""
    rng = random.Random(f"{options.seed}:{row['path']}")
    facts = label_facts(row, fields)
    if not facts:
        excluded[f"clips of category {row['category']}: none of {', '.join(fields)} is known or can be asked"] += 1
    questions = [
        (task, fact) for fact in facts for task in options.tasks if (task, fact.field) not in EXCLUDED_QUESTIONS
    ]
    return rng.sample(questions, min(len(questions), options.per_clip or len(questions)))


def _reason_for_missing(facts: Sequence[LabelFact]) -> str:
    """Why some of these facts were not asked for."""
    classes = sorted({fact.name for fact in facts})
    if len(classes) == 1:
        return f"all of one class ({classes[0]}), two are needed"
    return "left out to balance the answers"


# Fields: the fact that a row states in each field, or None --------------------------------------------------------


def _first_label(row: LabelRow) -> str | None:
    """The first label, unless it is uninformative; further labels describe the background."""
    label = row["labels"][0]
    return None if label.startswith(label_names.UNINFORMATIVE_LABELS) else str(label)


def _sound(row: LabelRow) -> str | None:
    label = _first_label(row)
    return label_names.display_name(label) if label and row["category"] not in ("music", "speech") else None


def _instrument(row: LabelRow) -> str | None:
    label = _first_label(row)
    return label_names.display_name(label) if label and row["category"] == "music" else None


def _language(row: LabelRow) -> str | None:
    """The spoken language; None for single letters and syllables, which sound the same in many languages."""
    code = row.get("language")
    if not code or row["category"] != "speech" or _first_label(row) is None:
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
    """The transcript; None if it contains numerals, which are pronounced as words."""
    text = " ".join(str(row.get("text") or "").split())
    is_spoken = row["category"] == "speech" and _first_label(row) is not None and not _digit(row)
    return text if is_spoken and 2 <= len(text) <= MAX_WORDS_CHARS and not re.search(r"\d", text) else None


def _kind(row: LabelRow) -> str | None:
    label = _first_label(row)
    if row.get("category_assumed"):
        return None
    if label is None or label in label_names.AMBIGUOUS_KIND or label in label_names.PERCUSSION:
        return None
    return None if row.get("family") == "percussion" else label_names.KINDS.get(row["category"])


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


# Tasks: the questions about a pool of facts ------------------------------------------------------------------------


def _shuffled_positions(count: int, rng: random.Random) -> list[int]:
    """0 .. count-1 in random order; modulo k, every position of the answer occurs equally often."""
    positions = list(range(count))
    rng.shuffle(positions)
    return positions


def _recognition(facts: Sequence[LabelFact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    """Multiple-choice questions; facts that cannot be balanced get none."""
    answers, also_true = [fact.name for fact in facts], [fact.also_true for fact in facts]
    distractors = balanced_distractors(answers, n_choices, rng, confusable=label_names.CONFUSABLE, also_true=also_true)
    examples = []
    positions = _shuffled_positions(len(distractors), rng)
    for (index, names), position in zip(sorted(distractors.items()), positions, strict=True):
        fact = facts[index]
        choices = list(names)
        rng.shuffle(choices)
        choices.insert(position % (len(choices) + 1), fact.name)
        question = rng.choice(question_templates.QUESTIONS[fact.field])
        examples.append(_example(fact, "recognition", question, (fact.name,), tuple(choices), root))
    return examples


def _yes_no(facts: Sequence[LabelFact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    """Yes/no questions; `n_choices` is not used."""
    answers, also_true = [fact.name for fact in facts], [fact.also_true for fact in facts]
    questions = balanced_yes_no(answers, rng, confusable=label_names.CONFUSABLE, also_true=also_true)
    examples = []
    positions = _shuffled_positions(len(questions), rng)
    for (index, (name, is_true)), position in zip(sorted(questions.items()), positions, strict=True):
        fact = facts[index]
        answer, wrong = ("yes", "no") if is_true else ("no", "yes")
        choices = (answer, wrong) if position % 2 else (wrong, answer)
        question = question_templates.fill_template(rng.choice(question_templates.YES_NO[fact.field]), name)
        examples.append(_example(fact, "yes_no", question, (answer,), choices, root, asked=name))
    return examples


def _open(facts: Sequence[LabelFact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    """Open questions; `n_choices` is not used."""
    return [
        _example(fact, "open", rng.choice(question_templates.QUESTIONS[fact.field]), (fact.name,), (), root)
        for fact in facts
    ]


def _caption(facts: Sequence[LabelFact], rng: random.Random, n_choices: int, root: Path) -> list[Example]:
    """Requests for a caption; all wordings are accepted, and a random one is first (training uses the first)."""
    examples = []
    for fact in facts:
        captions = list(question_templates.captions(fact.field, fact.name))
        rng.shuffle(captions)
        examples.append(_example(fact, "caption", rng.choice(CAPTION_QUESTIONS), tuple(captions), (), root))
    return examples


_TASK_BUILDERS = {"recognition": _recognition, "yes_no": _yes_no, "open": _open, "caption": _caption}


def _example(
    fact: LabelFact,
    task: str,
    question: str,
    answer: tuple[str, ...],
    choices: tuple[str, ...],
    root: Path,
    **meta: Any,
) -> Example:
    """Example about one clip; its id is a hash of its content."""
    return clip_example(
        fact.row,
        root,
        question,
        name=fact.field,
        content=(task, fact.field, question, *sorted(choices), *answer),
        answer=answer,
        choices=choices,
        task=task,
        meta={"field": fact.field, "label": fact.name, **meta},
    )


def _check_options(options: ClipQuestionOptions, fields: Sequence[str]) -> None:
    """Raise ConfigError for an unknown task or field, or an invalid number."""
    for names, valid_names, kind in ((options.tasks, TASKS, "task"), (fields, tuple(FIELDS), "field")):
        for name in names:
            if name not in valid_names:
                raise ConfigError(f"{kind} {name!r} is none of {', '.join(valid_names)}")
        if not names:
            raise ConfigError(f"no {kind} is named; choose out of {', '.join(valid_names)}")
    if options.n_choices < 2:
        raise ConfigError(f"n_choices is {options.n_choices}; a question needs 2 options or more")
    if options.per_clip is not None and options.per_clip < 1:
        raise ConfigError(f"per_clip is {options.per_clip}; ask 1 question a clip or more, or set no limit")
