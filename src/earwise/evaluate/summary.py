"""Rows into `metrics.json`: accuracies with their n and intervals, what could not be read, position bias, the hearing
gain.

Between `evaluate.run`, which makes the rows, and everything that prints. Pure on rows, but for `blind_summary`, which
reads two runs. The denominator is every labelled item, whatever became of its answer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.evaluate.metrics import stats
from earwise.evaluate.results import SAMPLES, Row, Settings, settings_hash
from earwise.files import read_log
from earwise.prompts import THINKING

KINDS = ("official", "strict", "lenient")
GROUPS = ("task", "category", "sub_category", "difficulty")


def headline(style: str) -> str:
    """The kind of score that sums a run up: official, but lenient (the official matcher on the extracted answer) for
    styles that reason aloud, where the official matcher also reads every option the reasoning weighs.
    """
    return "lenient" if style in THINKING else "official"


def accuracies(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Official, strict and lenient accuracy of labelled rows, each with n and its 95 % Wilson interval."""
    return {kind: stats.accuracy_row([row["scores"][kind] >= 1 for row in rows]) for kind in KINDS}


def share(flags: Sequence[bool]) -> dict[str, float]:
    """How many of how many, and the share."""
    return {"count": sum(flags), "n": len(flags), "share": sum(flags) / len(flags) if flags else 0.0}


def summarise(rows: Iterable[Row], settings: Settings) -> dict[str, Any]:
    """What `metrics.json` holds.

    Args:
        rows: All rows of a run, all permutations of the options.
        settings: The run's settings.
    Returns:
        `n`, `headline` (the kind that sums up), `accuracy` (official, strict, lenient), the same `by` task, category,
        sub_category and difficulty, `kinds` (the same by number of options, each with its `chance`, None of open
        questions), counts of `status`, `unparsed`, `ambiguous` and `error` shares, `format` (None in styles without
        tags), `cut` (answers ended by the token limit), `chance` of the `chance_n` items with options, `position` bias
        and `permutations` (choices only), `silent` and `truncated` clips, `seconds`.
    """
    everything = list(rows)
    first = [row for row in everything if not row["permutation"]]
    labelled = [row for row in first if row["scores"] is not None]
    status = Counter(row["status"] for row in first)
    formatted = [row["formatted"] for row in first if row["formatted"] is not None]
    benchmarks = sorted({row["benchmark"] for row in first if row["benchmark"]})
    return {
        "n": len(labelled),
        "unlabelled": len(first) - len(labelled),
        "model": settings["model"],
        "revision": settings["revision"],
        "benchmark": ", ".join(benchmarks) or None,
        "control": settings["control"],
        "scorer": settings["scorer"],
        "headline": headline(settings["style"]),
        "settings": settings_hash(settings),
        "accuracy": accuracies(labelled) if labelled else None,
        "by": {group: _by(labelled, group) for group in GROUPS if any(row[group] for row in labelled)},
        "kinds": _kinds(labelled),
        "status": dict(sorted(status.items())),
        **{name: share([row["status"] == name for row in first]) for name in ("unparsed", "ambiguous", "error")},
        "format": stats.accuracy_row(formatted) if formatted else None,
        "cut": share([row["finish_reason"] == "length" for row in first]),
        "silent": sum(row["silent"] for row in first),
        "truncated": sum(row["truncated"] for row in first),
        **_choices(labelled),
        "permutations": _permutations(
            [row for row in everything if row["scores"] is not None], headline(settings["style"])
        ),
        "seconds": round(sum(row["seconds"] for row in everything), 2),
        "first_error": next((row["explanation"] for row in first if row["status"] == "error"), None),
    }


def blind_summary(real: Path, blind: Path, seed: int) -> dict[str, Any]:
    """Accuracy without the sound, and the hearing gain: real minus blind on the same items, paired.

    Args:
        real: Folder of the run with sound.
        blind: Folder of the same items under a control.
        seed: Seed of the intervals.
    Returns:
        `accuracy` (official, strict, lenient of the blind run) and `hearing_gain` (the same three, see
        `stats.paired_difference`).
    """
    with_sound, without = _labelled(real), _labelled(blind)
    shared = [item for item in with_sound if item in without]
    gain = {
        kind: stats.paired_difference(
            [with_sound[item]["scores"][kind] >= 1 for item in shared],
            [without[item]["scores"][kind] >= 1 for item in shared],
            seed=seed,
        )
        for kind in KINDS
    }
    return {"accuracy": accuracies(list(without.values())), "hearing_gain": gain}


def _labelled(folder: Path) -> dict[str, Row]:
    rows = read_log(folder / SAMPLES)
    return {row["id"]: row for row in rows if not row["permutation"] and row["scores"] is not None}


def _by(rows: Sequence[Row], group: str) -> dict[str, Any]:
    """Accuracies by the values of one field, the commonest first."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(str(row[group] or "none"), []).append(row)
    return {
        name: accuracies(found) for name, found in sorted(members.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    }


def _kinds(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracies by number of options, the commonest first: a guess is worth more among two than among four, and
    nothing where there are none."""
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(len(row["choices"]), []).append(row)
    return {
        f"{count} options" if count else "open": {"chance": 1 / count if count else None, **accuracies(found)}
        for count, found in sorted(members.items(), key=lambda pair: (-len(pair[1]), -pair[0]))
    }


def _choices(rows: Sequence[Row]) -> Mapping[str, Any]:
    """Chance and position bias of the multiple-choice items."""
    chosen = [row for row in rows if row["gold_position"] is not None]
    if not chosen:
        return {"chance": None, "chance_n": 0, "position": None}
    return {
        "chance": stats.chance_level([len(row["choices"]) for row in chosen]),
        "chance_n": len(chosen),
        "position": stats.position_bias([row["gold_position"] for row in chosen], [row["choice"] for row in chosen]),
    }


def _permutations(rows: Sequence[Row], kind: str) -> dict[str, Any] | None:
    """Accuracy under every turn of the options, where items were asked more than once."""
    turns = sorted({row["permutation"] for row in rows})
    if len(turns) < 2:
        return None
    items: dict[str, list[bool]] = {}
    for row in rows:
        items.setdefault(row["id"], []).append(row["scores"][kind] >= 1)
    repeated = [flags for flags in items.values() if len(flags) > 1]
    return {
        "k": len(turns),
        "n": len(repeated),
        "mean_accuracy": sum(sum(flags) / len(flags) for flags in repeated) / len(repeated),
        "always_right": sum(all(flags) for flags in repeated) / len(repeated),
        "accuracy": [sum(row["scores"][kind] >= 1 for row in rows if row["permutation"] == turn) for turn in turns],
    }
