"""Everything that the commands of `earwise build` do can be done in Python with one call for each data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earwise import progress
from earwise.data import manifest
from earwise.datasets.difficulty import AttemptSettings, DifficultyOptions, build_difficulty
from earwise.datasets.preferences import PreferenceOptions, build_preferences
from earwise.datasets.reasonaqa.builder import ReasonAQAOptions, TeacherRun, build_reasonaqa, plan_reasonaqa
from earwise.datasets.reasonaqa.task_list import KINDS
from earwise.datasets.reasonaqa.template_replies import TEMPLATE_REPLIES
from earwise.datasets.teachers.teacher import RemoteTeacher, TemplateTeacher
from earwise.datasets.xs_cot.builder import XSCoTModels, XSCoTOptions, build_xs_cot, plan_xs_cot
from earwise.datasets.xs_cot.instructions import CORE_LANGUAGE, InstructionFiles, InstructionPair, load_instructions
from earwise.errors import ConfigError, DataError
from earwise.types import Example, Waveform
from scripted_engine import ScriptedEngine, answer_by_pitch, answer_first_option, tone_task


def write_captions(folder: Path, num_clips: int) -> Path:
    """A caption file in Clotho's form, whose clips do not exist."""
    header = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    lines = [f"clip {n}.wav," + ",".join(f"sound {n} take {take}" for take in range(5)) for n in range(num_clips)]
    path = folder / "clotho_captions_evaluation.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_build_reasonaqa(tmp_path: Path) -> None:
    files = [("clotho", write_captions(tmp_path, 6))]
    out, lines = tmp_path / "out.jsonl", list[str]()
    run = TeacherRun(TemplateTeacher(TEMPLATE_REPLIES), tmp_path / "log")
    options = ReasonAQAOptions(kinds=KINDS, on_missing="keep")
    assert plan_reasonaqa(files, run, options).requests == 6 + 3 * 30
    result = build_reasonaqa(files, out, run, options, on_skip=pytest.fail, notify=lines.append)
    assert result.num_rows == len(manifest.read(out, check_files=False)) == 30 + 18 + 90 + 30 + 30
    assert result.tasks["caption"] == 30 and result.subsets["CLD", "test"] == 90
    assert result.teacher_summary is not None and result.teacher_summary.asked == 6 + 3 * 30
    assert lines[0] == "6 captioned clips" and plan_reasonaqa(files, run, options).already == 6 + 3 * 30
    shard = TeacherRun(run.teacher, tmp_path / "shards", shard=(1, 2))
    part = build_reasonaqa(files, tmp_path / "part.jsonl", shard, options)
    assert part.num_rows is None and not (tmp_path / "part.jsonl").exists()
    with pytest.raises(ConfigError, match="nothing of this is asked of a teacher"):
        build_reasonaqa(files, out, shard, ReasonAQAOptions(on_missing="keep"))
    with pytest.raises(DataError, match=r"no row came out, 6 were left out \(first: .*--missing keep"):
        build_reasonaqa(files, out, run, options=ReasonAQAOptions(on_missing="skip"))
    with pytest.raises(ConfigError, match="kind 'mcq' is none of"):
        ReasonAQAOptions(kinds=("mcq",))


class ToneVoice:
    """A voice that speaks every text as the same tone."""

    name = "tone"

    def needs_reading(self, language: str) -> bool:
        return False

    def speak(self, text: str, language: str) -> Waveform:
        return (0.3 * np.sin(np.arange(8000) / 5)).astype(np.float32)


class EchoRecogniser:
    """A recogniser that returns the texts of `pairs` in their order."""

    name = "echo"

    def __init__(self, pairs: list[InstructionPair]) -> None:
        self.texts = [pair.instruction for pair in pairs]

    def transcribe(self, waveform: Waveform, language: str) -> str:
        return self.texts.pop(0)


def test_build_xs_cot(tmp_path: Path) -> None:
    files = InstructionFiles(limit=3)
    pairs = [instruction.pairs["de"] for instruction in load_instructions(files, pytest.fail)]
    models, options = XSCoTModels({"de": ToneVoice()}, EchoRecogniser(pairs)), XSCoTOptions(languages=("de",))
    jobs = plan_xs_cot(files, tmp_path, models, options)
    assert [job.language for job in jobs] == ["de"] * 3 and not list(tmp_path.iterdir())
    result = build_xs_cot(files, tmp_path, models, options, on_skip=pytest.fail)
    assert result.report is not None and result.report["rows"] == 3 and result.summary.spoken == 3
    rows = manifest.read(tmp_path / "manifest.jsonl")
    assert [row.answer for row in rows] == [(pair.response,) for pair in pairs]
    assert {(row.source, row.licence) for row in rows} == {("earwise phrases", "Apache-2.0")}
    again = build_xs_cot(files, tmp_path, models, options)
    assert (again.summary.already, again.summary.spoken) == (3, 0)
    part = build_xs_cot(
        files, tmp_path / "part", XSCoTModels(models.voices, EchoRecogniser(pairs)), options, shard=(1, 9)
    )
    assert part.report is None and not (tmp_path / "part" / "manifest.jsonl").exists()


def test_xs_cot_needs_source_and_licence_of_a_users_texts(tmp_path: Path) -> None:
    row = {"id": "a", CORE_LANGUAGE: {"instruction": "Say hello.", "response": "Hello."}}
    (tmp_path / "phrases.jsonl").write_text(json.dumps(row) + "\n")
    models = XSCoTModels({"de": ToneVoice()}, EchoRecogniser([]), RemoteTeacher("http://127.0.0.1:9/v1", "m"))
    files, options, lines = InstructionFiles(tmp_path / "phrases.jsonl"), XSCoTOptions(languages=("de",)), list[str]()
    with pytest.raises(ConfigError, match="--source and their licence with --licence"):
        build_xs_cot(files, tmp_path / "out", models, options)
    jobs = plan_xs_cot(files, tmp_path / "out", models, options, notify=lines.append)  # a plan writes no row
    assert [job.rejection for job in jobs] == ["no translation"] and lines[0].startswith("1 translations to request")
    with pytest.raises(ConfigError, match="--alpaca needs PHRASES"):
        InstructionFiles(is_alpaca=True)


def test_build_difficulty_and_build_preferences(tmp_path: Path) -> None:
    examples = tone_task(tmp_path / "clips", 8)
    attempts, finished = AttemptSettings(count=2), list[tuple[str, int, int | None]]()

    class Recorder(progress.SilentDisplay):
        def finish(self, task: progress.Task) -> None:
            finished.append((task.description, task.done, task.total))

    progress.show(Recorder())
    rated = tmp_path / "rated.jsonl"
    summary = build_difficulty(
        ScriptedEngine(answer_by_pitch), [*examples, Example("unlabelled", examples[0].turns)], rated,
        DifficultyOptions(attempts),
    )  # fmt: skip
    progress.show(progress.SilentDisplay())
    assert summary["bands"]["solved"] == summary["kept"] == len(manifest.read(rated)) == 8
    assert summary["unlabelled"] == 1 and (summary["right"], summary["attempts"]) == (16, 16)
    assert summary["out"] == str(rated) and finished == [("questions attempted", 8, 8)]
    with pytest.raises(DataError, match="all 8 rows are solved"):
        build_difficulty(
            ScriptedEngine(answer_by_pitch), examples, rated, DifficultyOptions(attempts, drop=("solved",))
        )
    with pytest.raises(DataError, match="no row has an answer"):
        build_difficulty(ScriptedEngine(answer_first_option), [Example("a", examples[0].turns)], rated)
    part = build_difficulty(ScriptedEngine(answer_by_pitch), examples, tmp_path / "part.jsonl", shard=(1, 2))
    assert "out" not in part and not (tmp_path / "part.jsonl").exists()

    def samples(name: str, text: str, score: float) -> Path:
        path = tmp_path / name / "samples.jsonl"
        path.parent.mkdir()
        rows: list[dict[str, Any]] = [
            {"id": example.id, "output": text, "status": "ok", "scores": {"lenient": score}} for example in examples
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path.parent

    runs, out = [samples("good", "right", 1.0), samples("bad", "wrong", 0.0)], tmp_path / "preferences.jsonl"
    summary = build_preferences(examples, runs, out)
    assert summary["rows"] == summary["pairs"] == 8 and summary["counts"] == {"written": 8}
    assert {(row.chosen, row.rejected) for row in manifest.read(out)} == {(("right",), ("wrong",))}
    with pytest.raises(DataError, match="no row has a better and a worse completion"):
        build_preferences(examples, runs[:1], out)
    with pytest.raises(DataError, match="must be above 0"):
        PreferenceOptions(margin=0.0)
