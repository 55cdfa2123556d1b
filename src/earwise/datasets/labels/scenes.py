"""Recordings put together from real clips, so that the truth is known: what came first, how often, which was louder.

Beside `build/labels.py`, for `earwise build labels --tasks order,count,louder,odd_one_out,overlap`. `plan` decides,
from labels and what was measured (`build/signal.py`), which clips stand where and at what level, and what is asked;
`render` lays them into one waveform; `write` does so for every plan, beside the manifest. Only clips with one label and
a clear event are used: silence at their ends is cut off, levels are made equal (unless loudness is the question), long
ones are faded out. All clips of a scene come from one split. Answers are balanced like those of single clips
(`build/options.py`). `plan` and `render` are pure; the name of a file follows from its plan, so a second run writes
only what is missing.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from earwise.audio import decode, num_samples
from earwise.datasets.labels import acoustics, clip_questions, label_names, question_templates
from earwise.datasets.labels import distractors as options
from earwise.datasets.labels.acoustics import Facts
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.labels.pair_questions import joined
from earwise.errors import AudioError, ConfigError
from earwise.files import atomic_write
from earwise.types import Audio, Example, Text, Turn, Waveform

VERSION = 1  # of what `render` makes of a plan: part of the files' names
TASKS = ("order", "count", "louder", "odd_one_out", "overlap")
SAMPLE_RATE = 16000
EVENT_S, MIN_EVENT_S = 3.0, 0.1  # a longer clip is faded out, a shorter one is not used
COUNTED_MAX_S = 1.5
FADE_S = 0.03
MARGIN_S = 0.1  # of silence at both ends
GAP_S = (0.3, 0.8)
LEVEL_LUFS = -26.0
PEAK = 0.95
LOUDER_LU = (8.0, 14.0)  # the quieter sound is so much below
OVERLAP_SHARE = 0.6  # of the shorter sound, at least, is heard with the other
OVERLAP_MIN_S = 0.5  # sounds that are shorter cannot overlap clearly
COUNTS = ("one", "two", "three", "four", "five")
STRANGERS_TRIED = 8
CACHED_CLIPS = 512


@dataclass(frozen=True, slots=True)
class Event:
    """One clip's place in a scene."""

    path: str
    name: str
    """What the clip is called in questions."""
    at_s: float
    """When it begins."""
    for_s: float
    """How long it is heard."""
    gain_db: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A recording to be made, and what is asked about it."""

    task: str
    variant: str
    events: tuple[Event, ...]
    rows: tuple[LabelRow, ...]
    """Of the events, in order."""
    question: str
    answer: str
    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the file, from everything that is heard."""
        heard = "\x1f".join(f"{e.path} {e.at_s:.4f} {e.for_s:.4f} {e.gain_db:.3f}" for e in self.events)
        return f"{self.task}-{hashlib.sha256(f'{VERSION}:{heard}'.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class _Clip:
    row: LabelRow
    name: str
    facts: Facts


def plan(
    rows: Iterable[LabelRow],
    facts: Mapping[str, Facts],
    *,
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    n_choices: int = 4,
    limit: int | None = None,
    split: str | None = None,
    left_out: Counter[str] | None = None,
) -> list[Scene]:
    """Decide on scenes: for each task one per usable clip, less where balance allows fewer.

    Args:
        rows: From `collection.load`; sounds and instruments are used, speech is not.
        facts: Path of a row -> what was measured; clips that are not in it are not used.
        seed: Decides everything else.
        tasks: Out of `TASKS`.
        n_choices: Options of a `count` question.
        limit: At most so many scenes of each task and split.
        split: Only rows of this split.
        left_out: Gains, for each reason, how many clips cannot be used.
    Raises:
        ConfigError: for an unknown task.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ConfigError(f"task {unknown[0]!r} is none of {', '.join(TASKS)}")
    left_out = Counter() if left_out is None else left_out
    usable = []
    for row in sorted((row for row in rows if split in (None, row["split"])), key=lambda row: row["path"]):
        clip = _clip(row, facts.get(row["path"]))
        if isinstance(clip, str):
            left_out[f"clips for scenes: {clip}"] += 1
        else:
            usable.append(clip)
    scenes: list[Scene] = []
    for name in sorted({clip.row["split"] for clip in usable}):
        members = [clip for clip in usable if clip.row["split"] == name]
        for task in tasks:
            rng = random.Random(f"{seed}:{task}:{name}")
            leads = members if limit is None or limit >= len(members) else rng.sample(members, limit)
            scenes += _PLANS[task](leads, members, rng, n_choices)
    return scenes


def render(scene: Scene, load: Callable[[str], Waveform]) -> Waveform:
    """The waveform of a scene, mono 16 kHz.

    Args:
        scene: From `plan`.
        load: Path of an event -> its sounding part, mono 16 kHz.
    """
    end = max(event.at_s + event.for_s for event in scene.events) + MARGIN_S
    wave = np.zeros(num_samples(end, SAMPLE_RATE), np.float32)
    for event in scene.events:
        sound = load(event.path)[: num_samples(event.for_s, SAMPLE_RATE)] * np.float32(10 ** (event.gain_db / 20))
        fade = min(num_samples(FADE_S, SAMPLE_RATE), len(sound))
        sound[len(sound) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        start = num_samples(event.at_s, SAMPLE_RATE)
        wave[start : start + len(sound)] += sound
    loudest = float(np.abs(wave).max())
    return wave * np.float32(PEAK / loudest) if loudest > PEAK else wave  # all together, so levels stay as planned


def write(
    scenes: Iterable[Scene], root: Path, folder: Path, *, failed: Callable[[AudioError], None] | None = None
) -> Iterator[Example]:
    """Make the files of scenes (FLAC, named by their content; those that exist stay) and their examples, one by one.

    Args:
        scenes: From `plan`.
        root: Folder that the rows' paths start from.
        folder: Where the files go; the examples' paths start from here.
        failed: Told of clips that cannot be decoded; their scenes are left out. None raises instead.
    Raises:
        AudioError: if a clip cannot be decoded and there is no `failed`.
        DataError: if the disk refuses.
    """
    cache: dict[str, Waveform] = {}

    def load(path: str) -> Waveform:
        if path not in cache:
            if len(cache) >= CACHED_CLIPS:
                cache.pop(next(iter(cache)))
            wave = decode(root / path, SAMPLE_RATE)
            start, end = acoustics.sounding(acoustics.frame_levels_db(wave, SAMPLE_RATE), SAMPLE_RATE, len(wave))
            cache[path] = wave[start:end]
        return cache[path].copy()

    for scene in scenes:
        target = folder / f"{scene.name}.flac"
        if not target.is_file():
            try:
                wave = render(scene, load)
            except AudioError as error:
                if failed is None:
                    raise
                failed(error)
                continue
            _save(target, wave)
        yield _example(scene, folder)


def _save(target: Path, wave: Waveform) -> None:
    import soundfile

    with (
        atomic_write(target, "wb") as handle,
        soundfile.SoundFile(handle, "w", SAMPLE_RATE, 1, format="FLAC", subtype="PCM_16") as sound,
    ):
        sound.write(wave)


def _clip(row: LabelRow, known: Facts | None) -> _Clip | str:
    """The clip under its name, or why it cannot be used: it needs one label and one clear event."""
    found = clip_questions.label_facts(row, ("sound", "instrument"))
    if not found:
        return "speech, or a label that names no sound"
    if len(row["labels"]) > 1:
        return "several labels, so it is not known what is heard when"
    if known is None or known.bursts < 1 or known.sounding_s < MIN_EVENT_S:
        return f"no clear event of {MIN_EVENT_S} s"
    return _Clip(row, found[0].name, known)


def _order(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Two sounds, one after the other; asked for the first, or for the last."""
    scenes = []
    for number, (clip, other) in enumerate(_couples(leads, members, rng)):
        variant = ("first", "last")[number % 2]
        pair = (clip, other) if variant == "first" else (other, clip)
        events = _sequence(pair, [LEVEL_LUFS] * 2, rng)
        scenes.append(_scene("order", variant, pair, events, clip.name, (clip.name, other.name), number // 2, rng))
    return scenes


def _louder(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Two sounds, one after the other, of clearly different level."""
    scenes = []
    for number, (clip, other) in enumerate(_couples(leads, members, rng)):
        variant = ("louder", "quieter")[number % 2]
        below = LEVEL_LUFS - rng.uniform(*LOUDER_LU)
        levels = {variant == "louder": LEVEL_LUFS, variant != "louder": below}
        pair, level = (clip, other), [levels[True], levels[False]]
        if rng.random() < 0.5:
            pair, level = (other, clip), level[::-1]
        events = _sequence(pair, level, rng)
        scenes.append(_scene("louder", variant, pair, events, clip.name, (clip.name, other.name), number // 2, rng))
    return scenes


def _overlap(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Two sounds, mixed or one after the other."""
    scenes = []
    for number, (clip, other) in enumerate(_couples(_long(leads), _long(members), rng)):
        together = number % 2 == 0
        pair = (clip, other) if rng.random() < 0.5 else (other, clip)
        events = _sequence(pair, [LEVEL_LUFS] * 2, rng)
        if together:
            first, second = events
            shared = rng.uniform(OVERLAP_SHARE, 1.0) * min(first.for_s, second.for_s)
            events = (first, replace(second, at_s=round(MARGIN_S + first.for_s - shared, 4)))
        answer = label_names.OVERLAP[not together]
        scenes.append(_scene("overlap", "overlap", pair, events, answer, label_names.OVERLAP, number // 2, rng))
    return scenes


def _count(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """One sound several times, up to two others among them."""
    short, chosen = _short(members), _short(leads)
    rng.shuffle(chosen)
    answers = [COUNTS[number % len(COUNTS)] for number in range(len(chosen))]
    drawn = options.balanced_distractors(answers, n_choices, rng, confusable={}, also_true=[frozenset()] * len(answers))
    scenes = []
    for number, (index, distractors) in enumerate(sorted(drawn.items())):
        clip = chosen[index]
        drawn_from = rng.sample(short, min(STRANGERS_TRIED, len(short)))
        among = [other for other in drawn_from if _apart(clip, other)][: rng.randrange(3)]
        heard = [clip] * (COUNTS.index(answers[index]) + 1) + among
        rng.shuffle(heard)
        events = _sequence(heard, [LEVEL_LUFS] * len(heard), rng, longest_s=COUNTED_MAX_S)
        listed = (answers[index], *distractors)
        scenes.append(
            _scene(
                "count",
                "count",
                heard,
                events,
                answers[index],
                listed,
                number,
                rng,
                a=label_names.with_article(clip.name),
            )
        )
    return scenes


def _odd_one_out(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random, n_choices: int) -> list[Scene]:
    """Three or four sounds; all but one are of one kind, from different clips where there are any."""
    scenes, by_name = [], _by_name(members)
    for number, (clip, usual) in enumerate(_couples(leads, members, rng)):
        size = 3 + number % 2
        place = number // 2 % size
        kin = [other for other in by_name[usual.name] if other is not usual]
        others = [usual, *rng.sample(kin, min(size - 2, len(kin)))]
        heard = [others[at % len(others)] for at in range(size - 1)]
        heard.insert(place, clip)
        events = _sequence(heard, [LEVEL_LUFS] * size, rng)
        listed = label_names.ORDINALS[:size]
        answer = listed[place]
        scenes.append(
            _scene("odd_one_out", "odd_one_out", heard, events, answer, listed, None, rng, n=label_names.NUMBERS[size])
        )
    return scenes


_PLANS = {"order": _order, "count": _count, "louder": _louder, "odd_one_out": _odd_one_out, "overlap": _overlap}


def _couples(leads: Sequence[_Clip], members: Sequence[_Clip], rng: random.Random) -> list[tuple[_Clip, _Clip]]:
    """Each lead with a clip of another class; classes are partners as often as leads, so names tell nothing."""
    own = [frozenset[str]()] * len(leads)
    drawn = options.balanced_distractors(
        [clip.name for clip in leads], 2, rng, confusable=label_names.CONFUSABLE, also_true=own
    )
    by_name = _by_name(members)
    couples = [(leads[index], rng.choice(by_name[names[0]])) for index, names in sorted(drawn.items())]
    rng.shuffle(couples)
    return couples


def _by_name(clips: Iterable[_Clip]) -> dict[str, list[_Clip]]:
    found: dict[str, list[_Clip]] = {}
    for clip in clips:
        found.setdefault(clip.name, []).append(clip)
    return found


def _long(clips: Iterable[_Clip]) -> list[_Clip]:
    """Those that can be heard together with another for long enough."""
    return [clip for clip in clips if min(clip.facts.sounding_s, EVENT_S) >= OVERLAP_MIN_S]


def _short(clips: Iterable[_Clip]) -> list[_Clip]:
    """Those that are one event, to be counted."""
    return [clip for clip in clips if clip.facts.bursts == 1 and clip.facts.sounding_s <= COUNTED_MAX_S]


def _apart(clip: _Clip, other: _Clip) -> bool:
    return other.name != clip.name and other.name not in label_names.CONFUSABLE.get(clip.name, frozenset())


def _sequence(
    clips: Sequence[_Clip], levels: Sequence[float], rng: random.Random, longest_s: float = EVENT_S
) -> tuple[Event, ...]:
    """Clips one after the other with gaps between, each brought to its level (LUFS)."""
    events, at = [], MARGIN_S
    for clip, level in zip(clips, levels, strict=True):
        for_s = min(clip.facts.sounding_s, longest_s)
        events.append(
            Event(clip.row["path"], clip.name, round(at, 4), for_s, round(level - clip.facts.loudness_lufs, 3))
        )
        at += for_s + rng.uniform(*GAP_S)
    return tuple(events)


def _scene(
    task: str,
    variant: str,
    clips: Sequence[_Clip],
    events: tuple[Event, ...],
    answer: str,
    listed: Sequence[str],
    place: int | None,
    rng: random.Random,
    **said: str,
) -> Scene:
    """`place` is where the answer stands among the options (modulo their number); None leaves them in order."""
    choices = list(listed)
    if place is not None:
        choices.remove(answer)
        rng.shuffle(choices)
        choices.insert(place % len(listed), answer)
    question = rng.choice(question_templates.SCENES[variant]).format(**said)
    return Scene(task, variant, events, tuple(clip.row for clip in clips), question, answer, tuple(choices))


def _example(scene: Scene, folder: Path) -> Example:
    rows = scene.rows
    categories = {row["category"] for row in rows}
    asked = hashlib.sha256("\x1f".join((scene.question, scene.answer, *scene.choices)).encode()).hexdigest()[:8]
    return Example(
        id=f"{scene.name}-{asked}",
        turns=(Turn("user", (Audio(f"{scene.name}.flac"), Text(scene.question))),),
        answer=(scene.answer,),
        choices=scene.choices,
        task=scene.task,
        category=categories.pop() if len(categories) == 1 else "mixed",
        source=joined(rows, "source"),
        licence=joined(rows, "licence"),
        group=rows[0]["group"],
        split=rows[0]["split"],
        root=folder,
        meta={
            "field": scene.variant,
            "clip_groups": sorted({row["group"] for row in rows}),
            "events": [
                {"clip": e.path, "label": e.name, "at_s": e.at_s, "for_s": e.for_s, "gain_db": e.gain_db}
                for e in scene.events
            ],
        },
    )
