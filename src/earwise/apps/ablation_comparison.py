"""The arms of an ablation on the same items: score of each, and every other arm tested against the first.

Part of `apps.ablation`; pure on finished runs. Intervals and tests resample items and seeds together (crossed
bootstrap, Owen 2007, Annals of Applied Statistics 1); p values are also given corrected for the number of arms (Holm
1979, Scandinavian Journal of Statistics 6).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earwise.errors import DataError
from earwise.evaluation.metrics import stats
from earwise.evaluation.results import EvalRun
from earwise.evaluation.scores import blind_controls, is_correct, mean_delay, shared_headline

DRAWS = 10_000
"""Number of resamples."""
BLOCK = 500
"""Resamples made at a time."""

Flags = NDArray[np.float64]
"""`(seeds, items)`: 1 where the run with this seed answered the item correctly, else 0."""


def compare_arms(arms: Mapping[str, Mapping[int, EvalRun]], *, seed: int = 0) -> dict[str, Any]:
    """Arms on the same items: the score of each over items and seeds, and the others tested against the first.

    Args:
        arms: Arm -> seed -> finished run; the first arm is the one to compare with.
        seed: Seed of the resampling.
    Returns:
        `kind` (name of the headline score), `n` items, `chance`, `first` (the arm to compare with), and under `arms`
        one row each, see `_arm_row`.
    Raises:
        DataError: if there is no run, or two are on different items.
    """
    runs = [run for members in arms.values() for run in members.values()]
    if not runs:
        raise DataError("no run of the ablation is finished; look at the reasons of their failure, and start it again")
    name, items = shared_headline(runs), _labelled_items(runs[0])
    flags = {
        arm: {run_seed: _correct_flags(run, items, name) for run_seed, run in members.items()}
        for arm, members in arms.items()
    }
    first_arm = next(iter(arms))
    rows = [
        _arm_row(arm, members, flags[arm], None if arm == first_arm else flags[first_arm], name, seed)
        for arm, members in arms.items()
        if members
    ]
    tested = [row["against"] for row in rows if row["against"]]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = corrected
    return {"kind": name, "n": len(items), "chance": runs[0].metrics["chance"], "first": first_arm, "arms": rows}


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
    if len(flags) == 1 or _nearly_all_alike(by_item):
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
    if len(gaps) == 1 or _nearly_all_alike(by_item):
        test = stats.paired_difference(higher, lower, seed=seed)
        interval = {"low": min(test["low"], mean), "high": max(test["high"], mean)}
        return {"difference": mean, **interval, "p": test["p"], "method": test["method"]} | counts
    means = crossed_bootstrap(gaps, seed=seed)
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
    return {"difference": mean, "low": float(low), "high": float(high), "p": p, "method": "bootstrap"} | counts


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
    arm: str,
    runs: Mapping[int, EvalRun],
    flags: Mapping[int, NDArray[np.float64]],
    reference: Mapping[int, NDArray[np.float64]] | None,
    name: str,
    seed: int,
) -> dict[str, Any]:
    """One row of the comparison.

    Args:
        arm: Name of the arm.
        runs: Seed -> finished run.
        flags: Seed -> flags of the items, `(items,)`.
        reference: Seed -> flags of the first arm; None for the first arm itself.
        name: Name of the score.
        seed: Seed of the resampling.
    Returns:
        `arm`, `seeds`, `accuracy`, `low`, `high`, `by_seed`, `blind` (mean of the runs that were evaluated under
        silence), `format` and `delay` (means; None if a run lacks the value), and `against` (see `arm_difference`; None
        for the first arm, or without a common seed).
    """
    silence = [blind_controls(run.metrics).get("silence") for run in runs.values()]
    formats = [run.metrics["format"]["accuracy"] if run.metrics["format"] else None for run in runs.values()]
    common_seeds = [run_seed for run_seed in runs if reference is not None and run_seed in reference]
    against = None
    if reference is not None and common_seeds:
        mine, theirs = (np.stack([side[run_seed] for run_seed in common_seeds]) for side in (flags, reference))
        against = arm_difference(mine, theirs, seed=seed)
    return {
        "arm": arm,
        "seeds": list(runs),
        **arm_accuracy(np.stack(list(flags.values())), seed=seed),
        "by_seed": {str(run_seed): float(row.mean()) for run_seed, row in flags.items()},
        "blind": _mean([control["accuracy"][name]["accuracy"] for control in silence if control]),
        "format": _mean(formats),
        "delay": _mean([mean_delay(run) for run in runs.values()]),
        "against": against,
    }


def _nearly_all_alike(values: NDArray[np.float64]) -> bool:
    """Whether so few values differ from the most common one that resampling them would give a wrong interval."""
    _, counts = np.unique(values, return_counts=True)
    return len(values) - int(counts.max()) < stats.FEW


def _labelled_items(run: EvalRun) -> list[str]:
    return sorted(item for item, row in run.first.items() if row["scores"] is not None)


def _correct_flags(run: EvalRun, items: list[str], name: str) -> NDArray[np.float64]:
    if _labelled_items(run) != items:
        raise DataError(f"{run.path}: is on other items than the first run; give all arms the same eval: entries")
    return np.array([float(is_correct(run.first[item], name)) for item in items])


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None without values, or if one of them is missing."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
