"""Questions about two clips: is the speaker (language, emotion, instrument, sound) the same; which is louder, higher?

Beside `build/labels.py`, for `earwise build labels --tasks same,compare`. `same` takes its answers from the labels,
`compare` from what was measured (`build/signal.py`), and asks only where the difference is beyond doubt. Both clips
come from one split and, so that the microphone tells nothing, from one source. Answers, and places of the options, are
equally often each of the two. Pure: everything follows from rows, facts and seed, not from the order of the rows.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.datasets.labels import acoustics, clip_questions, label_names, question_templates
from earwise.datasets.labels.acoustics import Facts
from earwise.datasets.labels.collection import LabelRow
from earwise.errors import ConfigError
from earwise.types import Audio, Example, Text, Turn

TASKS = ("same", "compare")
TRIES = 12  # partners looked at before a clip is passed over
# What is compared among what: pitch of voices with that of voices, of sounds not at all.
COMPARABLE: Mapping[str, tuple[str, ...]] = {
    "loudness": ("sound", "music", "speech"),
    "pitch": ("music", "speech"),
    "duration": ("sound", "music", "speech"),
    "tempo": ("music",),
}


def build(
    rows: Iterable[LabelRow],
    *,
    root: Path,
    facts: Mapping[str, Facts],
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    fields: Sequence[str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    left_out: Counter[str] | None = None,
) -> list[Example]:
    """Make examples of two clips each.

    Args:
        rows: From `collection.load`.
        root: Folder that the rows' paths start from.
        facts: Path of a row -> what was measured; `compare` passes over clips that are not in it.
        seed: Decides pairs, wording, order of clips and of options.
        tasks: Out of `TASKS`.
        fields: Out of `question_templates.SAME` and `signal.FIELDS`; None for all.
        limit: At most so many questions of each task, field and split, drawn at random.
        split: Only rows of this split; None for all (a pair never mixes splits).
        left_out: Gains, for each reason, how many clips had no partner.
    Returns:
        Examples sorted by id; none where no pair answers a question beyond doubt.
    Raises:
        ConfigError: for an unknown task or field.
    """
    for name, given, known in (
        ("task", tasks, TASKS),
        ("field", fields or (), (*question_templates.SAME, *acoustics.FIELDS)),
    ):
        if unknown := [item for item in given if item not in known]:
            raise ConfigError(f"{name} {unknown[0]!r} is none of {', '.join(known)}")
    wanted = sorted((row for row in rows if split in (None, row["split"])), key=lambda row: row["path"])
    left_out = Counter() if left_out is None else left_out
    examples = []
    for name in sorted({row["split"] for row in wanted}):
        members = [row for row in wanted if row["split"] == name]
        for field in question_templates.SAME if "same" in tasks else ():
            if fields is None or field in fields:
                rng = random.Random(f"{seed}:same:{field}:{name}")
                made, alone = _same(members, field, rng, root, limit)
                if alone:
                    left_out[f"clips for same {field} in {name}: no fitting partner of their source"] += alone
                examples += made
        for field in acoustics.FIELDS if "compare" in tasks else ():
            if fields is None or field in fields:
                rng = random.Random(f"{seed}:compare:{field}:{name}")
                made, alone = _compare(members, facts, field, rng, root, limit)
                if alone:
                    left_out[f"clips for compare {field} in {name}: no partner whose difference is beyond doubt"] += (
                        alone
                    )
                examples += made
    return sorted(examples, key=lambda example: example.id)


def label_of(row: LabelRow, field: str) -> str | None:
    """What a row says of its speaker, language, emotion, instrument or sound; None if it does not."""
    if field == "speaker":
        return str(row["speaker"]) if row.get("speaker") and row["category"] == "speech" else None
    found = clip_questions.label_facts(row, (field,))
    return found[0].name if found else None


def _same(
    members: Sequence[LabelRow], field: str, rng: random.Random, root: Path, limit: int | None
) -> tuple[list[Example], int]:
    """The questions, and how many clips found no partner."""
    pools: dict[str, dict[str, list[LabelRow]]] = {}
    for row in members:
        if (name := label_of(row, field)) is not None:
            pools.setdefault(row.get("source", ""), {}).setdefault(name, []).append(row)
    leads = [
        (row, name, pools[source]) for source in sorted(pools) for name in sorted(pools[source])
        for row in pools[source][name]
    ]  # fmt: skip
    rng.shuffle(leads)
    found: dict[bool, list[tuple[LabelRow, LabelRow, str, str]]] = {True: [], False: []}
    for row, name, classes in leads:
        # whichever answer there are fewer of; a class of one clip can only give "no", a single class only "yes"
        wanted = len(found[True]) <= len(found[False])
        other = name if wanted else _other_class(row, name, classes, rng)
        partner = _partner(row, classes.get(other, ()), field, wanted, rng) if other else None
        if partner is not None and other:
            found[wanted].append((row, partner, name, other))
    count = min(len(found[True]), len(found[False]), (limit or 2 * len(leads)) // 2)
    chosen = [(*pair, answer) for answer in (True, False) for pair in found[answer][:count]]
    made = [
        _example(
            "same", field, pair, rng.choice(question_templates.SAME[field]), "yes" if answer else "no",
            ("yes", "no") if number % 2 else ("no", "yes"), root, labels=[name, other],
        )
        for number, (*pair, name, other, answer) in enumerate(chosen)
    ]  # fmt: skip
    return made, len(leads) - len(found[True]) - len(found[False])


def _other_class(row: LabelRow, name: str, classes: Mapping[str, Sequence[LabelRow]], rng: random.Random) -> str | None:
    """A class that an honest listener tells from the row's own, and that none of its further labels names."""
    also = {label_names.display_name(label) for label in row["labels"]}
    near = label_names.CONFUSABLE.get(name, frozenset())
    others = [other for other in sorted(classes) if other != name and other not in near and other not in also]
    return rng.choice(others) if others else None


def _partner(
    row: LabelRow, others: Sequence[LabelRow], field: str, is_same: bool, rng: random.Random
) -> LabelRow | None:
    """Another clip, of another group and saying something else (or it would be the recording that is recognised)."""
    for other in rng.sample(list(others), min(TRIES, len(others))):
        apart = other["group"] != row["group"] or field == "speaker"
        if other["path"] != row["path"] and apart and not (row.get("text") and row.get("text") == other.get("text")):
            return other
    if not is_same or field in ("speaker", "emotion"):  # acted emotions repeat two sentences
        return next((other for other in others if other["path"] != row["path"]), None)
    return None


def _compare(
    members: Sequence[LabelRow],
    facts: Mapping[str, Facts],
    field: str,
    rng: random.Random,
    root: Path,
    limit: int | None,
) -> tuple[list[Example], int]:
    """The questions, and how many clips found no partner."""
    pools: dict[tuple[str, str], list[LabelRow]] = {}
    for row in members:
        known = facts.get(row["path"])
        if known is not None and row["category"] in COMPARABLE[field] and acoustics.value(field, known) is not None:
            pools.setdefault((row["category"], row.get("source", "")), []).append(row)
    leads = [(row, pool) for _, pool in sorted(pools.items()) for row in pool]
    rng.shuffle(leads)
    chosen = []
    seen = set[tuple[str, ...]]()
    alone = 0
    for row, pool in leads:
        for other in rng.sample(pool, min(TRIES, len(pool))):
            difference = acoustics.compare(field, facts[row["path"]], facts[other["path"]])
            both = tuple(sorted((row["path"], other["path"])))
            if difference and both not in seen:
                seen.add(both)
                chosen.append((row, other) if difference > 0 else (other, row))
                break
        else:
            alone += 1
        if limit is not None and len(chosen) >= limit:
            break
    made = []
    for number, (more, less) in enumerate(chosen):
        is_less = number % 2  # asked for the lesser
        target, rest = (less, more) if is_less else (more, less)
        second = number // 2 % 2  # the answer is the second clip
        pair = (rest, target) if second else (target, rest)
        options = ("the first", "the second") if number // 4 % 2 else ("the second", "the first")
        question = rng.choice(question_templates.COMPARED[field][is_less])
        measured = [acoustics.value(field, facts[row["path"]]) for row in pair]
        made.append(
            _example("compare", field, pair, question, label_names.ORDINALS[second], options, root, measured=measured)
        )
    return made, alone


def _example(
    task: str,
    field: str,
    pair: Sequence[LabelRow],
    question: str,
    answer: str,
    options: tuple[str, ...],
    root: Path,
    **meta: Any,
) -> Example:
    first, second = pair
    content = "\x1f".join((first["path"], second["path"], task, field, question, answer))
    speakers = [str(row["speaker"]) for row in pair if row.get("speaker")]
    return Example(
        id=f"{task}-{field}-{hashlib.sha256(content.encode()).hexdigest()[:12]}",
        turns=(Turn("user", (Audio(first["path"]), Audio(second["path"]), Text(question))),),
        answer=(answer,),
        choices=options,
        task=task,
        category=first["category"],
        source=first.get("source", ""),
        licence=first.get("licence", "") if first.get("licence") == second.get("licence") else joined(pair, "licence"),
        group=first["group"],
        split=first["split"],
        root=root,
        meta={"field": field, **meta, "clip_groups": sorted({row["group"] for row in pair})}
        | ({"speakers": sorted(set(speakers))} if speakers else {}),
    )


def joined(rows: Sequence[LabelRow], key: str) -> str:
    """All values of a field, each once; empty if any row lacks it.

    >>> joined([{"licence": "CC0"}, {"licence": "CC BY 4.0"}, {"licence": "CC0"}], "licence")
    'CC BY 4.0 + CC0'
    """
    values = {str(row.get(key) or "") for row in rows}
    return "" if "" in values else " + ".join(sorted(values))
