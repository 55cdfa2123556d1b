"""One row of the doctor's report."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warn", "fail"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's report."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def as_rows(checks: list[Check]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [asdict(check) for check in checks]


def judged(name: str, fine: bool, detail: str, remedy: str, otherwise: Verdict = "fail") -> Check:
    """A row that is well, or else has a remedy."""
    return Check(name, "ok", detail) if fine else Check(name, otherwise, detail, remedy)
