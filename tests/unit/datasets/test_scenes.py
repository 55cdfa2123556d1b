"""Scenes hold what their rows say: order, counts, levels and overlap are heard in the rendered files."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import earwise
from earwise import cli
from earwise.audio import audio_sha256, decode, num_samples
from earwise.data import manifest
from earwise.datasets.checks import check_examples
from earwise.datasets.labels import acoustics, label_names, scenes
from earwise.errors import AudioError, ConfigError

STARTER = Path(earwise.__file__).parent / "assets" / "starter"
RATE = scenes.SAMPLE_RATE
FACTS = acoustics.Facts(1.0, 0.8, -20.0, 0.5, None, None, 0.0, 1)
NAMES = ("dog", "cow", "siren", "car_horn", "owl", "drilling")


def rows(per_class=12):
    made = []
    for number in range(per_class * len(NAMES)):
        label = NAMES[number % len(NAMES)]
        made.append(
            {
                "path": f"{number:03}.ogg", "labels": [label], "category": "sound", "group": f"g{number // 6}",
                "split": "val" if number < 18 else "train", "licence": ("CC0", "CC BY 4.0")[number % 2], "source": "S",
            }
        )  # fmt: skip
    return made


def plan(listed=None, **settings):
    listed = rows() if listed is None else listed
    facts = {row["path"]: FACTS for row in listed}
    return scenes.plan(listed, facts, **{"seed": 0, **settings})


def test_clips_that_make_no_scene_are_counted():
    listed = rows()
    listed[0] |= {"category": "speech"}
    listed[1] |= {"labels": ["dog", "cow"]}
    facts = {row["path"]: FACTS for row in listed} | {listed[2]["path"]: replace(FACTS, bursts=0)}
    left_out = Counter()
    scenes.plan(listed, facts, left_out=left_out)
    assert sorted(left_out.values()) == [1, 1, 1] and "clips for scenes: no clear event of 0.1 s" in left_out


@cache
def real():
    """Some of the bundled sounds and instruments, measured."""
    listed = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    listed = [row for row in listed if row["category"] != "speech"][::8]
    return listed, {row["path"]: acoustics.measure(decode(STARTER / row["path"]), RATE) for row in listed}


def test_everything_follows_from_rows_and_seed():
    listed = rows()
    assert plan(listed) == plan(listed[::-1]) != plan(listed, seed=1)
    assert len({scene.name for scene in plan(listed)}) == len(plan(listed))


def test_no_scene_mixes_splits():
    for scene in plan():
        assert len({row["split"] for row in scene.rows}) == 1
    assert {scene.rows[0]["split"] for scene in plan(split="val")} == {"val"}


def test_order_is_what_the_events_say_and_names_tell_nothing():
    made = [scene for scene in plan(tasks=("order",))]
    for scene in made:
        first, second = scene.events
        assert first.at_s + first.for_s + scenes.GAP_S[0] <= second.at_s + 1e-3
        assert scene.answer == (first if scene.variant == "first" else second).name
        assert set(scene.choices) == {first.name, second.name}
    answers = Counter(scene.answer for scene in made)
    listed = Counter(choice for scene in made for choice in scene.choices)
    assert listed == {name: 2 * count for name, count in answers.items()}
    assert len(made) >= 60 and {scene.variant for scene in made} == {"first", "last"}


def test_counts():
    made = plan(tasks=("count",), n_choices=4)
    for scene in made:
        name = next(
            name for name in map(label_names.display_name, NAMES) if label_names.with_article(name) in scene.question
        )
        assert scene.answer == scenes.COUNTS[sum(event.name == name for event in scene.events) - 1]
        assert len(set(scene.choices)) == 4 and scene.answer in scene.choices
    answers = Counter(scene.answer for scene in made)
    assert set(answers) == set(scenes.COUNTS) and max(answers.values()) - min(answers.values()) <= 2
    several = replace(FACTS, bursts=2)
    listed = rows()
    assert scenes.plan(listed, {row["path"]: several for row in listed}, tasks=("count",)) == []


def test_odd_one_out_and_overlap():
    for scene in plan(tasks=("odd_one_out",)):
        names = [event.name for event in scene.events]
        odd = label_names.ORDINALS.index(scene.answer)
        assert names.count(names[odd]) == 1 and len(set(names)) == 2 and len(scene.choices) == len(names)
    for scene in plan(tasks=("overlap",)):
        first, second = scene.events
        shared = first.at_s + first.for_s - second.at_s
        assert (shared > 0.5 * min(first.for_s, second.for_s)) == (scene.answer == "at the same time")
        assert shared > 0 or scene.answer == "one after the other"


def test_unclear_clips_are_not_used():
    listed = rows()
    facts = {row["path"]: FACTS for row in listed}
    listed[20]["labels"] = ["dog", "rain"]
    facts["030.ogg"] = replace(FACTS, bursts=0, sounding_s=0.0)
    del facts["040.ogg"]
    used = {event.path for scene in scenes.plan(listed, facts) for event in scene.events}
    assert len(used) > 60 and not used & {"020.ogg", "030.ogg", "040.ogg"}
    with pytest.raises(ConfigError, match="riddles"):
        scenes.plan(listed, facts, tasks=("riddles",))


def test_levels_counts_and_order_are_heard_in_real_clips(tmp_path):
    listed, facts = real()
    made = scenes.plan(listed, facts, seed=3, tasks=("louder", "order"), limit=8)
    examples = list(scenes.write(made, STARTER, tmp_path / "clips"))
    assert len(examples) == len(made) >= 16
    margins = []
    for scene, example in zip(made, examples, strict=True):
        wave = decode(example.audio_paths[0])
        levels = []
        for event in scene.events:
            start, end = num_samples(event.at_s, RATE), num_samples(event.at_s + event.for_s, RATE)
            levels.append(acoustics.loudness(wave[start:end], RATE))
        assert min(levels) > -60  # both are there
        if scene.task == "louder":
            names = [event.name for event in scene.events]
            answer = names.index(scene.answer)
            margins.append((levels[answer] - levels[1 - answer]) * (1 if scene.variant == "louder" else -1))
    assert min(margins) > 3 and np.median(margins) > 7


def test_files_are_made_once_and_equal(tmp_path):
    listed, facts = real()
    made = scenes.plan(listed, facts, limit=2, split="train")
    first = list(scenes.write(made, STARTER, tmp_path / "a"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert list(scenes.write(made, STARTER, tmp_path / "a")) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == kept
    second = list(scenes.write(made, STARTER, tmp_path / "b"))
    for one, other in zip(first, second, strict=True):
        assert audio_sha256(one.audio_paths[0]) == audio_sha256(other.audio_paths[0])
    manifest.write(tmp_path / "m.jsonl", first)
    read = manifest.read(tmp_path / "m.jsonl")
    assert [example.answer for example in read] == [example.answer for example in first]
    assert check_examples.check(read)["broken"] == [] and len(read[0].meta["clip_groups"]) >= 1


def test_a_clip_that_cannot_be_decoded_costs_its_scenes_only(tmp_path):
    listed, facts = real()
    made = scenes.plan(listed, facts, limit=3, split="train", tasks=("order",))
    broken = made[0].events[0].path
    (tmp_path / "clips").mkdir()
    for row in listed:
        if row["path"] != broken:
            (tmp_path / row["path"]).symlink_to(STARTER / row["path"])
    told = []
    examples = list(scenes.write(made, tmp_path, tmp_path / "out", failed=told.append))
    assert len(examples) == len(made) - len(told) and 1 <= len(told) < len(made)
    with pytest.raises(AudioError, match="no such file"):
        list(scenes.write(made, tmp_path, tmp_path / "out2"))


def test_licences_of_all_clips_are_named():
    example = scenes._example(next(scene for scene in plan() if len({r["licence"] for r in scene.rows}) == 2), Path())
    assert example.licence == "CC BY 4.0 + CC0" and set(example.meta["clip_groups"]) >= {example.group}


def test_the_command_line_builds_checks_and_fails_strictly(tmp_path, capsys):
    listed = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    listed = [row for row in listed if row["category"] != "speech" and row["split"] == "train"][::6]
    for row in listed:
        (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
        (tmp_path / row["path"]).symlink_to(STARTER / row["path"])
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    out = tmp_path / "out" / "asked.jsonl"
    line = ["build", "labels", str(tmp_path), "--out", str(out), "--tasks", "compare,order,odd_one_out", "--limit", "6"]
    assert cli.run([*line, "--workers", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tasks"]["order"] >= 4 and told["tasks"]["odd_one_out"] >= 4 and told["tasks"]["compare"] >= 6
    read = manifest.read(out)
    assert len(read) == told["questions"] and "<h1>asked.jsonl</h1>" in (out.parent / "asked.checks.html").read_text()
    assert (out.parent / "asked.checks.json").is_file()
    prints = tmp_path / "benchmark.prints"
    assert cli.run(["build", "check", str(out), "--prints", str(prints), "--workers", "1"]) == 0
    scene = next(example for example in read if example.task == "order")
    stolen = replace(scene, turns=read[-1].turns, id="stolen")
    manifest.write(out.parent / "stolen.jsonl", [stolen])
    assert cli.run(["build", "check", str(out.parent / "stolen.jsonl"), "--against", str(prints), "--strict"]) == 2
    assert "benchmark:" in capsys.readouterr().err
    assert cli.run(["build", "labels", str(tmp_path), "--out", str(out), "--tasks", "riddles"]) == 2
