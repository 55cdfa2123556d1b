"""Scenes: recordings composed of several clips, so that the answers about order, count, level and overlap are known.

`earwise build labels --tasks order,count,louder,odd_one_out,overlap`. `plan_scenes` decides, from labels and
measurements (`labels/acoustics.py`), which clips a scene contains, when and at what level each is played, and what is
asked; `labels/render_scenes.py` renders the scenes to audio files. Only clips with a single label and a clear event are
used. Silence at their ends is removed, their levels are made equal (unless the question is about level), and long clips
are faded out. All clips of a scene are of the same split. Answers are balanced as for single clips
(`labels/distractors.py`). All functions are pure.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from earwise.datasets.labels import label_names, question_templates
from earwise.datasets.labels.acoustics import ClipAcoustics
from earwise.datasets.labels.clip_questions import label_facts
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.labels.distractors import balanced_distractors
from earwise.errors import ConfigError

VERSION = 1  # version of the rendering, part of the names of the rendered files
TASKS = ("order", "count", "louder", "odd_one_out", "overlap")
EVENT_S, MIN_EVENT_S = 3.0, 0.1  # a longer clip is faded out, a shorter clip is not used
MAX_COUNTED_S = 1.5
MARGIN_S = 0.1  # silence at both ends of a scene
GAP_S = (0.3, 0.8)
LEVEL_LUFS = -26.0
LOUDER_LU = (8.0, 14.0)  # range of the level difference of `louder` scenes
OVERLAP_SHARE = 0.6  # minimum share of the shorter clip that overlaps with the other
MIN_OVERLAP_CLIP_S = 0.5  # shorter clips cannot overlap clearly
COUNTS = ("one", "two", "three", "four", "five")
OTHER_CLIPS_TRIED = 8


@dataclass(frozen=True, slots=True)
class Event:
    """One clip in a scene."""

    path: str
    name: str
    """Display name of the clip's label."""
    at_s: float
    """Time at which the clip starts."""
    for_s: float
    """Length of the part of the clip that is played."""
    gain_db: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Plan of a scene, and the question about it."""

    task: str
    variant: str
    """Kind of question within the task, a key of `question_templates.SCENES`."""
    events: tuple[Event, ...]
    rows: tuple[LabelRow, ...]
    """Label row of each event."""
    question: str
    answer: str
    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        """File name, without ending, of the rendered scene: task and a hash of everything that is audible."""
        audible = "\x1f".join(f"{e.path} {e.at_s:.4f} {e.for_s:.4f} {e.gain_db:.3f}" for e in self.events)
        return f"{self.task}-{hashlib.sha256(f'{VERSION}:{audible}'.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class _Clip:
    """A clip that can be used in scenes."""

    row: LabelRow
    name: str
    """Display name of its label."""
    acoustics: ClipAcoustics


def plan_scenes(
    rows: Iterable[LabelRow],
    measurements: Mapping[str, ClipAcoustics],
    *,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    n_choices: int = 4,
    limit: int | None = None,
    split: str | None = None,
    excluded: Counter[str] | None = None,
) -> list[Scene]:
    """Plan the scenes: for each task one per usable clip, or fewer if balance requires it.

    Args:
        rows: Label rows (`collection.load`); sounds and instruments are used, speech is not.
        measurements: Path of a row -> measurements of the clip; clips without measurements are not used.
        seed: Seed of all random choices.
        tasks: Tasks to plan scenes for, of `TASKS`.
        n_choices: Number of options of a `count` question.
        limit: Maximum number of scenes of each task and split; None for no limit.
        split: Split of the rows to use; None for all.
        excluded: Counter to which the number of clips that cannot be used is added, by reason.
    Raises:
        ConfigError: for an unknown task.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ConfigError(f"task {unknown[0]!r} is none of {', '.join(TASKS)}")
    excluded = Counter() if excluded is None else excluded
    usable = []
    for row in sorted((row for row in rows if split in (None, row["split"])), key=lambda row: row["path"]):
        clip = _usable_clip(row, measurements.get(row["path"]))
        if isinstance(clip, str):
            excluded[f"clips for scenes: {clip}"] += 1
        else:
            usable.append(clip)
    scenes: list[Scene] = []
    for name in sorted({clip.row["split"] for clip in usable}):
        members = [clip for clip in usable if clip.row["split"] == name]
        for task in tasks:
            rng = random.Random(f"{seed}:{task}:{name}")
            leads = members if limit is None or limit >= len(members) else rng.sample(members, limit)
            scenes += _PLANNERS[task](leads, members, rng, n_choices)
    return scenes


def _usable_clip(row: LabelRow, acoustics: ClipAcoustics | None) -> _Clip | str:
    """The clip of a row, or the reason why it cannot be used: a clip needs one label and one clear event."""
    facts = label_facts(row, ("sound", "instrument"))
    if not facts:
        return "speech, or a label that names no sound"
    if len(row["labels"]) > 1:
        return "several labels, so it is not known what is heard when"
    if acoustics is None or acoustics.bursts < 1 or acoustics.sounding_s < MIN_EVENT_S:
        return f"no clear event of {MIN_EVENT_S} s"
    return _Clip(row, facts[0].name, acoustics)


# Planners: scenes of one task, one for each lead clip, with other clips from `members` -----------------------------


def _order(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Two sounds, one after the other; the question asks for the first or the last."""
    scenes = []
    for number, (clip, partner) in enumerate(_draw_couples(leads, members, rng)):
        variant = ("first", "last")[number % 2]
        pair = (clip, partner) if variant == "first" else (partner, clip)
        events = _sequence(pair, [LEVEL_LUFS] * 2, rng)
        scenes.append(_scene("order", variant, pair, events, clip.name, (clip.name, partner.name), number // 2, rng))
    return scenes


def _louder(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Two sounds, one after the other, with clearly different levels."""
    scenes = []
    for number, (clip, partner) in enumerate(_draw_couples(leads, members, rng)):
        variant = ("louder", "quieter")[number % 2]
        quieter_lufs = LEVEL_LUFS - rng.uniform(*LOUDER_LU)
        levels = [LEVEL_LUFS, quieter_lufs] if variant == "louder" else [quieter_lufs, LEVEL_LUFS]
        pair = (clip, partner)
        if rng.random() < 0.5:
            pair, levels = (partner, clip), levels[::-1]
        events = _sequence(pair, levels, rng)
        scenes.append(_scene("louder", variant, pair, events, clip.name, (clip.name, partner.name), number // 2, rng))
    return scenes


def _overlap(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Two sounds, at the same time or one after the other."""
    scenes = []
    for number, (clip, partner) in enumerate(_draw_couples(_long_clips(leads), _long_clips(members), rng)):
        is_overlap = number % 2 == 0
        pair = (clip, partner) if rng.random() < 0.5 else (partner, clip)
        events = _sequence(pair, [LEVEL_LUFS] * 2, rng)
        if is_overlap:
            first, second = events
            overlap_s = rng.uniform(OVERLAP_SHARE, 1.0) * min(first.for_s, second.for_s)
            events = (first, replace(second, at_s=round(MARGIN_S + first.for_s - overlap_s, 4)))
        answer = label_names.OVERLAP[not is_overlap]
        scenes.append(_scene("overlap", "overlap", pair, events, answer, label_names.OVERLAP, number // 2, rng))
    return scenes


def _count(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """One sound several times, mixed with up to two other sounds."""
    short_members, short_leads = _single_events(members), _single_events(leads)
    rng.shuffle(short_leads)
    answers = [COUNTS[number % len(COUNTS)] for number in range(len(short_leads))]
    distractors = balanced_distractors(answers, n_choices, rng, confusable={}, also_true=[frozenset()] * len(answers))
    scenes = []
    for number, (index, wrong_counts) in enumerate(sorted(distractors.items())):
        clip = short_leads[index]
        candidates = rng.sample(short_members, min(OTHER_CLIPS_TRIED, len(short_members)))
        others = [candidate for candidate in candidates if _is_distinct(clip, candidate)][: rng.randrange(3)]
        clips = [clip] * (COUNTS.index(answers[index]) + 1) + others
        rng.shuffle(clips)
        events = _sequence(clips, [LEVEL_LUFS] * len(clips), rng, longest_s=MAX_COUNTED_S)
        choices = (answers[index], *wrong_counts)
        name = label_names.with_article(clip.name)
        scenes.append(_scene("count", "count", clips, events, answers[index], choices, number, rng, a=name))
    return scenes


def _odd_one_out(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Three or four sounds, all but one of the same kind, from different clips if there are enough."""
    scenes, by_name = [], _group_by_name(members)
    for number, (odd, usual) in enumerate(_draw_couples(leads, members, rng)):
        size = 3 + number % 2
        position = number // 2 % size
        same_kind = [clip for clip in by_name[usual.name] if clip is not usual]
        others = [usual, *rng.sample(same_kind, min(size - 2, len(same_kind)))]
        clips = [others[place % len(others)] for place in range(size - 1)]
        clips.insert(position, odd)
        events = _sequence(clips, [LEVEL_LUFS] * size, rng)
        choices = label_names.ORDINALS[:size]
        number_word = label_names.NUMBERS[size]
        answer = choices[position]
        scenes.append(_scene("odd_one_out", "odd_one_out", clips, events, answer, choices, None, rng, n=number_word))
    return scenes


_PLANNERS = {"order": _order, "count": _count, "louder": _louder, "odd_one_out": _odd_one_out, "overlap": _overlap}


def _draw_couples(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random) -> list[tuple[_Clip, _Clip]]:
    """Pair each lead clip with a clip of another class.

    Every class is a partner as often as a lead, so that the names of the classes do not reveal the answer. Lead clips
    that cannot be paired are left out.
    """
    no_further_names = [frozenset[str]()] * len(leads)
    partner_names = balanced_distractors(
        [clip.name for clip in leads], 2, rng, confusable=label_names.CONFUSABLE, also_true=no_further_names
    )
    by_name = _group_by_name(members)
    couples = [(leads[index], rng.choice(by_name[names[0]])) for index, names in sorted(partner_names.items())]
    rng.shuffle(couples)
    return couples


def _group_by_name(clips: Iterable[_Clip]) -> dict[str, list[_Clip]]:
    """Display name -> clips."""
    groups: dict[str, list[_Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.name, []).append(clip)
    return groups


def _long_clips(clips: Iterable[_Clip]) -> list[_Clip]:
    """The clips that are long enough to overlap clearly with another."""
    return [clip for clip in clips if min(clip.acoustics.sounding_s, EVENT_S) >= MIN_OVERLAP_CLIP_S]


def _single_events(clips: Iterable[_Clip]) -> list[_Clip]:
    """The clips that contain a single short event, which can be counted."""
    return [clip for clip in clips if clip.acoustics.bursts == 1 and clip.acoustics.sounding_s <= MAX_COUNTED_S]


def _is_distinct(clip: _Clip, candidate: _Clip) -> bool:
    """True if the classes of two clips differ and cannot be confused."""
    return candidate.name != clip.name and candidate.name not in label_names.CONFUSABLE.get(clip.name, frozenset())


def _sequence(
    clips: Sequence[_Clip], levels: Sequence[float], rng: random.Random, longest_s: float = EVENT_S
) -> tuple[Event, ...]:
    """Clips one after the other with random gaps.

    Args:
        clips: Clips in the order in which they are played.
        levels: Level of each clip in the scene, LUFS.
        rng: Source of randomness of the gaps.
        longest_s: Length at which clips are faded out.
    """
    events, start_s = [], MARGIN_S
    for clip, level in zip(clips, levels, strict=True):
        length_s = min(clip.acoustics.sounding_s, longest_s)
        gain_db = round(level - clip.acoustics.loudness_lufs, 3)
        events.append(Event(clip.row["path"], clip.name, round(start_s, 4), length_s, gain_db))
        start_s += length_s + rng.uniform(*GAP_S)
    return tuple(events)


def _scene(
    task: str,
    variant: str,
    clips: Sequence[_Clip],
    events: tuple[Event, ...],
    answer: str,
    choices: Sequence[str],
    answer_position: int | None,
    rng: random.Random,
    **template_values: str,
) -> Scene:
    """Scene with its question.

    Args:
        task: Task of the scene.
        variant: Kind of question, a key of `question_templates.SCENES`.
        clips: Clip of each event.
        events: Events of the scene.
        answer: The right option.
        choices: All options.
        answer_position: Position of the answer among the shuffled options, modulo their number; None keeps the order of
            `choices`.
        rng: Source of randomness of the wording and the order of options.
        **template_values: Values of the placeholders in the question template.
    """
    ordered_choices = list(choices)
    if answer_position is not None:
        ordered_choices.remove(answer)
        rng.shuffle(ordered_choices)
        ordered_choices.insert(answer_position % len(choices), answer)
    question = rng.choice(question_templates.SCENES[variant]).format(**template_values)
    rows = tuple(clip.row for clip in clips)
    return Scene(task, variant, events, rows, question, answer, tuple(ordered_choices))
