"""Questions about two clips: do they have the same speaker (language, emotion, ...); which one is louder (higher, ...)?

`earwise build labels --tasks same,compare`. The answers of `same` come from the labels. The answers of `compare` come
from measurements (`labels/acoustics.py`); only clips whose difference is beyond doubt are compared. Both clips are of
the same split, and of the same source, so that recording conditions do not reveal the answer. Both answers, and both
positions of the answer among the options, are equally frequent. All functions are pure: the questions depend on the
rows, the measurements and the seed, not on the order of the rows.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.datasets.labels import acoustics, label_names, question_templates
from earwise.datasets.labels.acoustics import ClipAcoustics
from earwise.datasets.labels.clip_questions import label_facts
from earwise.datasets.labels.collection import LabelRow
from earwise.errors import ConfigError
from earwise.types import Audio, Example, Text, Turn

TASKS = ("same", "compare")
PARTNER_TRIES = 12  # possible partners that are examined before a clip is skipped
# Categories in which a quantity is compared; clips are compared within a category (voices with voices).
COMPARABLE: Mapping[str, tuple[str, ...]] = {
    "loudness": ("sound", "music", "speech"),
    "pitch": ("music", "speech"),
    "duration": ("sound", "music", "speech"),
    "tempo": ("music",),
}


@dataclass(frozen=True, slots=True)
class PairQuestionOptions:
    """Which questions to ask about two clips."""

    seed: int = 0
    """Seed of the pairs, the wording, and the order of clips and options."""
    tasks: Sequence[str] = TASKS
    fields: Sequence[str] | None = None
    """Fields to ask for, of `question_templates.SAME` and `acoustics.FIELDS`; None for all."""
    limit: int | None = None
    """Maximum number of questions of each task, field and split, drawn at random; None for no limit."""
    split: str | None = None
    """Split of the rows to use; None for all. Both clips of a pair are always of the same split."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two clips and the answer to the question about them."""

    first: LabelRow
    second: LabelRow
    is_same: bool
    labels: tuple[str, str]
    """Value of the field of each clip."""


def build_pair_questions(
    rows: Iterable[LabelRow],
    root: Path,
    measurements: Mapping[str, ClipAcoustics],
    options: PairQuestionOptions | None = None,
    excluded: Counter[str] | None = None,
) -> list[Example]:
    """Build the questions about two clips.

    Args:
        rows: Label rows (`collection.load`).
        root: Folder that the rows' paths start from.
        measurements: Path of a row -> measurements of the clip; `compare` skips clips without measurements.
        options: Which questions to ask; None for the defaults.
        excluded: Counter to which the number of clips without a partner is added, by reason.
    Returns:
        Examples sorted by id; none if no pair answers a question beyond doubt.
    Raises:
        ConfigError: for an unknown task or field.
    """
    options = options or PairQuestionOptions()
    _check_options(options)
    excluded = Counter() if excluded is None else excluded
    selected = sorted((row for row in rows if options.split in (None, row["split"])), key=lambda row: row["path"])
    examples = []
    for split in sorted({row["split"] for row in selected}):
        members = [row for row in selected if row["split"] == split]
        for task, field in _task_fields(options):
            rng = random.Random(f"{options.seed}:{task}:{field}:{split}")
            if task == "same":
                questions, unpaired = _same_questions(members, field, rng, root, options.limit)
                reason = "no suitable partner of their source"
            else:
                questions, unpaired = _compare_questions(members, measurements, field, rng, root, options.limit)
                reason = "no partner whose difference is beyond doubt"
            if unpaired:
                excluded[f"clips for {task} questions about {field} in {split}: {reason}"] += unpaired
            examples += questions
    return sorted(examples, key=lambda example: example.id)


def _check_options(options: PairQuestionOptions) -> None:
    """Raise ConfigError for an unknown task or field."""
    for kind, names, valid_names in (
        ("task", options.tasks, TASKS),
        ("field", options.fields or (), (*question_templates.SAME, *acoustics.FIELDS)),
    ):
        if unknown := [name for name in names if name not in valid_names]:
            raise ConfigError(f"{kind} {unknown[0]!r} is none of {', '.join(valid_names)}")


def _task_fields(options: PairQuestionOptions) -> list[tuple[str, str]]:
    """The pairs of task and field that questions are built for."""
    same = [("same", field) for field in question_templates.SAME] if "same" in options.tasks else []
    compare = [("compare", field) for field in acoustics.FIELDS] if "compare" in options.tasks else []
    return [(task, field) for task, field in same + compare if options.fields is None or field in options.fields]


def label_of(row: LabelRow, field: str) -> str | None:
    """Value of a field (speaker, language, emotion, instrument or sound) of a row; None if it is not stated."""
    if field == "speaker":
        return str(row["speaker"]) if row.get("speaker") and row["category"] == "speech" else None
    facts = label_facts(row, (field,))
    return facts[0].name if facts else None


def _same_questions(
    members: Sequence[LabelRow], field: str, rng: random.Random, root: Path, limit: int | None
) -> tuple[list[Example], int]:
    """The `same` questions about one field, and the number of clips without a partner."""
    pools: dict[str, dict[str, list[LabelRow]]] = {}
    for row in members:
        if (name := label_of(row, field)) is not None:
            pools.setdefault(row.get("source", ""), {}).setdefault(name, []).append(row)
    candidates = [
        (row, name, pools[source])
        for source in sorted(pools)
        for name in sorted(pools[source])
        for row in pools[source][name]
    ]
    rng.shuffle(candidates)
    pairs: dict[bool, list[_Pair]] = {True: [], False: []}
    for row, name, classes in candidates:
        # The rarer answer is preferred. A class of one clip can only give "no", a single class only "yes".
        is_same = len(pairs[True]) <= len(pairs[False])
        partner_name = name if is_same else _draw_other_class(row, name, classes, rng)
        if partner_name is None:
            continue
        partner = _draw_partner(row, classes.get(partner_name, ()), field, is_same, rng)
        if partner is not None:
            pairs[is_same].append(_Pair(row, partner, is_same, (name, partner_name)))
    count = min(len(pairs[True]), len(pairs[False]), (limit or 2 * len(candidates)) // 2)
    examples = [
        _example(
            "same",
            field,
            (pair.first, pair.second),
            rng.choice(question_templates.SAME[field]),
            "yes" if pair.is_same else "no",
            ("yes", "no") if number % 2 else ("no", "yes"),
            root,
            labels=list(pair.labels),
        )
        for number, pair in enumerate(pairs[True][:count] + pairs[False][:count])
    ]
    return examples, len(candidates) - len(pairs[True]) - len(pairs[False])


def _draw_other_class(
    row: LabelRow, name: str, classes: Mapping[str, Sequence[LabelRow]], rng: random.Random
) -> str | None:
    """Random class that cannot be confused with the row's own class and that none of its further labels names."""
    further_names = {label_names.display_name(label) for label in row["labels"]}
    confusable = label_names.CONFUSABLE.get(name, frozenset())
    others = [
        class_name
        for class_name in sorted(classes)
        if class_name != name and class_name not in confusable and class_name not in further_names
    ]
    return rng.choice(others) if others else None


def _draw_partner(
    row: LabelRow, candidates: Sequence[LabelRow], field: str, is_same: bool, rng: random.Random
) -> LabelRow | None:
    """Random clip of another group and with another text, so that the recording itself cannot be recognised.

    If there is none, any other clip is used for pairs of different classes, and for speakers and emotions (acted
    emotions often repeat the same sentences).
    """
    for candidate in rng.sample(list(candidates), min(PARTNER_TRIES, len(candidates))):
        is_other_group = candidate["group"] != row["group"] or field == "speaker"
        has_same_text = row.get("text") and row.get("text") == candidate.get("text")
        if candidate["path"] != row["path"] and is_other_group and not has_same_text:
            return candidate
    if not is_same or field in ("speaker", "emotion"):
        return next((candidate for candidate in candidates if candidate["path"] != row["path"]), None)
    return None


def _compare_questions(
    members: Sequence[LabelRow],
    measurements: Mapping[str, ClipAcoustics],
    field: str,
    rng: random.Random,
    root: Path,
    limit: int | None,
) -> tuple[list[Example], int]:
    """The `compare` questions about one quantity, and the number of clips without a partner."""
    pairs, unpaired = _draw_compared_pairs(members, measurements, field, rng, limit)
    examples = []
    for number, (more, less) in enumerate(pairs):
        asks_for_less = number % 2
        target, reference = (less, more) if asks_for_less else (more, less)
        target_position = number // 2 % 2
        pair = (reference, target) if target_position else (target, reference)
        choices = ("the first", "the second") if number // 4 % 2 else ("the second", "the first")
        question = rng.choice(question_templates.COMPARED[field][asks_for_less])
        measured = [acoustics.value(field, measurements[row["path"]]) for row in pair]
        answer = label_names.ORDINALS[target_position]
        examples.append(_example("compare", field, pair, question, answer, choices, root, measured=measured))
    return examples, unpaired


def _draw_compared_pairs(
    members: Sequence[LabelRow],
    measurements: Mapping[str, ClipAcoustics],
    field: str,
    rng: random.Random,
    limit: int | None,
) -> tuple[list[tuple[LabelRow, LabelRow]], int]:
    """Draw pairs of clips that clearly differ in a quantity.

    Returns:
        The pairs, the clip with more of the quantity first, and the number of clips without a partner.
    """
    pools: dict[tuple[str, str], list[LabelRow]] = {}
    for row in members:
        clip = measurements.get(row["path"])
        if clip is not None and row["category"] in COMPARABLE[field] and acoustics.value(field, clip) is not None:
            pools.setdefault((row["category"], row.get("source", "")), []).append(row)
    candidates = [(row, pool) for _, pool in sorted(pools.items()) for row in pool]
    rng.shuffle(candidates)
    pairs: list[tuple[LabelRow, LabelRow]] = []
    used = set[tuple[str, ...]]()
    unpaired = 0
    for row, pool in candidates:
        for partner in rng.sample(pool, min(PARTNER_TRIES, len(pool))):
            difference = acoustics.compare(field, measurements[row["path"]], measurements[partner["path"]])
            paths = tuple(sorted((row["path"], partner["path"])))
            if difference and paths not in used:
                used.add(paths)
                pairs.append((row, partner) if difference > 0 else (partner, row))
                break
        else:
            unpaired += 1
        if limit is not None and len(pairs) >= limit:
            break
    return pairs, unpaired


def _example(
    task: str,
    field: str,
    pair: Sequence[LabelRow],
    question: str,
    answer: str,
    choices: tuple[str, ...],
    root: Path,
    **meta: Any,
) -> Example:
    """Example about two clips; its id is a hash of its content."""
    first, second = pair
    content = "\x1f".join((first["path"], second["path"], task, field, question, answer))
    speakers = [str(row["speaker"]) for row in pair if row.get("speaker")]
    same_licence = first.get("licence") == second.get("licence")
    return Example(
        id=f"{task}-{field}-{hashlib.sha256(content.encode()).hexdigest()[:12]}",
        turns=(Turn("user", (Audio(first["path"]), Audio(second["path"]), Text(question))),),
        answer=(answer,),
        choices=choices,
        task=task,
        category=first["category"],
        source=first.get("source", ""),
        licence=first.get("licence", "") if same_licence else join_values(pair, "licence"),
        group=first["group"],
        split=first["split"],
        root=root,
        meta={"field": field, **meta, "clip_groups": sorted({row["group"] for row in pair})}
        | ({"speakers": sorted(set(speakers))} if speakers else {}),
    )


def join_values(rows: Sequence[LabelRow], key: str) -> str:
    """The distinct values of a field, joined by " + "; empty if a row lacks the field.

    >>> join_values([{"licence": "CC0"}, {"licence": "CC BY 4.0"}, {"licence": "CC0"}], "licence")
    'CC BY 4.0 + CC0'
    """
    values = {str(row.get(key) or "") for row in rows}
    return "" if "" in values else " + ".join(sorted(values))
