"""Benchmarks whose answers are hidden: asked by the real command, without a score, and written for submission."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import benchmark_files
from chat_server import choose_by_loudness, run_chat_server
from earwise.cli import run as run_earwise


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    with run_chat_server(choose_by_loudness) as chat:
        yield f"{chat.url}#m"


@pytest.fixture
def evaluate(model: str, own_home: None, tmp_path: Path) -> Callable[[str, Path], Path]:
    """Evaluates a file without controls; returns the folder of the run."""

    def run(task: str, data: Path) -> Path:
        arguments = ["evaluate", "--task", task, "--data", str(data), "--model", model, "--style", "answer"]
        assert run_earwise([*arguments, "--no-controls", "--out", str(tmp_path / "run")]) == 0
        return tmp_path / "run"

    return run


def without_answers(path: Path) -> Path:
    """The file with its answers taken out."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    hidden = [{name: value for name, value in row.items() if name != "answer"} for row in rows]
    path.write_text(json.dumps(hidden) if path.suffix == ".json" else "\n".join(map(json.dumps, hidden)) + "\n")
    return path


def unlabelled(out: Path) -> tuple[object, int]:
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics["accuracy"], metrics["unlabelled"]


@pytest.mark.parametrize(
    ("task", "key", "num_items"), [("mmau", "model_output", 3), ("adqa", "prediction", 2)], ids=["mmau", "adqa"]
)
def test_hidden_answers(evaluate: Callable[..., Path], tmp_path: Path, task: str, key: str, num_items: int) -> None:
    data = without_answers(benchmark_files.FILES[task](tmp_path / "data"))
    out = evaluate(task, data)
    assert unlabelled(out) == (None, num_items)
    predictions = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert len(predictions) == num_items and not any("answer" in row for row in predictions)
    for row in predictions:
        options = row["choices"] if isinstance(row["choices"], list) else []
        assert row[key] in options or not options


def test_hidden_answers_of_a_parquet_file(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    benchmark_files.mmau(tmp_path / "data")
    clip = tmp_path / "data/test-mini-audios/m0.wav"
    columns = {
        "question_id": ["u1"], "question": ["Which?"], "choices": ['["Rain", "Wind"]'], "answer": [None],
        "task": ["sound"], "audio": [{"bytes": clip.read_bytes(), "path": "m0.wav"}],
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "test.parquet")
    out = evaluate("mmau", tmp_path / "test.parquet")
    (row,) = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert row["id"] == "u1" and row["model_output"] in ("Rain", "Wind") and unlabelled(out) == (None, 1)


def test_dcase2025_writes_its_csv(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    data = benchmark_files.dcase2025(tmp_path / "data")
    for file in data.glob("*.json"):
        without = {name: value for name, value in json.loads(file.read_text()).items() if name != "answer"}
        file.write_text(json.dumps(without))
    out = evaluate("dcase2025", data)
    with (out / "predictions.csv").open(newline="") as file:
        heading, *rows = list(csv.reader(file))
    assert heading == ["question", "answer"] and [row[0] for row in rows] == ["part1_0", "part2_0", "part3_0"]
    assert all(row[1] in ("A. Writing", "B. Door", "C. Laugh", "D. Cough") for row in rows)
    first = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert sorted(first["choices"]) == ["Cough", "Door", "Laugh", "Writing"], "shuffled options have no letters"


def test_air_bench_chat_writes_what_its_own_judge_reads(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    out = evaluate("airbench-chat", benchmark_files.airbench_chat(tmp_path / "data"))
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    fields = {"meta_info", "question", "answer_gt", "path", "task_name", "dataset_name", "response", "uniq_id"}
    assert len(rows) == 5 and all(row.keys() == fields and row["response"] for row in rows)
