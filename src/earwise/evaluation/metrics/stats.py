"""How certain a number is: intervals, paired differences, chance level, position bias.

Used by the evaluation's summary, the comparison, ablations and the report. numpy only; every random draw has a seed.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earwise.errors import ScoringError

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
BLOCK = 4096
"""Bootstrap resamples made at a time."""
FEW = 10
"""The bootstrap is used only if at least this many items differ from the most common outcome: resampling cannot show
outcomes that the items do not contain."""
MEAN_DRAWS = 2000
"""Resamples for the interval of a mean."""


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in [0, 1]; (0, 1) when nothing was counted.

    >>> [round(end, 4) for end in wilson(5, 10)]
    [0.2366, 0.7634]

    Raises:
        ScoringError: if not 0 <= successes <= n.
    Source: Wilson 1927; chosen over the normal interval because it stays sane at 0, at 1 and for few items.
    """
    if not 0 <= successes <= n:
        raise ScoringError(f"{successes} successes of {n} is no proportion")
    if n == 0:
        return 0.0, 1.0
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def accuracy_row(correct: Sequence[bool]) -> dict[str, float]:
    """`accuracy`, `n` and the 95 % Wilson interval `low`, `high` of a list of flags; accuracy 0 and n 0 if it is empty.

    >>> accuracy_row([True, False])["accuracy"]
    0.5
    """
    n, successes = len(correct), sum(map(bool, correct))
    low, high = wilson(successes, n)
    return {"accuracy": successes / n if n else 0.0, "n": n, "low": low, "high": high}


def mean_row(values: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """The mean of scores with its 95 % interval: Wilson's if all scores are 0 or 1, else by resampling items.

    >>> mean_row([1.0, 0.0]) == accuracy_row([True, False]), mean_row([0.5, 0.5])["low"]
    (True, 0.5)

    Args:
        values: One score per item.
        seed: Seed of the resampling.
    Returns:
        `accuracy` (the mean), `n`, `low` and `high`.
    """
    if is_binary(values):
        return accuracy_row([value == 1 for value in values])
    interval = paired_bootstrap(values, [0.0] * len(values), seed=seed, draws=MEAN_DRAWS)
    return {"accuracy": interval["difference"], "n": len(values), "low": interval["low"], "high": interval["high"]}


def ratio_row(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """The ratio of two sums over items (edits to reference words) with its 95 % interval by resampling items.

    >>> ratio_row([1, 0], [2, 2])["accuracy"]
    0.25

    Args:
        numerators: One value per item.
        denominators: One value per item; their sum is above 0.
        seed: Seed of the resampling.
    Returns:
        `accuracy` (the ratio; the name is that of all metrics), `n`, `low` and `high`.
    Raises:
        ScoringError: if the lists differ in length, or the denominators sum to 0.
    """
    if len(numerators) != len(denominators) or not sum(denominators):
        raise ScoringError(f"{len(numerators)} values over {len(denominators)} that sum to {sum(denominators)}")
    pairs, counts = np.unique(np.array([numerators, denominators], np.float64).T, axis=0, return_counts=True)
    n = len(numerators)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, counts / n, MEAN_DRAWS)
    sums = weights @ pairs
    ratios = sums[:, 0] / np.maximum(sums[:, 1], np.finfo(np.float64).tiny)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"accuracy": sum(numerators) / sum(denominators), "n": n, "low": float(low), "high": float(high)}


def is_binary(values: Sequence[float]) -> bool:
    """Whether all scores are 0 or 1, so that they count correct and wrong items."""
    return all(value in (0, 1) for value in values)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, seed: int, draws: int = 10_000, level: float = 0.95
) -> dict[str, float]:
    """Mean of a - b over items that both runs answered, by resampling items. For flags see `paired_difference`.

    Args:
        a: One value per item.
        b: Values of the same items in the same order.
        seed: Seed of the resampling.
        draws: Number of resamples.
        level: Coverage of the interval.
    Returns:
        `difference`, its percentile interval `low`, `high`, the two-sided `p` of no difference, and `n`.
    Raises:
        ScoringError: if the lists differ in length or are empty.
    """
    if len(a) != len(b) or not len(a):
        raise ScoringError(f"{len(a)} and {len(b)} values cannot be paired; compare runs on the same items")
    values, counts = np.unique(np.asarray(a, np.float64) - np.asarray(b, np.float64), return_counts=True)
    n = len(a)
    rng = np.random.default_rng(seed)
    # The counts of the distinct differences in a resample are multinomial: no need to draw single items.
    means = np.concatenate(
        [rng.multinomial(n, counts / n, min(BLOCK, draws - start)) @ values / n for start in range(0, draws, BLOCK)]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return {
        "difference": float(counts @ values / n),
        "low": float(low),
        "high": float(high),
        "p": min(1.0, 2 * (tail + 1) / (draws + 1)),
        "n": n,
    }


def paired_difference(
    a: Sequence[bool], b: Sequence[bool], *, seed: int, draws: int = 20_000, level: float = 0.95
) -> dict[str, Any]:
    """Accuracy of `a` minus accuracy of `b` on items that both answered.

    With many different outcomes this is `paired_bootstrap`. Where nearly all items have one outcome (few items, or runs
    that hardly differ), the bootstrap would give an interval of almost no width; there p is that of the exact sign test
    on the items that only one of the runs answers correctly, and the interval is the one that agrees with that test.

    Args:
        a: One flag per item: whether it was answered correctly.
        b: Flags of the same items in the same order.
        seed: Seed of the random draws.
        draws: Number of resamples, or of draws from the distributions of the exact limits.
        level: Coverage of the interval.
    Returns:
        `difference`, `low`, `high`, the two-sided `p` of no difference, `n`, `wins` (correct in `a` alone), `losses`
        (correct in `b` alone), and `method` (`bootstrap` or `exact`).
    Raises:
        ScoringError: if the lists differ in length or are empty.
    Source: McNemar's exact test; the interval follows Fay and Lumbard 2021 (Statistics in Medicine 40), who combine
        the exact limits of the share of items that differ with those of the share of wins among them.
    """
    if len(a) != len(b) or not len(a):
        raise ScoringError(f"{len(a)} and {len(b)} verdicts cannot be paired; compare runs on the same items")
    n = len(a)
    wins = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    losses = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    counts = {"n": n, "wins": wins, "losses": losses}
    if n - max(wins, losses, n - wins - losses) >= FEW:
        return paired_bootstrap(a, b, seed=seed, draws=draws, level=level) | counts | {"method": "bootstrap"}
    rng = np.random.default_rng(seed)
    differ = wins + losses
    share_low, share_high = (_beta(rng, differ + k, n - differ + 1 - k, draws) for k in (0, 1))
    lean_low, lean_high = (2 * _beta(rng, wins + k, losses + 1 - k, draws) - 1 for k in (0, 1))
    lows = lean_low * np.where(lean_low > 0, share_low, share_high)
    highs = lean_high * np.where(lean_high > 0, share_high, share_low)
    return {
        "difference": (wins - losses) / n,
        "low": float(np.quantile(lows, (1 - level) / 2)),
        "high": float(np.quantile(highs, (1 + level) / 2)),
        "p": min(1.0, 2 * binomial_p(max(wins, losses), differ, 0.5)),
        **counts,
        "method": "exact",
    }


def _beta(rng: np.random.Generator, a: int, b: int, draws: int) -> NDArray[np.float64]:
    """Draws from a beta distribution; with a parameter of 0 all mass lies at that end."""
    return rng.beta(a, b, draws) if a and b else np.full(draws, 0.0 if a == 0 else 1.0)


def chance_level(option_counts: Iterable[int]) -> float:
    """Expected accuracy of guessing: the mean of 1 / options over the items; an open item (0 options) counts as 0.

    >>> chance_level(len(choices) for choices in (("a", "b"), ("a", "b", "c", "d")))
    0.375
    """
    rates = [1 / count if count else 0.0 for count in option_counts]
    return sum(rates) / len(rates) if rates else 0.0


def binomial_p(successes: int, n: int, chance: float) -> float:
    """Exact one-sided p: the probability of at least `successes` successes if each item succeeds by chance.

    >>> binomial_p(2, 2, 0.25)
    0.0625

    Raises:
        ScoringError: if the counts are no proportion or `chance` is not in [0, 1].
    """
    if not 0 <= successes <= n or not 0 <= chance <= 1:
        raise ScoringError(f"{successes} successes of {n} at chance {chance} is no binomial test")
    if successes == 0 or chance == 1:
        return 1.0
    if chance == 0:
        return 0.0
    log_hit, log_miss, log_all = math.log(chance), math.log1p(-chance), math.lgamma(n + 1)
    logs = [
        log_all - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_hit + (n - k) * log_miss
        for k in range(successes, n + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def position_bias(gold: Sequence[int], chosen: Sequence[int | None]) -> list[dict[str, Any]]:
    """One row per position in the list of options: how often it is right, how often it is chosen, accuracy where it is
    right.

    Args:
        gold: Position of the right option of each item, from 0.
        chosen: Position that was chosen; None where no option was named.
    Returns:
        Rows with `position` (from 0; None in a last row for items where no option was named), `gold` and `chosen`
        (counts), `gold_share` (the accuracy of always choosing this position), `chosen_share`, and `accuracy`, `n`,
        `low`, `high` of the items whose right option has this position.
    Raises:
        ScoringError: if the lists differ in length.
    """
    if len(gold) != len(chosen):
        raise ScoringError(f"{len(gold)} right positions for {len(chosen)} chosen ones; give one of each per item")
    total = max(len(gold), 1)
    last = max([*gold, *(position for position in chosen if position is not None)], default=-1)
    positions: list[int | None] = list(range(last + 1))
    if None in chosen:
        positions.append(None)
    rows: list[dict[str, Any]] = []
    for position in positions:
        correct = [choice == position for right, choice in zip(gold, chosen, strict=True) if right == position]
        num_chosen = sum(choice == position for choice in chosen)
        shares = {
            "gold": len(correct), "gold_share": len(correct) / total,
            "chosen": num_chosen, "chosen_share": num_chosen / total,
        }  # fmt: skip
        rows.append({"position": position, **shares, **accuracy_row(correct)})
    return rows
