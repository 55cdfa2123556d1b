"""PEDANTS beside the judge of VoiceBench's sd-qa: what it is asked, and what is said where it is not there."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import benchmark_files
from earwise.apps.task_audit import audit
from earwise.errors import DataError
from earwise.evaluation.metrics.voicebench.pedants import FILES, _classifier, missing_pedants
from earwise.evaluation.task_table import load_task

STAND_IN = """
class PEDANT:
    def evaluate(self, reference, candidate, question):
        assert question == question.lower() and candidate == candidate.lower() and isinstance(reference, list)
        return reference[0] == candidate
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the name and form of qa-metrics, whose classifier accepts equal texts."""
    folder = tmp_path / "site" / "qa_metrics"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "pedant.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("qa_metrics", "qa_metrics.pedant"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    _classifier.cache_clear()
    yield folder
    _classifier.cache_clear()


def test_panda_stands_beside_the_judge(package: Path, tmp_path: Path) -> None:
    task = load_task("voicebench")
    examples = [example for example in task.load(benchmark_files.FILES["voicebench"](tmp_path / "data"), None)
                if example.task == "sd-qa"]  # fmt: skip
    assert missing_pedants().startswith("qa_metrics/classifier holds no lr_classifier.pkl, ")
    before = audit(task, examples)["perfect"]["metrics"]
    assert "sd-qa" in before and "sd-qa panda" not in before
    (package / "classifier").mkdir()
    for name in FILES:
        (package / "classifier" / name).write_bytes(b"")
    assert missing_pedants() == ""
    results = audit(task, [replace(example, answer=(example.answer[0].upper(),)) for example in examples])
    assert results["perfect"]["metrics"]["sd-qa panda"]["accuracy"] == 1.0
    assert results["empty"]["metrics"]["sd-qa panda"] == {"accuracy": 0.0, "n": len(examples)}


def test_mtbench_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "mtbench.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="mtbench is not read, since its second request follows"):
        load_task("voicebench").load(tmp_path / "mtbench.jsonl", None)
