"""Benchmarks as tables: rows under their own column names, clips as files, names on a hub."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from earwise.errors import DataError
from earwise.evaluation.published.table_rows import clip_names, dataset_name, rows_of, subset_of, table_location
from earwise.evaluation.tasks import mmsu
from scripted_engine import write_clip

SUBSETS = ("alpacaeval", "alpacaeval_full", "sd-qa", "ifeval")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))


def write_table(path: Path, columns: dict[str, list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def stored(clip: Path) -> dict[str, object]:
    return {"bytes": clip.read_bytes(), "path": clip.name}


def test_stored_clips_become_files_and_columns_keep_their_names(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.wav", "low tone", 1)
    path = write_table(
        tmp_path / "test.parquet",
        {
            "audio": [stored(clip), stored(clip)], "kwargs": [[{"n": 2}], [{"n": None}]],
            "score": [0.5, float("nan")], "prompt": ["Say it.", "Say no."],
        },
    )  # fmt: skip
    first, second = rows_of(path)
    assert Path(first["audio"]).read_bytes() == clip.read_bytes() and Path(first["audio"]).is_absolute()
    assert (first["kwargs"], second["kwargs"]) == ([{"n": 2}], [{"n": None}])
    assert (first["prompt"], first["score"], second["score"]) == ("Say it.", 0.5, None)


def test_a_lettered_benchmark_as_parquet(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.wav", "low tone", 1)
    columns = {
        "id": ["s1"], "audio": [stored(clip)], "task_name": ["emotion"], "question": ["How?"], "choice_a": ["Sad"],
        "choice_b": ["Calm"], "choice_c": [None], "answer_gt": ["Calm"], "category": ["Perception"],
    }  # fmt: skip
    (example,) = mmsu.load(write_table(tmp_path / "train.parquet", columns))
    assert example.choices == ("Sad", "Calm") and example.answer == ("Calm",) and example.task == "Perception"
    assert example.audio_paths[0].read_bytes() == clip.read_bytes()


def test_a_name_on_a_hub_survives_as_a_path() -> None:
    path = Path("hf://datasets/hlt-lab/voicebench@abc?config=sd-qa&split=usa")
    assert dataset_name(path) == "hf://datasets/hlt-lab/voicebench@abc?config=sd-qa&split=usa"
    location = table_location(path)
    assert location is not None and (location.path.as_posix(), location.config) == ("hlt-lab/voicebench", "sd-qa")
    assert (location.split, location.revision) == ("usa", "abc")


@pytest.mark.parametrize(
    ("name", "subset"),
    [
        ("voicebench/alpacaeval/test.jsonl", "alpacaeval"),
        ("voicebench/alpacaeval_full/test.jsonl", "alpacaeval_full"),
        ("voicebench/sd_qa-usa.jsonl", "sd-qa"),
        ("hf://datasets/hlt-lab/voicebench?config=ifeval", "ifeval"),
        ("voicebench/test.jsonl", None),
    ],
    ids=["folder", "longest", "file", "config", "none"],
)
def test_the_subset_that_a_name_says(name: str, subset: str | None) -> None:
    assert subset_of(Path(name), SUBSETS) == subset


def test_clips_of_a_cell_and_files_without_rows(tmp_path: Path) -> None:
    assert clip_names(["a.wav", {"path": "b.wav"}]) == ["a.wav", "b.wav"] and clip_names(None) == []
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no items"):
        rows_of(tmp_path / "empty.jsonl")
