"""Benchmark files of invented items are read, recognised by version, and written back without losing an item."""

import json
from pathlib import Path
from typing import Any

import pytest

from earwise.data import manifest
from earwise.errors import ConfigError, DataError
from earwise.evaluation.published import choice_file, submission
from earwise.evaluation.task import Task
from earwise.evaluation.task_table import TASKS, load_task
from earwise.evaluation.tasks import mmar, mmau
from scripted_engine import write_clip

REAL = Path(__file__).parents[4] / "shared" / "benchmarks"


def mmau_row(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"m{number}",
        "audio_id": f"./test-mini-audios/m{number}.wav",
        "question": f"What beeps, number {number}?",
        "choices": ["Oven", "Lorry", "Watch"],
        "answer": "Lorry",
        "dataset": "invented",
        "task": "sound",
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Beeps",
        "difficulty": "easy",
    }
    return {**row, **changes}


def mmar_row(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"r{number}",
        "audio_path": f"./audio/r{number}.wav",
        "question": "Who laughs?",
        "choices": ["A child", "Nobody"],
        "answer": "Nobody",
        "modality": "mix-sound-speech",
        "category": "Signal Layer",
        "sub-category": "Laughter",
        "language": None,
        "source": "invented",
        "thinking": "Nobody laughs here.",
        "cue": ["laughter"],
        "rubric": [{"name": "r"}],
    }
    return {**row, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def test_every_task_of_the_table_loads_and_strangers_are_named() -> None:
    for name in TASKS:
        task = load_task(name)
        assert isinstance(task, Task) and task.name == name and task.source and task.licence
        assert callable(task.load) and callable(task.score) and callable(task.aggregate)
    assert load_task("earwise.evaluation.tasks.mmau:TASK") is mmau.TASK
    assert load_task("earwise.evaluation.tasks.mmau:load").load is mmau.load
    with pytest.raises(ConfigError, match="'mmaux' is none of manifest, mmau, mmar"):
        load_task("mmaux")
    with pytest.raises(ConfigError, match="no 'nothing' in 'json'"):
        load_task("json:nothing")
    with pytest.raises(ConfigError, match="neither a Task nor a function"):
        load_task("earwise.evaluation.tasks.mmau:NAME")


def test_mmau_fields(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "test-mini-audios" / "m1.wav", "low tone", 1)
    (example,) = load_task("mmau").load(write(tmp_path / "mini.json", [mmau_row(1, category=["Reasoning"])]))
    assert example.audio_paths == (clip,) and example.question == "What beeps, number 1?"
    assert example.choices == ("Oven", "Lorry", "Watch") and example.answer == ("Lorry",)
    assert (example.task, example.category, example.difficulty) == ("sound", "Reasoning", "easy")
    assert example.meta["sub-category"] == "Beeps" and example.meta["benchmark"] == "mmau"
    assert example.meta["version"].startswith("unknown (") and "1 items" in example.meta["version"]


@pytest.mark.parametrize("folder", ["elsewhere/test-mini-audios", "elsewhere"])
def test_audio_root_with_or_without_the_sub_folder(tmp_path: Path, folder: str) -> None:
    clip = write_clip(tmp_path / folder / "m1.wav", "low tone", 1)
    (example,) = mmau.load(write(tmp_path / "mini.json", [mmau_row(1)]), tmp_path / "elsewhere")
    assert example.audio_paths[0].samefile(clip)


def test_no_clip_at_all_is_refused_and_single_missing_ones_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "mini.json", [mmau_row(1), mmau_row(2)])
    with pytest.raises(DataError, match=r"none of its 2 clips is there \(first: .*m1.wav\); .*--audio-root"):
        mmau.load(path)
    write_clip(tmp_path / "test-mini-audios" / "m1.wav", "low tone", 1)
    examples = mmau.load(path)
    assert len(examples) == 2 and [clip.name for clip in choice_file.missing_audio(examples)] == ["m2.wav"]


def test_version_depends_on_the_items_not_on_their_order_or_layout(tmp_path: Path) -> None:
    rows = [mmau_row(number) for number in range(5)]
    assert mmau.version(rows) == mmau.version(rows[::-1]) == mmau.version([dict(reversed(row.items())) for row in rows])
    assert mmau.version(rows) != mmau.version([mmau_row(0, answer="Oven"), *rows[1:]])


def test_withdrawn_edits_are_refused() -> None:
    rows = [mmau_row(number, answer="Tractor" if number < 2 else "Oven") for number in range(10)]
    with pytest.raises(DataError, match="2 of 10 answers are not among their options"):
        mmau.version(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no items"),
        ("[{]", "not JSON"),
        ("[]", "holds no items"),
        ('[{"id": "a", "question": "q", "choices": []}]', "item 1 has no audio_id"),
        ('[{"id": "a", "audio_id": "a", "question": "q", "choices": "x"}]', "not a list"),
    ],
)
def test_bad_benchmark_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mini.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        mmau.load(path)


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item 2: id 'm1' stands twice"):
        mmau.load(write(tmp_path / "mini.json", [mmau_row(1), mmau_row(1)]))


def test_mmar_fields_and_the_reasoning_stays_out(tmp_path: Path) -> None:
    write_clip(tmp_path / "audio" / "r1.wav", "low tone", 1)
    (example,) = load_task("mmar").load(write(tmp_path / "meta.jsonl", [mmar_row(1)]))
    assert (example.task, example.category, example.language) == ("mix-sound-speech", "Signal Layer", "")
    assert example.reasoning is None and not {"thinking", "cue", "rubric"} & example.meta.keys()
    assert "Nobody laughs" not in repr(example)


def test_hidden_answers_stay_empty(tmp_path: Path) -> None:
    write_clip(tmp_path / "test-mini-audios" / "m1.wav", "low tone", 1)
    row = mmau_row(1)
    del row["answer"]
    assert mmau.load(write(tmp_path / "test.json", [row]))[0].answer == ()


@pytest.mark.parametrize("name", ["official.json", "official.jsonl"])
def test_official_file_keeps_every_item(tmp_path: Path, name: str) -> None:
    rows = [mmau_row(number) for number in range(3)]
    source = write(tmp_path / "mini.json", rows)
    samples = [
        {"id": "m2", "output": "<answer>Oven</answer>", "answer": "Oven"},
        {"id": "m0", "output": "", "answer": None},
    ]
    assert submission.write_official(tmp_path / name, samples, source=source) == 1
    text = (tmp_path / name).read_text()
    written = json.loads(text) if name.endswith("json") else [json.loads(line) for line in text.splitlines()]
    assert written == [
        {**rows[0], "model_output": ""},
        {**rows[1], "model_output": ""},
        {**rows[2], "model_output": "<answer>Oven</answer>"},
    ]
    submission.write_official(tmp_path / name, samples, source=source, key="model_prediction", field="answer")
    assert '"model_prediction": "Oven"' in (tmp_path / name).read_text()
    with pytest.raises(DataError, match="has no item 'x'"):
        submission.write_official(tmp_path / name, [{"id": "x", "output": "", "answer": None}], source=source)


def test_manifest_task(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", "low tone", 1)
    row = {
        "id": "a",
        "messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "?"}]}],
    }
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({**row, "answer": "x"}) + "\n")
    assert load_task("manifest").load(path) == manifest.read(path)
    assert load_task("manifest").load(path, tmp_path / "b")[0].audio_paths == (tmp_path / "b" / "a.wav",)
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="none of its 1 rows has an answer"):
        load_task("manifest").load(path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real benchmark files are not part of the repository")
def test_the_published_files_are_recognised() -> None:
    rows_by_file = {
        path.name: choice_file.read_rows(path, ("id", "question", "choices")) for path in REAL.glob("mm*.json*")
    }
    assert {name: mmau.version(rows) for name, rows in rows_by_file.items() if name.startswith("mmau")} == {
        "mmau-test-mini.old.json": "test-mini old (1f675a9)",
        "mmau-test-mini.v05.15.25.json": "test-mini v05.15.25 (f0a4a97)",
    }
    assert choice_file.fingerprint(rows_by_file["mmar-meta.jsonl"]) in mmar.VERSIONS
    assert all(len(rows) == 1000 for rows in rows_by_file.values())
    old, new = rows_by_file["mmau-test-mini.old.json"], rows_by_file["mmau-test-mini.v05.15.25.json"]
    assert mmau.version(old[:300]) == "test-mini old (1f675a9), 300 of 1000 items"
    assert mmau.version(new[::2]) == "test-mini v05.15.25 (f0a4a97), 500 of 1000 items"
    by_id = {row["id"]: row for row in old}
    equal = [row for row in new if by_id.get(row["id"]) == row]
    assert mmau.version(equal[:100]) == "test-mini, 100 of 1000 items, which are equal in both editions"
    with pytest.raises(DataError, match=r"\d+ of 1000 items are those of test-mini old .*two editions are mixed"):
        mmau.version([*old[:500], *new[500:]])
    strange = [old[0] | {"question": "What else?"}, *old[1:]]
    assert mmau.version(strange).startswith("unknown (")
    (example,) = mmau.load(REAL / "mmau-test-mini.v05.15.25.json", REAL)[:1]
    assert example.audio_paths[0].is_file()
