"""One row of the doctor's report."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warn", "fail"]
Notify = Callable[[str], None]
"""Receives one line of progress."""


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's report."""

    name: str
    """Name of the check."""
    verdict: Verdict
    detail: str
    """What was measured, and the limit for it."""
    remedy: str = ""
    """What to do about it; empty if the verdict is ok."""


def as_rows(checks: list[Check]) -> list[dict[str, Any]]:
    """Checks as plain values for JSON."""
    return [asdict(check) for check in checks]


def check_row(name: str, passed: bool, detail: str, remedy: str, otherwise: Verdict = "fail") -> Check:
    """The row of a check: ok if it passed, else `otherwise` with the remedy."""
    return Check(name, "ok", detail) if passed else Check(name, otherwise, detail, remedy)
