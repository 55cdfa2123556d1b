"""Two runs on the same items: which items each of them answers correctly, and how certain the difference is.

Reads two folders that `evaluation.run` wrote. Everything is paired by item id, so that the difficulty of the items,
which is most of the noise, cancels out. Runs on different items are refused, because their scores measure different
things.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.results import EvalRun, Row, read_run
from earwise.evaluation.scores import LOWER_IS_BETTER, lower_is_better, score_names, shared_headline
from earwise.evaluation.summary import GROUPS, is_group, paired_scores

MAX_NAME_CHARS = 24
"""Longest head of a run's column."""
Formulas = Mapping[str, str | None]
"""Name of a score -> its formula over a corpus, a key of `corpus.FORMULAS`; None: it is a mean."""


def compare(a: Path | EvalRun, b: Path | EvalRun, *, common: bool = False, seed: int = 0) -> dict[str, Any]:
    """Paired comparison of run `b` with run `a`.

    Args:
        a: The run to compare with (before).
        b: The run in question (after).
        common: Compare on the items that both runs have, instead of refusing runs on different items.
        seed: Seed of the intervals.
    Returns:
        `a`, `b` (names), `n`, `only_a`, `only_b` (items left out), `headline` (name of the score that sums up both),
        `scorers`, `lower_is_better` (names of the scores that count errors), and for every score that both runs have:
        `accuracy_a`, `accuracy_b`, `relative_change`, the paired `difference` with its interval and p, `wins` (better
        in b), `losses` (better in a) and the `method` (see `summary.paired_scores`). A difference above 0 means that b
        is better, also for error rates. The same for every value of every group under `by`.
    Raises:
        DataError: if a folder holds no finished run, the runs are on different items and `common` is False, or they
            share no item or no score.
    """
    run_a, run_b = (run if isinstance(run, EvalRun) else read_run(run) for run in (a, b))
    rows_a, rows_b = _labelled(run_a), _labelled(run_b)
    shared = [item for item in rows_a if item in rows_b and _is_same_item(rows_a[item], rows_b[item])]
    only_a, only_b = len(rows_a) - len(shared), len(rows_b) - len(shared)
    if not shared:
        raise DataError(
            f"{run_a.path} and {run_b.path} share no item; compare runs of one task on one version of its data"
        )
    if (only_a or only_b) and not common:
        raise DataError(
            f"{run_a.path} and {run_b.path} are on different items ({only_a} only in the first, "
            f"{only_b} only in the second, {len(shared)} the same); say --common to compare on those they share"
        )
    pairs = [(rows_a[item], rows_b[item]) for item in shared]
    names = [name for name in score_names(list(rows_a.values())) if name in score_names(list(rows_b.values()))]
    formulas = {name: run_b.metrics.get("corpus", {}).get(name) for name in names}
    return {
        "a": run_a.name,
        "b": run_b.name,
        "n": len(shared),
        "only_a": only_a,
        "only_b": only_b,
        "headline": shared_headline([run_a, run_b]),
        "scorers": sorted({run_a.metrics["scorer"], run_b.metrics["scorer"]}),
        LOWER_IS_BETTER: [name for name in names if lower_is_better(run_b.metrics, name)],
        **_paired(pairs, formulas, seed),
        "by": _by_group(pairs, formulas, seed),
    }


def as_text(result: dict[str, Any], name: str | None = None) -> str:
    """The comparison as a table for the terminal.

    Args:
        result: What `compare` returned.
        name: Name of the score to show; None: the headline.
    Raises:
        DataError: if the runs do not both have this score.
    """
    name = name or result["headline"]
    if name not in result:
        available = [key for key, value in result.items() if isinstance(value, dict) and "difference" in value]
        raise DataError(f"score {name!r} is not in both runs; choose one of {', '.join(available)}")
    width = max(18, *(len(value) + 2 for group in result["by"].values() for value in group)) if result["by"] else 18
    a, b = column_names(result["a"], result["b"])
    column = max(12, len(a), len(b))
    counts_errors = name in result[LOWER_IS_BETTER]
    change = "better by" if counts_errors else "difference"
    header = f"{'':{width}}{'n':>6}  {a:>{column}}  {b:>{column}}  {change:>10}  "
    header += f"{'95 % interval':>16}  {'p':>7}  wins/losses"
    lines = [header, _line("all", result[name], width, column)]
    for group, members in result["by"].items():
        lines.append(f"by {group.replace('_', '-')}")
        lines += [_line("  " + value, row[name], width, column) for value, row in members.items()]
    if result["only_a"] or result["only_b"]:
        lines.append(
            f"left out: {result['only_a']} items only in {result['a']}, {result['only_b']} only in {result['b']}"
        )
    if (change_share := result[name]["relative_change"]) is not None:
        lines.append(f"relative change of {name}: {100 * change_share:+.1f} %")
    lines.append(
        f"{name} scores, percent and points{', less is better' * counts_errors}; paired over items: bootstrap, or "
        "exact (marked *) where few differ; "
        f"scorer {', '.join(result['scorers'])}"
    )
    return "\n".join(lines)


def _by_group(pairs: Sequence[tuple[Row, Row]], formulas: Formulas, seed: int) -> dict[str, Any]:
    """The comparison for the values of every group that any item has a value of, the most common value first."""
    by: dict[str, Any] = {}
    for group in GROUPS:
        members: dict[str, list[tuple[Row, Row]]] = {}
        for pair in pairs:
            members.setdefault(str(pair[0][group] or "none"), []).append(pair)
        if is_group(group, [row for row, _ in pairs]):
            ordered = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
            by[group] = {value: _paired(group_pairs, formulas, seed) for value, group_pairs in ordered}
    return by


def _paired(pairs: Sequence[tuple[Row, Row]], formulas: Formulas, seed: int) -> dict[str, Any]:
    paired = {name: paired_scores(pairs, name, seed, formula) for name, formula in formulas.items()}
    return {name: row | {"relative_change": relative_change(row)} for name, row in paired.items()}


def relative_change(row: Mapping[str, Any]) -> float | None:
    """Change of a score as a share of its value before, as XS-CoT reports its GPT-score; None if that was 0."""
    before, after = row["accuracy_a"], row["accuracy_b"]
    return (after - before) / before if before else None


def column_names(a: str, b: str) -> tuple[str, str]:
    """Names of two runs as heads of columns of at most `MAX_NAME_CHARS` characters, which tell them apart.

    Of long names the part around the place where they begin to differ is kept. Names that are equal then, or at all
    (of folders in different places), are numbered.

    >>> column_names("before", "after")
    ('before', 'after')
    >>> column_names("r1-aqa-lora-mmau-test-mini-seed-1", "r1-aqa-lora-mmau-test-mini-seed-2")
    ('...mmau-test-mini-seed-1', '...mmau-test-mini-seed-2')
    >>> column_names("run", "run")
    ('run (1)', 'run (2)')
    """
    pairs = enumerate(zip(a, b, strict=False))
    common = next((place for place, (first, second) in pairs if first != second), min(len(a), len(b)))
    heads = _shortened(a, common, MAX_NAME_CHARS), _shortened(b, common, MAX_NAME_CHARS)
    if heads[0] != heads[1]:
        return heads
    return f"{_shortened(a, common, MAX_NAME_CHARS - 4)} (1)", f"{_shortened(b, common, MAX_NAME_CHARS - 4)} (2)"


def _shortened(name: str, common: int, size: int) -> str:
    """At most `size` characters of a name, among them those from number `common` on."""
    if len(name) <= size:
        return name
    start = max(0, min(common - size // 2, len(name) - size))
    before = "..." if start else ""
    after = "..." if start + size < len(name) else ""
    return before + name[start + len(before) : start + size - len(after)] + after


def _line(label: str, row: dict[str, Any], width: int, column: int) -> str:
    interval = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    mark = "*" if row["method"] == "exact" else " "
    return (
        f"{label:{width}}{row['n']:>6}  {100 * row['accuracy_a']:>{column}.1f}  "
        f"{100 * row['accuracy_b']:>{column}.1f}  "
        f"{100 * row['difference']:>+10.1f}  {interval:>16}{mark} {row['p']:>7.4f}  {row['wins']}/{row['losses']}"
    )


def _labelled(run: EvalRun) -> dict[str, Row]:
    return {item: row for item, row in run.first.items() if row["scores"] is not None}


def _is_same_item(a: Row, b: Row) -> bool:
    """Whether two rows are about one item: same question, options in any order and answers; and the same clip, unless
    one of the runs is a blind control."""
    if any(a[key] != b[key] for key in ("question", "gold")) or sorted(a["choices"]) != sorted(b["choices"]):
        return False
    hash_a, hash_b = a["audio_sha256"], b["audio_sha256"]
    is_blind = bool(a["control"] or b["control"])
    return is_blind or not (hash_a and hash_b) or bool(hash_a == hash_b)
