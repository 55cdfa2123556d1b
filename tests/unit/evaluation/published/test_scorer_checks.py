"""The list of checks is whole: every score of every task once, every golden file there, and the page up to date."""

import sys
from collections import Counter
from pathlib import Path

import pytest

import benchmark_files
from earwise.apps.task_audit import audit
from earwise.evaluation.published.scorer_checks import CHECKS, GOLDEN, HAND, NOTHING, SOFTWARE, SPLITS, checks_of
from earwise.evaluation.task_table import TASKS, load_task

ROOT = Path(__file__).parents[4]
ONLY_WITH_MORE = {"nearest", "official", "sd-qa panda", "meteor", "spice", "spider", "macro_f1", "chrf", "judge"}
"""Scores that are made of all rows, or where something else is installed or named."""


@pytest.mark.parametrize("name", TASKS)
def test_every_score_of_a_task_stands_there_once(name: str, tmp_path: Path) -> None:
    task = load_task(name)
    listed = Counter(score for check in checks_of(name) for score in check.scores)
    scores = {*task.score_notes, *(task.judging.score_notes if task.judging else ())}
    assert set(listed.values()) == {1} and scores <= set(listed), scores - set(listed)
    results = audit(task, task.load(benchmark_files.FILES[name](tmp_path), None))
    assert set(listed) <= scores | set(results["perfect"]["metrics"]) | ONLY_WITH_MORE


def test_what_is_named_exists() -> None:
    for check in CHECKS:
        assert set(check.tasks) <= set(TASKS) and check.kind in (GOLDEN, SOFTWARE, HAND, NOTHING)
        assert bool(check.golden) == (check.kind == GOLDEN)
        for name in check.golden:
            assert (ROOT / "tests" / "golden" / "data" / name).is_file() or "/" in name, name
            used = [path for path in (ROOT / "tests" / "golden").glob("test_*.py") if name in path.read_text()]
            assert used, f"{name} is used by no test in tests/golden"
    assert SPLITS.keys() <= TASKS.keys()


def test_the_page_is_what_the_data_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import scorer_reference

    page = scorer_reference.PAGE.read_text(encoding="utf-8")
    assert page == scorer_reference.updated(page), "run python scripts/scorer_reference.py"
    sys.modules.pop("scorer_reference")
