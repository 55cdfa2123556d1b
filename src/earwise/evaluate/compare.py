"""Two runs on the same items: who is right where, and how sure the difference is.

Reads two folders that `evaluate.run` wrote. Everything is paired by item id: the items' own difficulty, which is most
of the noise, cancels. Runs on different items are refused, since their accuracies measure different things.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluate.metrics import stats
from earwise.evaluate.results import Row, Run, read_run
from earwise.evaluate.summary import GROUPS, KINDS


def compare(a: Path | Run, b: Path | Run, *, common: bool = False, seed: int = 0) -> dict[str, Any]:
    """Paired comparison of run `b` against run `a`.

    Args:
        a: The run to compare with (before).
        b: The run in question (after).
        common: Compare on the items that both have, instead of refusing runs on different items.
        seed: Seed of the intervals.
    Returns:
        `a`, `b` (names), `n`, `only_a`, `only_b` (items left out), per score kind the two accuracies, the paired
        `difference` with its interval and p, `wins` (right in b alone), `losses` (right in a alone) and the `method`
        (see `stats.paired_difference`); the same for every value of every group `by`.
    Raises:
        DataError: if a folder holds no finished run, the runs are on different items and `common` is False, or they
            share none.
    """
    run_a, run_b = (run if isinstance(run, Run) else read_run(run) for run in (a, b))
    rows_a, rows_b = _labelled(run_a), _labelled(run_b)
    shared = [item for item in rows_a if item in rows_b and _same(rows_a[item], rows_b[item])]
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
    by: dict[str, Any] = {}
    for group in GROUPS:
        members: dict[str, list[tuple[Row, Row]]] = {}
        for pair in pairs:
            members.setdefault(str(pair[0][group] or "none"), []).append(pair)
        if any(name != "none" for name in members):
            by[group] = {
                name: _paired(found, seed) for name, found in sorted(members.items(), key=lambda m: (-len(m[1]), m[0]))
            }
    return {
        "a": run_a.name,
        "b": run_b.name,
        "n": len(shared),
        "only_a": only_a,
        "only_b": only_b,
        "scorers": sorted({run_a.metrics["scorer"], run_b.metrics["scorer"]}),
        **_paired(pairs, seed),
        "by": by,
    }


def as_text(result: dict[str, Any], kind: str = "official") -> str:
    """The comparison as a table for the terminal, for one kind of score."""
    width = max(18, *(len(name) + 2 for group in result["by"].values() for name in group)) if result["by"] else 18
    a, b = result["a"][:12], result["b"][:12]
    header = f"{'':{width}}{'n':>6}  {a:>12}  {b:>12}  {'difference':>10}  {'95 % interval':>16}  {'p':>7}  wins/losses"
    lines = [header, _line("all", result[kind], width)]
    for group, members in result["by"].items():
        lines.append(f"by {group.replace('_', '-')}")
        lines += [_line("  " + name, row[kind], width) for name, row in members.items()]
    if result["only_a"] or result["only_b"]:
        lines.append(
            f"left out: {result['only_a']} items only in {result['a']}, {result['only_b']} only in {result['b']}"
        )
    lines.append(
        f"{kind} scores, percent and points; paired over items: bootstrap, or exact (marked *) where few differ; "
        f"scorer {', '.join(result['scorers'])}"
    )
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any], width: int) -> str:
    interval = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    mark = "*" if row["method"] == "exact" else " "
    return (
        f"{name:{width}}{row['n']:>6}  {100 * row['accuracy_a']:>12.1f}  {100 * row['accuracy_b']:>12.1f}  "
        f"{100 * row['difference']:>+10.1f}  {interval:>16}{mark} {row['p']:>7.4f}  {row['wins']}/{row['losses']}"
    )


def _labelled(run: Run) -> dict[str, Row]:
    return {item: row for item, row in run.first.items() if row["scores"] is not None}


def _same(a: Row, b: Row) -> bool:
    """Whether two rows are one item: question, options in any order, answers; the clip, if neither heard a control."""
    if any(a[key] != b[key] for key in ("question", "gold")) or sorted(a["choices"]) != sorted(b["choices"]):
        return False
    heard = (a["audio_sha256"], b["audio_sha256"])
    return bool(a["control"] or b["control"]) or not all(heard) or heard[0] == heard[1]


def _paired(pairs: Sequence[tuple[Row, Row]], seed: int) -> dict[str, Any]:
    result = {}
    for kind in KINDS:
        a = [before["scores"][kind] >= 1 for before, _ in pairs]
        b = [after["scores"][kind] >= 1 for _, after in pairs]
        result[kind] = {
            **stats.paired_difference(b, a, seed=seed),
            "accuracy_a": sum(a) / len(a),
            "accuracy_b": sum(b) / len(b),
        }
    return result
