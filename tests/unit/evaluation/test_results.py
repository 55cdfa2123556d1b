"""The folder of a finished run is read back; an unfinished one is refused."""

from pathlib import Path

import pytest

from earwise.errors import DataError
from earwise.evaluation.results import read_run, settings_hash
from earwise.evaluation.run import evaluate
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task


def test_read_run_wants_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no samples\.jsonl with rows"):
        read_run(tmp_path)
    evaluate(ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 2), tmp_path / "run")
    assert read_run(tmp_path / "run").name == "run" and len(read_run(tmp_path / "run").first) == 2
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        read_run(tmp_path / "run")


def test_the_hash_of_settings_ignores_the_order_of_keys() -> None:
    assert settings_hash({"a": 1, "b": (2,)}) == settings_hash({"b": [2], "a": 1}) != settings_hash({"a": 1, "b": [3]})
