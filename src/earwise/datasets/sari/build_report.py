"""Counts and failures of the steps of a build, for `summary.json` and `failed.jsonl`."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from earwise.datasets.teachers.keyed_log import LogRow
from earwise.datasets.teachers.request_runner import UNREACHABLE, RunSummary


class BuildReport:
    """Collects what the steps of a build did and what failed in them."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, Any]] = {}
        """Name of a step -> counts of its requests to the teacher, see `RunSummary`."""
        self.failures: list[dict[str, str]] = []
        """One entry for everything that failed: step, id, status and error."""

    def add_run(self, step: str, summary: RunSummary) -> None:
        """Add the counts of one run of the teacher to a step."""
        self.steps[step] = _add_counts(self.steps.get(step, {}), summary.as_dict())

    def add_failure(self, step: str, identifier: str, status: str, error: str) -> None:
        """Note something that failed."""
        self.failures.append({"step": step, "id": identifier, "status": status, "error": error})

    def add_failed_row(self, step: str, identifier: str, row: LogRow | None) -> None:
        """Note a failed row of a log, or a missing one."""
        if row is None:
            self.add_failure(step, identifier, UNREACHABLE, "not asked")
        else:
            self.add_failure(step, identifier, str(row["status"]), str(row["error"]))

    def count_failures(self) -> dict[str, dict[str, int]]:
        """Number of failures, by step and status."""
        counts: dict[str, Counter[str]] = {}
        for failure in self.failures:
            counts.setdefault(failure["step"], Counter())[failure["status"]] += 1
        return {step: dict(statuses) for step, statuses in counts.items()}


def _add_counts(counts: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Add up the counts of two runs; counts by name are added up name by name, None adds nothing."""
    total: dict[str, Any] = dict(counts)
    for name, value in more.items():
        if isinstance(value, Mapping):
            total[name] = dict(Counter(total.get(name, {})) + Counter(value))
        elif value is not None:
            total[name] = (total.get(name) or 0) + value
        else:
            total.setdefault(name, None)
    return total
