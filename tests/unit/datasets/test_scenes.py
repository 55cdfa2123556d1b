"""Scenes contain what their rows state: order, counts, levels and overlap can be measured in the rendered files."""

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
from earwise.datasets.checks.check_examples import check_examples
from earwise.datasets.labels import acoustics, label_names, render_scenes, scenes
from earwise.errors import AudioError, ConfigError

STARTER = Path(earwise.__file__).parent / "assets" / "starter"
RATE = render_scenes.SAMPLE_RATE
ACOUSTICS = acoustics.ClipAcoustics(1.0, 0.8, -20.0, 0.5, None, None, 0.0, 1)
NAMES = ("dog", "cow", "siren", "car_horn", "owl", "drilling")


def rows(per_class=12):
    label_rows = []
    for number in range(per_class * len(NAMES)):
        label = NAMES[number % len(NAMES)]
        label_rows.append(
            {
                "path": f"{number:03}.ogg", "labels": [label], "category": "sound", "group": f"g{number // 6}",
                "split": "val" if number < 18 else "train", "licence": ("CC0", "CC BY 4.0")[number % 2], "source": "S",
            }
        )  # fmt: skip
    return label_rows


def plan(label_rows=None, **settings):
    label_rows = rows() if label_rows is None else label_rows
    measurements = {row["path"]: ACOUSTICS for row in label_rows}
    return scenes.plan_scenes(label_rows, measurements, **{"seed": 0, **settings})


def test_clips_that_make_no_scene_are_counted():
    label_rows = rows()
    label_rows[0] |= {"category": "speech"}
    label_rows[1] |= {"labels": ["dog", "cow"]}
    measurements = {row["path"]: ACOUSTICS for row in label_rows} | {
        label_rows[2]["path"]: replace(ACOUSTICS, bursts=0)
    }
    excluded = Counter()
    scenes.plan_scenes(label_rows, measurements, excluded=excluded)
    assert sorted(excluded.values()) == [1, 1, 1] and "clips for scenes: no clear event of 0.1 s" in excluded


@cache
def starter_clips():
    """Label rows and measurements of some of the bundled sounds and instruments."""
    label_rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    label_rows = [row for row in label_rows if row["category"] != "speech"][::8]
    return label_rows, {row["path"]: acoustics.measure(decode(STARTER / row["path"]), RATE) for row in label_rows}


def test_scenes_depend_only_on_rows_and_seed():
    label_rows = rows()
    assert plan(label_rows) == plan(label_rows[::-1]) != plan(label_rows, seed=1)
    assert len({scene.name for scene in plan(label_rows)}) == len(plan(label_rows))


def test_no_scene_mixes_splits():
    for scene in plan():
        assert len({row["split"] for row in scene.rows}) == 1
    assert {scene.rows[0]["split"] for scene in plan(split="val")} == {"val"}


def test_order_follows_from_the_events_and_names_are_balanced():
    planned = [scene for scene in plan(tasks=("order",))]
    for scene in planned:
        first, second = scene.events
        assert first.at_s + first.for_s + scenes.GAP_S[0] <= second.at_s + 1e-3
        assert scene.answer == (first if scene.variant == "first" else second).name
        assert set(scene.choices) == {first.name, second.name}
    answers = Counter(scene.answer for scene in planned)
    choices = Counter(choice for scene in planned for choice in scene.choices)
    assert choices == {name: 2 * count for name, count in answers.items()}
    assert len(planned) >= 60 and {scene.variant for scene in planned} == {"first", "last"}


def test_counts():
    planned = plan(tasks=("count",), n_choices=4)
    for scene in planned:
        name = next(
            name for name in map(label_names.display_name, NAMES) if label_names.with_article(name) in scene.question
        )
        assert scene.answer == scenes.COUNTS[sum(event.name == name for event in scene.events) - 1]
        assert len(set(scene.choices)) == 4 and scene.answer in scene.choices
    answers = Counter(scene.answer for scene in planned)
    assert set(answers) == set(scenes.COUNTS) and max(answers.values()) - min(answers.values()) <= 2
    several = replace(ACOUSTICS, bursts=2)
    label_rows = rows()
    assert scenes.plan_scenes(label_rows, {row["path"]: several for row in label_rows}, tasks=("count",)) == []


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
    label_rows = rows()
    measurements = {row["path"]: ACOUSTICS for row in label_rows}
    label_rows[20]["labels"] = ["dog", "rain"]
    measurements["030.ogg"] = replace(ACOUSTICS, bursts=0, sounding_s=0.0)
    del measurements["040.ogg"]
    used = {event.path for scene in scenes.plan_scenes(label_rows, measurements) for event in scene.events}
    assert len(used) > 60 and not used & {"020.ogg", "030.ogg", "040.ogg"}
    with pytest.raises(ConfigError, match="riddles"):
        scenes.plan_scenes(label_rows, measurements, tasks=("riddles",))


def test_levels_of_rendered_real_clips(tmp_path):
    label_rows, measurements = starter_clips()
    planned = scenes.plan_scenes(label_rows, measurements, seed=3, tasks=("louder", "order"), limit=8)
    examples = list(render_scenes.write_scenes(planned, STARTER, tmp_path / "clips"))
    assert len(examples) == len(planned) >= 16
    margins = []
    for scene, example in zip(planned, examples, strict=True):
        waveform = decode(example.audio_paths[0])
        levels = []
        for event in scene.events:
            start, end = num_samples(event.at_s, RATE), num_samples(event.at_s + event.for_s, RATE)
            levels.append(acoustics.loudness(waveform[start:end], RATE))
        assert min(levels) > -60  # both clips are audible
        if scene.task == "louder":
            names = [event.name for event in scene.events]
            answer = names.index(scene.answer)
            margins.append((levels[answer] - levels[1 - answer]) * (1 if scene.variant == "louder" else -1))
    assert min(margins) > 3 and np.median(margins) > 7


def test_files_are_made_once_and_equal(tmp_path):
    label_rows, measurements = starter_clips()
    planned = scenes.plan_scenes(label_rows, measurements, limit=2, split="train")
    first = list(render_scenes.write_scenes(planned, STARTER, tmp_path / "a"))
    modified = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert list(render_scenes.write_scenes(planned, STARTER, tmp_path / "a")) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == modified
    second = list(render_scenes.write_scenes(planned, STARTER, tmp_path / "b"))
    for example, again in zip(first, second, strict=True):
        assert audio_sha256(example.audio_paths[0]) == audio_sha256(again.audio_paths[0])
    manifest.write(tmp_path / "m.jsonl", first)
    read = manifest.read(tmp_path / "m.jsonl")
    assert [example.answer for example in read] == [example.answer for example in first]
    assert check_examples(read)["broken"] == [] and len(read[0].meta["clip_groups"]) >= 1


def test_a_clip_that_cannot_be_decoded_costs_its_scenes_only(tmp_path):
    label_rows, measurements = starter_clips()
    planned = scenes.plan_scenes(label_rows, measurements, limit=3, split="train", tasks=("order",))
    broken = planned[0].events[0].path
    (tmp_path / "clips").mkdir()
    for row in label_rows:
        if row["path"] != broken:
            (tmp_path / row["path"]).symlink_to(STARTER / row["path"])
    errors = []
    examples = list(render_scenes.write_scenes(planned, tmp_path, tmp_path / "out", on_error=errors.append))
    assert len(examples) == len(planned) - len(errors) and 1 <= len(errors) < len(planned)
    with pytest.raises(AudioError, match="no such file"):
        list(render_scenes.write_scenes(planned, tmp_path, tmp_path / "out2"))


def test_licences_of_all_clips_are_named():
    example = render_scenes._example(
        next(scene for scene in plan() if len({r["licence"] for r in scene.rows}) == 2), Path()
    )
    assert example.licence == "CC BY 4.0 + CC0" and set(example.meta["clip_groups"]) >= {example.group}


def test_the_command_line_builds_checks_and_fails_strictly(tmp_path, capsys):
    label_rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    label_rows = [row for row in label_rows if row["category"] != "speech" and row["split"] == "train"][::6]
    for row in label_rows:
        (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
        (tmp_path / row["path"]).symlink_to(STARTER / row["path"])
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in label_rows))
    out = tmp_path / "out" / "scenes.jsonl"
    line = ["build", "labels", str(tmp_path), "--out", str(out), "--tasks", "compare,order,odd_one_out", "--limit", "6"]
    assert cli.run([*line, "--workers", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    tasks = summary["tasks"]
    assert tasks["order"] >= 4 and tasks["odd_one_out"] >= 4 and tasks["compare"] >= 6
    read = manifest.read(out)
    assert (
        len(read) == summary["questions"] and "<h1>scenes.jsonl</h1>" in (out.parent / "scenes.checks.html").read_text()
    )
    assert (out.parent / "scenes.checks.json").is_file()
    fingerprints = tmp_path / "benchmark.prints"
    assert cli.run(["build", "check", str(out), "--prints", str(fingerprints), "--workers", "1"]) == 0
    scene = next(example for example in read if example.task == "order")
    copied = replace(scene, turns=read[-1].turns, id="copied")
    manifest.write(out.parent / "copied.jsonl", [copied])
    assert (
        cli.run(["build", "check", str(out.parent / "copied.jsonl"), "--against", str(fingerprints), "--strict"]) == 2
    )
    assert "benchmark:" in capsys.readouterr().err
    assert cli.run(["build", "labels", str(tmp_path), "--out", str(out), "--tasks", "riddles"]) == 2
