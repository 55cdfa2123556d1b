"""Results in the log forms of inspect and lmms-eval: values by hand, and inspect's own reader where it is installed.

`EARWISE_INSPECT_PYTHON` may name a Python that has inspect_ai; it is not a dependency of the tests.
"""

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from earwise import cli
from earwise.engine.base import Prompt
from earwise.evaluation.run import EvalOptions, evaluate, evaluate_with_controls
from earwise.files import read_log
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task

INSPECT_PYTHON = os.environ.get("EARWISE_INSPECT_PYTHON", "")


def answer_some(prompt: Prompt) -> str:
    """Right for the first half of the items; the last one cannot be read."""
    number = int(prompt.key.split("#")[0][-3:])
    hears = number < 8 and prompt.waveforms[0].any()
    return "" if number == 15 else answer_by_pitch(prompt) if hears else "<answer>hiss</answer>"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    task = tone_task(tmp_path, 16)
    task[3] = replace(task[3], choices=(), answer=("hiss", "noise"))
    evaluate_with_controls(ScriptedEngine(answer_some, "a/b c"), task, tmp_path / "run", EvalOptions(permutations=2))
    monkeypatch.chdir(tmp_path)
    return Path("run")


def export(run: Path, form: str, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    assert cli.run(["export-results", str(run), "--to", form, "--out", "logs", "--json"]) == 0
    return [Path(name) for name in json.loads(capsys.readouterr().out)["files"]]


def test_inspect_holds_samples_scores_and_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = export(run, "inspect", capsys)
    assert [path.name.split("_")[1] for path in files] == ["manifest", "manifest-silence", "manifest-shuffled"]
    log = json.loads(files[0].read_text())
    assert (log["version"], log["status"], log["eval"]["config"]) == (2, "success", {"epochs": 1})
    assert len(log["samples"]) == 16 and log["eval"]["dataset"]["samples"] == 16
    rows = {(row["id"], row["permutation"]): row for row in read_log(run / "samples.jsonl")}
    for sample in log["samples"]:
        row = rows[sample["id"], 0]
        assert sample["scores"]["official"]["value"] == row["scores"]["official"]
        assert sample["output"]["choices"][0]["message"]["content"] == row["output"]
        sound, text = sample["input"][0]["content"]
        assert (Path("logs") / sound["audio"]).is_file() and text["text"] == row["prompt"]
    by_id: dict[str, dict[str, Any]] = {each["id"]: each for each in log["samples"]}
    assert by_id["item-003"]["target"] == ["hiss", "noise"] and "choices" not in by_id["item-003"]
    assert "orders" not in by_id["item-003"]["metadata"]
    (order,) = by_id["item-000"]["metadata"]["orders"]
    assert order["choices"] == rows["item-000", 1]["choices"] != by_id["item-000"]["choices"]
    assert by_id["item-015"]["scores"]["official"]["answer"] is None
    (official,) = [score for score in log["results"]["scores"] if score["name"] == "official"]
    rate = sum(row["scores"]["official"] for row in rows.values() if not row["permutation"]) / 16
    assert official["metrics"]["accuracy"]["value"] == rate
    assert official["metrics"]["stderr"]["value"] == pytest.approx(math.sqrt(rate * (1 - rate) / 15))


def test_lmms_eval_holds_results_and_samples(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results_file, samples_file, *controls = export(run, "lmms-eval", capsys)
    assert results_file.parent.name == "a__b__c" and len(controls) == 4
    prefix = results_file.name.removesuffix("_results.json")
    assert samples_file.name == f"{prefix}_samples_manifest.jsonl"
    results = json.loads(results_file.read_text())
    samples = [json.loads(line) for line in samples_file.read_text().splitlines()]
    assert [sample["doc_id"] for sample in samples] == list(range(16))
    metrics = results["results"]["manifest"]
    assert metrics["official,none"] == sum(sample["official"] for sample in samples) / 16
    assert metrics["official,none"] == sum(sample["score"] for sample in samples) / 16
    assert results["higher_is_better"]["manifest"]["official"] and results["n-samples"]["manifest"]["original"] == 16
    assert samples[15]["resps"] == [""] and samples[0]["filtered_resps"] == ["low tone"]


def test_items_without_a_clip_an_answer_or_a_completion_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = [replace(example, answer=()) for example in tone_task(tmp_path, 2)] + tone_task(tmp_path / "b", 4)[2:]
    Path(str(task[3].clips[0].path)).unlink()
    evaluate(ScriptedEngine(answer_by_pitch), task, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (path,) = export(Path("run"), "inspect", capsys)
    log = json.loads(path.read_text())
    assert log["samples"][0]["scores"] == {} and log["samples"][0]["target"] == []
    assert log["samples"][3]["error"]["message"] and log["samples"][3]["scores"]["official"]["value"] == 0
    assert log["results"]["scores"][0]["unscored_samples"] == 2
    assert len(export(Path("run"), "lmms-eval", capsys)) == 2


def test_an_unfinished_run_and_an_unknown_form_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["export-results", str(run), "--to", "evalscope", "--out", "logs"]) == 2
    (run / "metrics.json").unlink()
    assert cli.run(["export-results", str(run), "--to", "inspect", "--out", "logs"]) == 2
    assert "not finished" in capsys.readouterr().err and not Path("logs").exists()


READ = """
import sys
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_samples
for info in list_eval_logs("logs", formats=["json"]):
    log = read_eval_log(info.name)
    samples = list(read_eval_log_samples(info.name))
    right = sum(sample.scores["official"].value == 1 for sample in samples)
    print(info.task, log.status, len(samples), right, log.results.scores[0].metrics["accuracy"].value)
"""


@pytest.mark.skipif(not INSPECT_PYTHON, reason="EARWISE_INSPECT_PYTHON names no Python with inspect_ai")
def test_inspect_reads_the_logs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, "inspect", capsys)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    reader = subprocess.run([INSPECT_PYTHON, "-c", READ], capture_output=True, text=True, env=environment)
    assert reader.returncode == 0, reader.stderr[-2000:]
    lines = {line.split()[0]: line.split()[1:] for line in reader.stdout.splitlines()}
    assert set(lines) == {"manifest", "manifest-silence", "manifest-shuffled"}
    right = sum(row["scores"]["official"] == 1 for row in read_log(run / "samples.jsonl") if not row["permutation"])
    assert lines["manifest"] == ["success", "16", str(right), str(right / 16)]
