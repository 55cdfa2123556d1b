"""The Java programs of captions: what is said where they are not there, and what becomes of one that fails."""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmark_files import write_tone
from earwise.apps.task_audit import audit
from earwise.errors import ConfigError
from earwise.evaluation.metrics.java.programs import (
    METEOR_FILES,
    SPICE_FILES,
    VARIABLE,
    find_programs,
    meteor_counts,
    missing_scores,
    spice_scores,
)
from earwise.evaluation.run import evaluate
from earwise.evaluation.task_table import load_task
from earwise.types import Audio, Example, Text, Turn
from scripted_engine import ScriptedEngine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of programs, and a Java of which a test decides what it does."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv(VARIABLE, str(programs))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    write_java(tmp_path, "exit 0")
    return programs


def write_java(tmp_path: Path, script: str) -> None:
    java = tmp_path / "bin" / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)


def put(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def caption_examples(tmp_path: Path) -> list[Example]:
    examples = []
    for number, text in enumerate(("A dog barks.", "Rain falls on a roof.")):
        write_tone(tmp_path / f"{number}.wav", 300 + 100 * number)
        turn = Turn("user", (Audio(str(tmp_path / f"{number}.wav")), Text("Describe the audio.")))
        examples.append(Example(str(number), (turn,), (text,)))
    return examples


def test_what_is_missing_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = "METEOR, SPICE and SPIDEr are not computed: "
    assert missing_scores(find_programs()) == everything + "programs holds no meteor/meteor-1.5.jar"
    put(folder, METEOR_FILES)
    put(folder, SPICE_FILES[:1])
    remark = missing_scores(find_programs())
    assert remark is not None and remark.startswith("SPICE and SPIDEr are not computed: programs holds no spice/lib/")
    put(folder, SPICE_FILES)
    assert missing_scores(find_programs()) is None
    monkeypatch.setenv(VARIABLE, "off")
    assert missing_scores(find_programs()) == everything + "EARWISE_CAPTION_PROGRAMS is off"
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing_scores(find_programs()) == everything + "there is no Java"


def test_a_run_without_the_programs_says_so(folder: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda prompt: "A dog barks.")
    metrics = evaluate(engine, caption_examples(tmp_path), tmp_path / "run", task=load_task("captions"))
    assert metrics["remarks"] == ["METEOR, SPICE and SPIDEr are not computed: programs holds no meteor/meteor-1.5.jar"]
    assert set(metrics["accuracy"]) == {"cider_d", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"}


@pytest.mark.parametrize("script", ["echo out of memory >&2; exit 1", "echo nonsense"], ids=["fails", "nonsense"])
def test_a_program_that_fails_is_one_line_with_a_remedy(folder: Path, tmp_path: Path, script: str) -> None:
    put(folder, METEOR_FILES)
    put(folder, SPICE_FILES)
    write_java(tmp_path, script)
    for call in (meteor_counts, spice_scores):
        with pytest.raises(ConfigError, match=f"set {VARIABLE}=off to score") as error:
            call(find_programs(), ["a dog"], [["a dog"]])
        assert "\n" not in str(error.value)
    engine = ScriptedEngine(lambda prompt: "A dog barks.")
    with pytest.raises(ConfigError):
        evaluate(engine, caption_examples(tmp_path), tmp_path / "run", task=load_task("captions"))
    assert (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").count("\n") == 2, "answers are kept"


def test_spice_and_spider_are_read_from_the_programs_form(folder: Path, tmp_path: Path) -> None:
    """The program's output by hand, as the tool kit's own caller reads it: F1 of all, by id and in any order."""
    put(folder, SPICE_FILES)
    rows = '[{"image_id": 1, "scores": {"All": {"f": 0.5}}}, {"image_id": 0, "scores": {"All": {"f": 0.25}}}]'
    find_out = 'for last; do [ "$prev" = -out ] && out="$last"; prev="$last"; done'
    write_java(tmp_path, f"{find_out}\necho '{rows}' > \"$out\"")
    assert spice_scores(find_programs(), ["a dog", "rain"], [["a dog"], ["rain"]]) == [0.25, 0.5]
    engine = ScriptedEngine(lambda prompt: "A dog barks.")
    metrics = evaluate(engine, caption_examples(tmp_path), tmp_path / "run", task=load_task("captions"))
    cider = metrics["accuracy"]["cider_d"]["accuracy"]
    assert metrics["accuracy"]["spice"]["accuracy"] == 0.375
    assert metrics["accuracy"]["spider"]["accuracy"] == pytest.approx((cider + 0.375) / 2)


def test_the_real_program_scores_a_run(tmp_path: Path) -> None:
    if reason := find_programs().missing(METEOR_FILES):
        pytest.skip(reason)
    results = audit(load_task("captions"), caption_examples(tmp_path))
    assert results["perfect"]["metrics"]["meteor"]["accuracy"] == pytest.approx(1.0)
    assert results["empty"]["metrics"]["meteor"]["accuracy"] == 0
    counts = meteor_counts(find_programs(), ["", "a ||| b"], [["a dog"], ["a b"]])
    assert counts.shape == (2, 23) and not np.isnan(counts).any()
