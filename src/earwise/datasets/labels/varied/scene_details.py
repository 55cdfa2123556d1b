"""Questions about the details of a rendered scene: lengths, numbers of sounds, and the sound at a place.

They ask what no scene is composed for, but what its plan (`meta.events`) says all the same: which of two sounds lasts
longer, how many sounds there are and how many different ones, which sound is the third, and which sounds are heard in
which order. Scenes whose sounds overlap are not asked, since their order and number cannot be told for certain. No
number is right in more than about half of the questions for a number. Used by `varied.scene_questions`, which writes
the examples. All functions are pure.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.datasets.labels import label_names
from earwise.datasets.labels.scenes import COUNTS

LONGER_S = 0.7
"""Difference of the lengths of two sounds beyond which one of them is clearly longer."""
OVERLAP_S = 0.05
"""Two sounds that share more time than this overlap."""
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
SHARES: Mapping[str, float] = {"different": 1.0, "events": 0.4, "nth": 0.6, "list": 0.12}
"""Variant -> share of the scenes that it fits that are asked, before numbers are balanced. Lengths are asked wherever
they are clear."""
NTH_CHOICES = 3
"""Smallest number of options of a question for the sound at a place."""
MAX_DRAWN = 8
"""Number of sounds of other scenes that further options are drawn from."""


@dataclass(frozen=True, slots=True)
class SceneDetail:
    """A question about a scene, in names; wordings are drawn where it is written.

    Attributes:
        task: Task of the row.
        variant: Key of the question's wordings, behind `scene.`.
        answer: The right answer.
        choices: Options in random order, the answer among them; empty for a question without options.
        place: Word for the place that is asked for ("third"); empty in other questions.
    """

    task: str
    variant: str
    answer: str
    choices: tuple[str, ...] = ()
    place: str = ""


Events = Sequence[Mapping[str, Any]]
"""The plan of a scene: `label`, `at_s` and `for_s` of each sound."""
Keep = Mapping[tuple[str, str], float]
"""Variant and number -> share of the questions with that answer that are asked."""


def balance_numbers(scenes: Iterable[Events]) -> Keep:
    """The shares of the questions for numbers that are asked, so that no answer is right in more than half of them.

    Args:
        scenes: The plans of all scenes of a split.
    """
    counts = Counter[tuple[str, str]]()
    for events in scenes:
        if not _overlaps(_in_order(events)):
            counts.update(_numbers([event["label"] for event in events]))
    totals = Counter[str]()
    for (variant, _), count in counts.items():
        totals[variant] += count
    return {
        (variant, answer): min(1.0, (totals[variant] - count) / count) for (variant, answer), count in counts.items()
    }


def scene_details(events: Events, present: Sequence[str], keep: Keep, rng: random.Random) -> Iterator[SceneDetail]:
    """The questions about the details of one scene.

    Args:
        events: The scene's plan.
        present: Names of all sounds in scenes of the split, each as often as it occurs; further options are drawn from
            them.
        keep: Shares of the questions for numbers (`balance_numbers`).
        rng: Source of randomness.
    """
    ordered = _in_order(events)
    if _overlaps(ordered):
        return
    names = [event["label"] for event in ordered]
    yield from _lengths(ordered, rng)
    for variant, answer in _numbers(names):
        if rng.random() < SHARES[variant] * keep[variant, answer]:
            yield SceneDetail("count", variant, answer, COUNTS[:-1])
    if 2 < len(names) <= len(PLACES) and rng.random() < SHARES["nth"]:
        yield _nth(names, present, rng)
    if len(names) > 2 and rng.random() < SHARES["list"]:
        yield SceneDetail("list", "list", ", then ".join(names))


def _in_order(events: Events) -> list[Mapping[str, Any]]:
    """The events in the order in which they begin."""
    return sorted(events, key=lambda event: event["at_s"])


def _overlaps(ordered: Events) -> bool:
    """Whether two sounds are heard at the same time."""
    ends = [event["at_s"] + event["for_s"] - OVERLAP_S for event in ordered]
    return any(end > later["at_s"] for end, later in zip(ends, ordered[1:], strict=False))


def _numbers(names: Sequence[str]) -> list[tuple[str, str]]:
    """Variant and answer of the questions for numbers: how many different sounds, and how many in all."""
    numbers = []
    if len(names) > 2 and len(set(names)) < len(COUNTS):
        numbers.append(("different", COUNTS[len(set(names)) - 1]))
    if len(names) < len(COUNTS):
        numbers.append(("events", COUNTS[len(names) - 1]))
    return numbers


def _lengths(events: Events, rng: random.Random) -> Iterator[SceneDetail]:
    """Which of two sounds lasts longer, or less long."""
    names = [event["label"] for event in events]
    if len(names) != 2 or names[0] == names[1] or abs(events[0]["for_s"] - events[1]["for_s"]) <= LONGER_S:
        return
    by_length = sorted(events, key=lambda event: event["for_s"])
    variant, event = ("longer", by_length[1]) if rng.random() < 0.5 else ("shorter", by_length[0])
    yield SceneDetail("longer", variant, event["label"], tuple(rng.sample(names, 2)))


def _nth(names: Sequence[str], present: Sequence[str], rng: random.Random) -> SceneDetail:
    """Which sound stands at a place, among the others of the scene and sounds of other scenes."""
    place = rng.randrange(len(names))
    choices = [names[place], *sorted(set(names) - {names[place]})]
    confusable = set(names).union(*(label_names.CONFUSABLE.get(name, frozenset()) for name in names))
    absent = sorted(set(rng.sample(present, min(MAX_DRAWN, len(present)))) - confusable)
    choices += rng.sample(absent, min(len(absent), max(0, NTH_CHOICES - len(choices))))
    return SceneDetail("order", "nth", names[place], tuple(rng.sample(choices, len(choices))), PLACES[place])
