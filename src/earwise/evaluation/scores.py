"""Scores of rows into metrics, and the headline: the one score that sums up a run wherever it is shown.

Below the summary, the comparison and the report. A row of `samples.jsonl` holds the values of its task's scores under
`scores` (None for an item without a gold answer); `metrics.json` holds their means under `accuracy`, a name kept from
the time when every score was correct or wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.aggregates import clusters
from earwise.evaluation.results import EvalRun, Row

DEFAULT_HEADLINE = "official"
LOWER_IS_BETTER = "lower_is_better"
"""Field of a row and of `metrics.json`: names of the scores that count errors. For them 0 is the best value."""
EARLIER_ERROR_RATES = ("wer", "wer_whisper")
"""What that field would be in rows of versions that did not write it."""
Metric = dict[str, float]
"""One figure over rows: `accuracy` (its value), `n` (items) and, where it has an interval, `low` and `high` (95 %)."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The score that sums up a run."""

    name: str
    """Name of the score, for example `official`."""
    value: float
    """Mean over the items; for scores that are correct or wrong, the accuracy in [0, 1]."""
    n: int
    """Number of labelled items."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    lower_is_better: bool = False
    """Whether the score counts errors."""


def headline(metrics: Mapping[str, Any], name: str | None = None, control: str | None = None) -> Headline | None:
    """The headline score of a run. Terminal, report, `earwise train` and JSON output all take it from here.

    Args:
        metrics: What `metrics.json` holds.
        name: Name of the score to read; None reads the run's own headline.
        control: Name of a blind control: its score instead of the one with the real sound.
    Returns:
        The headline; None if no item has a gold answer, or the control was not run.
    """
    source = metrics if control is None else (metrics.get("blind") or {}).get(control, {})
    name = name or metrics["headline"]
    metric = (source.get("accuracy") or {}).get(name)
    if metric is None:
        return None
    errors = lower_is_better(metrics, name)
    return Headline(name, metric["accuracy"], int(metric["n"]), metric["low"], metric["high"], errors)


def lower_is_better(record: Mapping[str, Any], name: str) -> bool:
    """Whether less is better in a score.

    Args:
        record: A row, or what `metrics.json` holds.
        name: Name of the score.
    """
    return name in record.get(LOWER_IS_BETTER, EARLIER_ERROR_RATES)


def improvement(difference: Mapping[str, Any], errors: bool) -> dict[str, Any]:
    """A difference with its interval, turned so that above 0 is better.

    Args:
        difference: `difference`, `low` and `high` of after minus before, and whatever else.
        errors: Whether the score counts errors, so that less is better.
    """
    if not errors:
        return dict(difference)
    turned = {"difference": -difference["difference"], "low": -difference["high"], "high": -difference["low"]}
    return {**difference, **{name: value + 0.0 for name, value in turned.items()}}


def shared_headline(runs: Sequence[EvalRun]) -> str:
    """Name of the headline score for a table of several runs, the same one for all of them.

    Runs with different headlines are shown by one that all of them have. If one of the runs reasons aloud, that is the
    score that reads the extracted answer (`lenient`): it is fair to both kinds of run.

    Raises:
        DataError: if the runs have no such score in common.
    """
    names = list(dict.fromkeys(run.metrics["headline"] for run in runs))
    if len(names) == 1:
        return str(names[0])
    common = [name for name in names if all(name in (run.metrics["accuracy"] or {name: 0}) for run in runs)]
    if not common:
        raise DataError(
            f"the runs have different headline scores ({', '.join(names)}) and none in common; "
            "show runs of one task together"
        )
    return str(next((name for name in common if name != DEFAULT_HEADLINE), common[0]))


def is_correct(row: Row, name: str) -> bool:
    """Whether a row has a gold answer and its score `name` is as good as it can be; a row that still lacks this score
    is not."""
    if row["scores"] is None or name not in row["scores"]:
        return False
    return bool(row["scores"][name] <= 0 if lower_is_better(row, name) else row["scores"][name] >= 1)


def score_names(rows: Sequence[Row]) -> list[str]:
    """Names of the scores that every labelled row has, in the order of the first one."""
    labelled = [row["scores"] for row in rows if row["scores"] is not None]
    return [name for name in labelled[0] if all(name in scores for scores in labelled)] if labelled else []


def mean_scores(rows: Sequence[Row]) -> dict[str, Metric]:
    """The mean of every score over labelled rows, with n and a 95 % interval, clustered where rows share a clip: what a
    task without figures of its own aggregates (`Task.aggregate`)."""
    shared = clusters.clip_clusters(rows)
    return {name: clusters.mean_row([row["scores"][name] for row in rows], shared) for name in score_names(rows)}


def blind_controls(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The blind controls that were run, by name, without those that the items did not allow."""
    return {name: row for name, row in (metrics.get("blind") or {}).items() if row.get("accuracy")}


def mean_delay(run: EvalRun) -> float | None:
    """Mean number of tokens before the answer begins; None if a row without an error does not hold the number."""
    delays = [row.get("reasoning_tokens") for row in run.rows if row["status"] != "error"]
    counts = [tokens for tokens in delays if tokens is not None]
    return sum(counts) / len(counts) if counts and len(counts) == len(delays) else None
