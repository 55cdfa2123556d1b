"""The arms of an ablation on the same items: score of each, and every other arm tested against the first.

Part of `apps.ablation`; pure on finished runs. Intervals and tests resample items and seeds together (crossed
bootstrap, Owen 2007, Annals of Applied Statistics 1); p values are also given corrected for the number of arms (Holm
1979, Scandinavian Journal of Statistics 6).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earwise.errors import DataError
from earwise.evaluation.aggregates.clusters import recording_clusters
from earwise.evaluation.aggregates.corpus import crossed_values
from earwise.evaluation.metrics import stats
from earwise.evaluation.results import EvalRun
from earwise.evaluation.scores import blind_controls, improvement, lower_is_better, mean_delay, shared_headline

DRAWS = 10_000
"""Number of resamples."""
BLOCK = 500
"""Resamples made at a time."""

Flags = NDArray[np.float64]
"""`(seeds, items)`: score of each item in the run with this seed; 1 and 0 where answers are right or wrong."""


@dataclass(frozen=True, slots=True)
class ArmScore:
    """The score that an ablation compares."""

    name: str
    items: Sequence[str]
    """Ids of the labelled items, which all runs have."""
    lower_is_better: bool = False
    """Whether it counts errors."""
    formula: str | None = None
    """Key of `corpus.FORMULAS` if it is defined over a corpus; None: the mean over items."""

    def values(self, run: EvalRun) -> NDArray[np.float64]:
        """Score of every item in a run, `(items,)`."""
        return np.array([run.first[item]["scores"][self.name] for item in self.items], np.float64)

    def counts(self, runs: Sequence[EvalRun]) -> NDArray[np.float64]:
        """Counts of every item in runs with different seeds, `(seeds, items, counts)`."""
        return np.array([[run.first[item]["counts"][self.name] for item in self.items] for run in runs], np.float64)

    def groups(self, run: EvalRun) -> list[str]:
        """Group of every item for the formula: its language."""
        return [run.first[item]["language"] or "" for item in self.items]

    def clusters(self, run: EvalRun) -> list[Hashable]:
        """Cluster of every item for the resampling: its speaker, or its clip."""
        return recording_clusters([run.first[item] for item in self.items])


def compare_arms(arms: Mapping[str, Mapping[int, EvalRun]], *, seed: int = 0) -> dict[str, Any]:
    """Arms on the same items: the score of each over items and seeds, and the others tested against the first.

    Args:
        arms: Arm -> seed -> finished run; the first arm is the one to compare with.
        seed: Seed of the resampling.
    Returns:
        `kind` (name of the headline score), `lower_is_better` (whether it counts errors), `n` items, `chance`, `first`
        (the arm to compare with), and under `arms` one row each, see `_arm_row`.
    Raises:
        DataError: if there is no run, or two are on different items.
    """
    runs = [run for members in arms.values() for run in members.values()]
    if not runs:
        raise DataError("no run of the ablation is finished; look at the reasons of their failure, and start it again")
    score = _shared_score(runs)
    for run in runs:
        if _labelled_items(run) != score.items:
            raise DataError(f"{run.path}: is on other items than the first run; give all arms the same eval: entries")
    first_arm = next(iter(arms))
    rows = [
        _arm_row(arm, members, None if arm == first_arm else arms[first_arm], score, seed)
        for arm, members in arms.items()
        if members
    ]
    tested = [row["against"] for row in rows if row["against"]]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    return {
        "kind": score.name,
        "lower_is_better": score.lower_is_better,
        "n": len(score.items),
        "chance": runs[0].metrics["chance"],
        "first": first_arm,
        "arms": rows,
    }


def _shared_score(runs: Sequence[EvalRun]) -> ArmScore:
    """The headline score of the runs, with the items of the first one."""
    name, items = shared_headline(runs), _labelled_items(runs[0])
    formula = runs[0].metrics.get("corpus", {}).get(name)
    has_counts = all(name in run.first[item].get("counts", {}) for run in runs for item in items if item in run.first)
    return ArmScore(name, items, lower_is_better(runs[0].metrics, name), formula if has_counts else None)


def arm_accuracy(flags: Flags, *, seed: int) -> dict[str, float]:
    """Mean of an arm's flags with its 95 % interval: crossed bootstrap, or Wilson's over items if there is one seed or
    nearly all items have the same outcome.

    Args:
        flags: `(seeds, items)`.
        seed: Seed of the resampling.
    Returns:
        `accuracy`, `low` and `high`.
    """
    by_item = flags.mean(axis=0)
    mean = float(by_item.mean())
    if len(flags) == 1 and not stats.is_binary(by_item.tolist()):
        return {key: value for key, value in stats.mean_row(by_item.tolist(), seed=seed).items() if key != "n"}
    if len(flags) == 1 or (stats.is_binary(flags.ravel().tolist()) and _nearly_all_alike(by_item)):
        low, high = stats.wilson(round(mean * len(by_item)), len(by_item))
        return {"accuracy": mean, "low": min(low, mean), "high": max(high, mean)}
    low, high = np.quantile(crossed_bootstrap(flags, seed=seed), [0.025, 0.975])
    return {"accuracy": mean, "low": float(low), "high": float(high)}


def arm_difference(flags: Flags, reference: Flags, *, seed: int) -> dict[str, Any]:
    """Mean difference between two arms, paired over seeds and items.

    With one seed this is `stats.paired_difference`. With several seeds and few items that differ, the test is the sign
    test on items (higher or lower in the mean over seeds), and the interval is that of the shares of such items.

    Args:
        flags: `(seeds, items)` of the arm in question.
        reference: `(seeds, items)` of the arm to compare with.
        seed: Seed of the resampling.
    Returns:
        `difference`, `low`, `high`, the two-sided `p`, `method`, `wins` and `losses` (items on which the mean over
        seeds is higher and lower), and `seeds` (their number).
    """
    gaps = flags - reference
    by_item = gaps.mean(axis=0)
    higher, lower = [value > 0 for value in by_item], [value < 0 for value in by_item]
    counts = {"wins": sum(map(bool, higher)), "losses": sum(map(bool, lower)), "seeds": len(gaps)}
    mean = float(by_item.mean())
    if _nearly_all_alike(by_item) or (len(gaps) == 1 and set(np.unique(gaps)) <= {-1.0, 0.0, 1.0}):
        test = stats.paired_difference(higher, lower, seed=seed)
        interval = {"low": min(test["low"], mean), "high": max(test["high"], mean)}
        return {"difference": mean, **interval, "p": test["p"], "method": test["method"]} | counts
    return _resampled_difference(mean, crossed_bootstrap(gaps, seed=seed)) | counts


def _resampled_difference(difference: float, resampled: NDArray[np.float64]) -> dict[str, Any]:
    """A difference with the interval and the two-sided p of its resamples."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(resampled) + 1))
    return {"difference": difference, "low": float(low), "high": float(high), "p": p, "method": "bootstrap"}


def crossed_bootstrap(values: Flags, *, seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """Means of `values` `(seeds, items)` over `draws` resamples of both axes, each with replacement."""
    num_seeds, num_items = values.shape
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, BLOCK):
        count = min(BLOCK, draws - start)
        by_seed = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), count) / num_seeds
        by_item = rng.multinomial(num_items, np.full(num_items, 1 / num_items), count) / num_items
        means.append(((by_seed @ values) * by_item).sum(axis=1))
    return np.concatenate(means)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, corrected for their number (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _arm_row(
    arm: str, runs: Mapping[int, EvalRun], reference: Mapping[int, EvalRun] | None, score: ArmScore, seed: int
) -> dict[str, Any]:
    """One row of the comparison.

    Args:
        arm: Name of the arm.
        runs: Seed -> finished run.
        reference: The same of the first arm; None for the first arm itself.
        score: The score that is compared.
        seed: Seed of the resampling.
    Returns:
        `arm`, `seeds`, `accuracy`, `low`, `high`, `by_seed`, `by` (the score of each value of each group, means over
        seeds), `blind` (mean of the runs that were evaluated under silence), `format` and `delay` (means; None if a run
        lacks the value), and `against` (see `arm_difference`, turned so that above 0 is better; None for the first arm,
        or without a common seed).
    """
    silence = [blind_controls(run.metrics).get("silence") for run in runs.values()]
    formats = [run.metrics["format"]["accuracy"] if run.metrics["format"] else None for run in runs.values()]
    common_seeds = [run_seed for run_seed in runs if reference is not None and run_seed in reference]
    against = None
    if reference is not None and common_seeds:
        mine, theirs = ([side[run_seed] for run_seed in common_seeds] for side in (runs, reference))
        against = improvement(_difference(mine, theirs, score, seed), score.lower_is_better)
    return {
        "arm": arm,
        "seeds": list(runs),
        **_accuracy(list(runs.values()), score, seed),
        "by_seed": {str(run_seed): _accuracy([run], score, seed)["accuracy"] for run_seed, run in runs.items()},
        "by": _by_group(list(runs.values()), score.name),
        "blind": _mean([control["accuracy"][score.name]["accuracy"] for control in silence if control]),
        "format": _mean(formats),
        "delay": _mean([mean_delay(run) for run in runs.values()]),
        "against": against,
    }


def _accuracy(runs: Sequence[EvalRun], score: ArmScore, seed: int) -> dict[str, float]:
    """The score of an arm with its interval."""
    if score.formula is None:
        return arm_accuracy(np.stack([score.values(run) for run in runs]), seed=seed)
    groups, clusters = score.groups(runs[0]), score.clusters(runs[0])
    values = crossed_values(score.counts(runs)[None], groups, score.formula, clusters=clusters, seed=seed)[:, 0]
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"accuracy": float(values[0]), "low": float(low), "high": float(high)}


def _difference(runs: Sequence[EvalRun], reference: Sequence[EvalRun], score: ArmScore, seed: int) -> dict[str, Any]:
    """The arm's score minus that of the arm to compare with, paired over seeds and items; `wins` are the items whose
    score is better in the mean over seeds."""
    mine, theirs = (np.stack([score.values(run) for run in side]) for side in (runs, reference))
    difference = arm_difference(mine, theirs, seed=seed)
    if score.formula is not None:
        counts = np.stack([score.counts(side) for side in (runs, reference)])
        groups, clusters = score.groups(runs[0]), score.clusters(runs[0])
        values = crossed_values(counts, groups, score.formula, clusters=clusters, seed=seed)
        gaps = values[:, 0] - values[:, 1]
        difference |= _resampled_difference(float(gaps[0]), gaps[1:])
    if score.lower_is_better:
        difference |= {"wins": difference["losses"], "losses": difference["wins"]}
    return difference


def _by_group(runs: Sequence[EvalRun], name: str) -> dict[str, dict[str, float]]:
    """Group -> value -> the score, as mean over the runs, for the groups that have more than one value."""
    by: dict[str, dict[str, float]] = {}
    for group, members in (runs[0].metrics.get("by") or {}).items():
        values = {
            value: _mean(
                [run.metrics["by"].get(group, {}).get(value, {}).get(name, {}).get("accuracy") for run in runs]
            )
            for value in members
        }
        if len(values) > 1:
            by[group] = {value: score for value, score in values.items() if score is not None}
    return by


def _nearly_all_alike(values: NDArray[np.float64]) -> bool:
    """Whether so few values differ from the most common one that resampling them would give a wrong interval."""
    _, counts = np.unique(values, return_counts=True)
    return len(values) - int(counts.max()) < stats.FEW


def _labelled_items(run: EvalRun) -> list[str]:
    return sorted(item for item, row in run.first.items() if row["scores"] is not None)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None without values, or if one of them is missing."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
