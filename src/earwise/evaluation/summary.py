"""Rows into `metrics.json`: scores with n and intervals, unreadable answers, position bias, the hearing gain.

Between `evaluation.run`, which makes the rows, and everything that prints. The functions are pure on rows, except
`blind_summary`, which reads two folders. The denominator is every labelled item, whatever became of its completion.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.evaluation.aggregates import clusters
from earwise.evaluation.aggregates.corpus import corpus_difference
from earwise.evaluation.aggregates.draws import draws_summary
from earwise.evaluation.aggregates.orders import orders_summary
from earwise.evaluation.judge.agreement import judge_summary
from earwise.evaluation.metrics import stats
from earwise.evaluation.results import SAMPLES, EvalSettings, Row, settings_hash
from earwise.evaluation.scores import LOWER_IS_BETTER, improvement, lower_is_better, score_names
from earwise.evaluation.task import Aggregate, Task
from earwise.files import read_log

GROUPS = ("task", "category", "sub_category", "difficulty", "language")
"""Fields of a row by whose values the scores are broken down."""


def is_group(group: str, rows: Sequence[Row]) -> bool:
    """Whether scores are broken down by a field: where any row has a value, and for the language, which every row has,
    where there are several."""
    values = {row[group] for row in rows}
    return len(values) > 1 if group == "language" else any(values)


def share(flags: Sequence[bool]) -> dict[str, float]:
    """`count` of true flags, `n` flags in all, and their `share`."""
    return {"count": sum(flags), "n": len(flags), "share": sum(flags) / len(flags) if flags else 0.0}


def summarise(rows: Iterable[Row], settings: EvalSettings, task: Task) -> dict[str, Any]:
    """What `metrics.json` holds.

    Args:
        rows: All rows of a run, in all orders of the options.
        settings: The run's settings.
        task: The task, whose `aggregate` makes metrics of the scores.
    Returns:
        `n` labelled items, `headline` (name of the score that sums up), `lower_is_better` (names of the scores that
        count errors), `corpus` (formulas of the scores that are defined over a corpus), `accuracy` (every metric of the
        task), the same `by` task, category, sub_category, difficulty and language, and by number of options in `kinds`
        (each with its `chance`, None for open questions), counts of `status`, shares of `unparsed`, `ambiguous` and
        `error`, `format` (None in styles without tags), `cut` (completions ended by the token limit), `chance` of the
        `chance_n` items with options, `position` bias and `permutations` (items with options only), `draws` (where
        several completions were drawn), numbers of `silent` and `truncated` clips, `seconds`, `remarks` (sentences
        about the scores, if there are any), and name, version, source and licence of the `task`.
    """
    all_rows = list(rows)
    first = [row for row in all_rows if not row["permutation"]]
    labelled = [row for row in first if row["scores"] is not None]
    formatted = [row["formatted"] for row in first if row["formatted"] is not None]
    benchmarks = sorted({row["benchmark"] for row in first if row["benchmark"]})
    name = task.headline_of(settings["style"])
    return {
        "n": len(labelled),
        "unlabelled": len(first) - len(labelled),
        "model": settings["model"],
        "revision": settings["revision"],
        "task": {"name": task.name, "version": task.version, "source": task.source, "licence": task.licence},
        "benchmark": ", ".join(benchmarks) or None,
        "control": settings["control"],
        "scorer": settings["scorer"],
        "score_notes": dict(task.score_notes),
        "headline": name,
        LOWER_IS_BETTER: sorted(task.lower_is_better),
        "corpus": dict(task.corpus),
        "settings": settings_hash(settings),
        "accuracy": task.aggregate(labelled) if labelled else None,
        "by": {group: _by_value(labelled, group, task) for group in GROUPS if is_group(group, labelled)},
        "kinds": _by_options(labelled, task.aggregate),
        "status": dict(sorted(Counter(row["status"] for row in first).items())),
        **{status: share([row["status"] == status for row in first]) for status in ("unparsed", "ambiguous", "error")},
        "format": stats.accuracy_row(formatted) if formatted else None,
        "cut": share([row["finish_reason"] == "length" for row in first]),
        "silent": sum(row["silent"] for row in first),
        "truncated": sum(row["truncated"] for row in first),
        **_chance_and_position(labelled),
        "permutations": orders_summary([row for row in all_rows if row["scores"] is not None], name),
        "draws": draws_summary(labelled, name),
        "seconds": round(sum(row["seconds"] for row in all_rows), 2),
        **({"remarks": remarks} if labelled and (remarks := task.remarks(labelled)) else {}),
        **({"judges": judges} if (judges := judge_summary(all_rows, name)) else {}),
        "first_error": next((row["explanation"] for row in first if row["status"] == "error"), None),
    }


def blind_summary(real: Path, blind: Path, task: Task, seed: int) -> dict[str, Any]:
    """The scores without the sound, and the hearing gain: real minus blind on the same items, paired.

    Args:
        real: Folder of the run with the real sound.
        blind: Folder of the same items under a control.
        task: The task of both runs.
        seed: Seed of the intervals.
    Returns:
        `accuracy` (the metrics of the blind run) and `hearing_gain` (see `paired_scores`, by name of the score): above
        0 where the sound helps, also for error rates.
    """
    with_sound, without_sound = _labelled_rows(real), _labelled_rows(blind)
    shared = [item for item in with_sound if item in without_sound]
    pairs = [(without_sound[item], with_sound[item]) for item in shared]
    # Without a gold answer there are no scores, and without shared items no pairs.
    names = score_names([row for _, row in pairs])
    gain = {name: paired_scores(pairs, name, seed, task.corpus.get(name)) for name in names}
    return {"accuracy": task.aggregate(list(without_sound.values())), "hearing_gain": gain}


def paired_scores(pairs: Sequence[tuple[Row, Row]], name: str, seed: int, formula: str | None = None) -> dict[str, Any]:
    """How much better a score is in one run than in another on the same items.

    Args:
        pairs: Rows of one item each, before and after.
        name: Name of the score.
        seed: Seed of the interval.
        formula: Key of `corpus.FORMULAS` if the score is defined over a corpus; None: it is a mean.
    Returns:
        What `stats.paired_difference` returns, from whole clips where items share them, turned so that above 0 is
        better: after minus before, and before minus after for scores that count errors. Where scores are not only 0 or
        1, the interval is a bootstrap, and `wins` and `losses` count the items whose score became better and worse.
        `accuracy_b` and `accuracy_a` are the values after and before.
    """
    before, after = ([row["scores"][name] for row in side] for side in zip(*pairs, strict=True))
    errors = lower_is_better(pairs[0][1], name)
    means = {"accuracy_a": sum(before) / len(pairs), "accuracy_b": sum(after) / len(pairs)}
    if formula is not None and all(name in row.get("counts", {}) for pair in pairs for row in pair):
        counts_before, counts_after = ([row["counts"][name] for row in side] for side in zip(*pairs, strict=True))
        groups = [row["language"] or "" for _, row in pairs]
        shared = clusters.recording_clusters([row for _, row in pairs])
        difference: dict[str, Any] = corpus_difference(
            counts_after, counts_before, groups, formula, clusters=shared, seed=seed
        )
        means = {"accuracy_a": difference.pop("before"), "accuracy_b": difference.pop("after")}
    elif stats.is_binary(before) and stats.is_binary(after):
        best = 0 if errors else 1
        flags = [value == best for value in after], [value == best for value in before]
        shared = clusters.clip_clusters([row for _, row in pairs])
        clustered = clusters.paired_difference(*flags, shared, seed=seed)
        return stats.paired_difference(*flags, seed=seed) | means | (clustered or {})
    else:
        shared = clusters.clip_clusters([row for _, row in pairs])
        difference = clusters.paired_difference(after, before, shared, seed=seed) or stats.paired_bootstrap(
            after, before, seed=seed
        )
    rises = sum(a > b for a, b in zip(after, before, strict=True))
    falls = sum(a < b for a, b in zip(after, before, strict=True))
    wins, losses = (falls, rises) if errors else (rises, falls)
    return improvement(difference, errors) | means | {"wins": wins, "losses": losses, "method": "bootstrap"}


def _labelled_rows(folder: Path) -> dict[str, Row]:
    rows = read_log(folder / SAMPLES)
    return {row["id"]: row for row in rows if not row["permutation"] and row["scores"] is not None}


def _by_value(rows: Sequence[Row], group: str, task: Task) -> dict[str, Any]:
    """Metrics by the values of one field, the most common value first."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(str(row[group] or "none"), []).append(row)
    ordered = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
    return {value: task.aggregate(group_rows) for value, group_rows in ordered}


def _by_options(rows: Sequence[Row], aggregate: Aggregate) -> dict[str, Any]:
    """Metrics by number of options, the most common number first: chance differs between them."""
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(len(row["choices"]), []).append(row)
    return {
        f"{count} options" if count else "open": {"chance": 1 / count if count else None, **aggregate(group_rows)}
        for count, group_rows in sorted(members.items(), key=lambda item: (-len(item[1]), -item[0]))
    }


def _chance_and_position(rows: Sequence[Row]) -> Mapping[str, Any]:
    """Chance level and position bias of the multiple-choice items."""
    with_options = [row for row in rows if row["gold_position"] is not None]
    if not with_options:
        return {"chance": None, "chance_n": 0, "position": None}
    return {
        "chance": stats.chance_level([len(row["choices"]) for row in with_options]),
        "chance_n": len(with_options),
        "position": stats.position_bias(
            [row["gold_position"] for row in with_options], [row["choice"] for row in with_options]
        ),
    }
