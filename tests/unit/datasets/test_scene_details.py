"""Details of scenes are what the plan says, numbers do not give themselves away, and what is absent is refused."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from earwise.datasets.labels.varied.refusals import ANSWERS, build_refusals
from earwise.datasets.labels.varied.scene_details import balance_numbers, scene_details
from earwise.datasets.labels.varied.scene_questions import vary_scenes
from earwise.datasets.labels.varied.wordings import question_wordings
from earwise.types import Audio, Example, Text, Turn


def plan(*names: str, lengths: tuple[float, ...] | None = None, gap: float = 0.5) -> list[dict[str, Any]]:
    """Sounds one after the other; in the manifest they stand in any order."""
    events, at = [], 0.1
    for name, length in zip(names, lengths or (1.0,) * len(names), strict=True):
        events.append({"label": name, "at_s": at, "for_s": length})
        at += length + gap
    return events[::-1]


def scene(number: int, events: list[dict[str, Any]], split: str = "train") -> Example:
    first, last = events[-1]["label"], events[0]["label"]
    meta, task = {"events": events, "field": "first"}, "order" if len(events) == 2 else "odd"
    turn = Turn("user", (Audio(f"s{number}.flac"), Text("Which sound is first?")))
    return Example(f"s{number}", (turn,), (first,), (first, last), task=task, split=split, meta=meta)  # type: ignore[arg-type]


def details(events: list[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Variant -> the question, over many draws."""
    keep = {(variant, answer): 1.0 for variant in ("different", "events") for answer in ("one", "two", "three", "four")}
    present = ["owl", "bell", "cow", "rain", "dog"] * 3
    return {
        detail.variant: detail
        for draw in range(40)
        for detail in scene_details(events, present, keep, random.Random(f"{seed}:{draw}"))
    }


def test_lengths_numbers_places_and_lists_are_those_of_the_plan() -> None:
    two = details(plan("owl", "bell", lengths=(0.4, 2.0)))
    assert set(two) == {"longer", "shorter", "events"}
    assert (two["longer"].answer, two["shorter"].answer, two["events"].answer) == ("bell", "owl", "two")
    three = details(plan("owl", "bell", "owl"))
    assert set(three) == {"different", "events", "nth", "list"}
    assert (three["different"].answer, three["events"].answer) == ("two", "three")
    assert three["list"].answer == "owl, then bell, then owl" and not three["list"].choices
    for seed in range(20):
        nth = details(plan("owl", "bell", "cow", "owl", "dog"), seed)["nth"]
        place = ("first", "second", "third", "fourth", "fifth").index(nth.place)
        assert nth.answer == ("owl", "bell", "cow", "owl", "dog")[place] and nth.answer in nth.choices
        assert len(set(nth.choices)) == len(nth.choices) >= 3


def test_what_is_not_certain_is_not_asked() -> None:
    assert not details(plan("owl", "bell", gap=-0.4)), "two sounds at once"
    assert "longer" not in details(plan("owl", "bell", lengths=(1.0, 1.6))), "about as long"
    assert "longer" not in details(plan("owl", "owl", lengths=(0.4, 2.0))), "the same sound"
    assert "events" not in details(plan(*["owl"] * 5)), "more than the options"


def test_no_number_is_right_in_more_than_half_of_the_questions() -> None:
    plans = [plan("owl", "bell")] * 90 + [plan("owl", "bell", "owl")] * 9 + [plan("owl", "bell", "cow", "dog")]
    keep = balance_numbers(plans)
    assert keep["events", "two"] == 10 / 90 and keep["events", "three"] == 1
    assert keep["different", "two"] == 1 / 9 and keep["different", "four"] == 1
    scenes = [scene(number, events) for number, events in enumerate(plans * 20)]
    rows = list(vary_scenes(scenes, {}, seed=1))
    answers = Counter(row.answer[0] for row in rows if row.meta["field"] == "events")
    assert 0.3 < answers["two"] / sum(answers.values()) < 0.7
    assert len({row.id for row in rows}) == len(rows)


def test_validation_has_wordings_of_its_own_and_lists_its_options() -> None:
    names = [("owl", "bell", "cow"), ("dog", "rain", "dog"), ("cow", "owl")] * 20
    plans = [plan(*each, lengths=(0.3, 2.0, 1.0)[: len(each)]) for each in names]
    for split in ("train", "val"):
        rows = list(vary_scenes([scene(n, events, split) for n, events in enumerate(plans)], {}, seed=3))
        asked: dict[str, set[str]] = {}
        for row in rows:
            question = next(part.text for part in row.turns[0].parts if isinstance(part, Text))
            asked.setdefault(row.meta["field"], set()).add(question)
            assert split == "train" or (row.choices and row.answer[0] in row.choices)
        assert {"longer", "shorter", "different", "events", "nth"} <= set(asked)
        for variant in ("longer", "shorter", "different", "events"):
            assert asked[variant] <= set(question_wordings()[f"scene.{variant}"].of_split(split))
        assert ("list" in asked) == (split == "train")


def row(path: str, category: str, *labels: str, split: str = "train") -> dict[str, Any]:
    return {"path": path, "labels": list(labels), "category": category, "group": path, "split": split}


def test_what_is_not_in_a_clip_is_refused_and_only_where_that_is_certain() -> None:
    rows = [row(f"{kind}{n}.ogg", kind, label, split=split) for split in ("train", "val") for n in range(100)
            for kind, label in (("sound", "dog"), ("music", "flute"), ("speech", "english"))]  # fmt: skip
    rows += [row(f"street{n}.ogg", "sound", "street_music") for n in range(100)]
    rows += [row(f"choir{n}.ogg", "music", "flute", "choir") for n in range(100)]
    examples = build_refusals([{**each, "path": f"{each['split']}/{each['path']}"} for each in rows], Path(), seed=1)
    asked = Counter((example.category, example.meta["field"]) for example in examples)
    assert set(asked) == {("sound", "instrument"), ("sound", "speech"), ("music", "animal"), ("music", "speech"),
                          ("speech", "instrument")}  # fmt: skip
    assert not [example for example in examples if "street" in example.id or "choir" in example.id]
    assert 0.25 < len(examples) / 600 < 0.45
    for example in examples:
        question = next(part.text for part in example.turns[0].parts if isinstance(part, Text))
        field = example.meta["field"]
        assert question in question_wordings()[f"absent.{field}"].of_split(example.split)
        assert example.answer == (ANSWERS[field],) and not example.choices
