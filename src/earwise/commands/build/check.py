"""`earwise build check`: is a data set fit to train and to measure with? And the same, run after every builder."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import find_manifest, json_option, note, open_engine, print_json
from earwise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from earwise.datasets.checks.contamination import Asked
    from earwise.datasets.checks.fingerprint import Print
    from earwise.types import Example

FILE = click.Path(path_type=Path)
SMALL_BYTES = 300_000  # of manifests: some 500 rows
MANY_ROWS = 20_000  # more are checked without listening, which would take minutes; `build check` does

check_option = click.option(
    "--check/--no-check",
    "checked",
    default=True,
    show_default=True,
    help="Check what was built (bias, leaks, copies, silence) and write a page about it beside it.",
)


@click.command("check", short_help="Check a manifest: bias, leaks, copies, silence.")
@click.argument("manifests", nargs=-1, required=True, metavar="MANIFEST...")
@click.option("--strict", is_flag=True, help="Fail (exit code 2) if there is any problem.")
@click.option(
    "--listen/--no-listen",
    default=True,
    show_default=True,
    help="Also read every sound: silence, copies and near copies, broken files, loudness, durations.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="BENCHMARK",
    help="What must not be in the data: a benchmark's question file, a manifest, or a file of prints; several times.",
)
@click.option("--html", "page", type=FILE, help="Write a page (and its figures as JSON beside it).")
@click.option("--prints", "prints_out", type=FILE, help="Write prints of all sounds, for others' --against.")
@click.option(
    "--asked", "asked_out", type=FILE, help="Write hashes of all questions and videos, for others' --against."
)
@click.option("--deaf", metavar="MODEL", help="Also ask this model every question with silence in place of the sound.")
@click.option("--filtered", type=FILE, help="With --deaf: write the rows that the model does not answer without sound.")
@click.option("--workers", type=click.IntRange(1), help="Processes that decode; one a core by default.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Of the halves that the listener without ears learns from and is tested on.",
)
@json_option
def command(
    manifests: tuple[str, ...],
    strict: bool,
    listen: bool,
    against: tuple[str, ...],
    page: Path | None,
    prints_out: Path | None,
    asked_out: Path | None,
    deaf: str | None,
    filtered: Path | None,
    workers: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Check MANIFESTs together: can a deaf model guess the answers, does a recording stand in two splits?

    \b
    earwise build check train.jsonl val.jsonl --html checks.html
    earwise build check starter:train starter:val --strict
    earwise build check train.jsonl --against mmau-test-mini.json --against mmar.prints
    """
    from earwise.datasets.checks import check_examples, contamination

    if filtered is not None and deaf is None:
        raise ConfigError("--filtered needs a model that answers without sound; name one with --deaf")
    paths = [find_manifest(name) for name in manifests]
    benchmarks = [_benchmark(name, workers) for name in against]
    known, theirs = (
        [one for prints, _ in benchmarks for one in prints],
        contamination.joined(each for _, each in benchmarks),
    )
    workers = _workers(paths, workers)
    report = check_examples.check(
        _rows(paths, listen), listen=listen, seed=seed, against=known, asked=theirs, workers=workers
    )
    if deaf is not None:
        _ask_deaf(report, list(_rows(paths)), deaf, filtered)
    if prints_out is not None:
        from earwise.datasets.checks import fingerprint

        sounds = (path for example in _rows(paths) for path in example.audio_paths)
        note(f"{prints_out}: {fingerprint.write(prints_out, check_examples.prints(sounds, workers))} prints")
    if asked_out is not None:
        note(
            f"{asked_out}: "
            f"{contamination.write(asked_out, contamination.joined(map(contamination.read, paths)))} hashes"
        )
    if page is not None:
        from earwise.datasets.checks import html_report

        html_report.write(page, report, ", ".join(manifests), _rows(paths), seed)
    if as_json:
        print_json(report)
    else:
        _print(report, manifests)
        if page is not None:
            click.echo(f"  {page}")
    if strict and report["problems"]:
        raise DataError(f"{', '.join(manifests)}: {report['problems'][0]} ({len(report['problems'])} problems in all)")


def after(
    manifests: "Sequence[Path]", *, strict: bool = False, listen: bool = True, workers: int | None = None
) -> dict[str, Any]:
    """What every builder ends with: check its manifests together, write the page beside the first, say what is wrong.

    Args:
        manifests: All that the builder wrote; of `a/b.jsonl` the page is `a/b.checks.html`.
        strict: Raise if there is any problem.
        listen: Also read the sounds, if there are not too many; False where they need not be there.
        workers: Processes that decode; None for one a core.
    Returns:
        The report, see `checks.check`.
    Raises:
        DataError: if `strict` and something is wrong.
    """
    from earwise.datasets.checks import check_examples, html_report

    if listen and (count := sum(1 for path in manifests for _ in path.open("rb"))) > MANY_ROWS:
        listen = False
        note(f"{count} rows: checked without their sounds; `earwise build check` listens to them")
    report = check_examples.check(_rows(manifests), listen=listen, workers=_workers(manifests, workers))
    page = manifests[0].with_suffix(".checks.html")
    html_report.write(page, report, ", ".join(path.name for path in manifests), _rows(manifests))
    problems = report["problems"]
    note(f"checks: {len(problems)} problems, {page}" if problems else f"checks: no problems, {page}")
    for line in problems[:5]:
        note(f"  {line}")
    if strict and problems:
        raise DataError(f"{manifests[0]}: {problems[0]} ({len(problems)} problems in all; see {page})")
    return report


def _rows(paths: "Sequence[Path]", check_files: bool = False) -> "Iterator[Example]":
    """The rows of all manifests, one after the other; an empty one is refused as by `manifest.read`."""
    from earwise.data import manifest

    for path in paths:
        count = 0
        for example in manifest.iterate(path, check_files=check_files):
            count += 1
            yield example
        if not count:
            raise DataError(f"{path}: holds no rows; write at least one")


def _workers(paths: "Sequence[Path]", workers: int | None) -> int | None:
    """Processes cost a second to start: a small set is decoded by this one."""
    small = sum(path.stat().st_size for path in paths if path.is_file()) < SMALL_BYTES
    return 1 if workers is None and small else workers


def _benchmark(name: str, workers: int | None) -> "tuple[list[Print], Asked]":
    """Prints of a benchmark's sounds, where they are at hand or stand in a file, and what it asks."""
    from earwise.data import manifest
    from earwise.datasets.checks import check_examples, contamination, fingerprint

    path = find_manifest(name)
    if fingerprint.is_prints(path):
        return fingerprint.read(path), contamination.Asked()
    known = contamination.read(path)
    if not _is_manifest(path):
        return [], known
    return check_examples.prints((one for row in manifest.iterate(path) for one in row.audio_paths), workers), known


def _is_manifest(path: Path) -> bool:
    from earwise.data.sources import row_readers

    return any("messages" in row for _, row in islice(row_readers.json_rows(path, (), lambda _: None), 1))


def _ask_deaf(report: dict[str, Any], examples: "Sequence[Example]", model: str, filtered: Path | None) -> None:
    from earwise.data import manifest
    from earwise.datasets.checks import blind_model as without_ears
    from earwise.datasets.checks import check_examples

    shares = without_ears.answered(examples, open_engine(model), progress=note)
    report["bias"][f"model_{model}"] = without_ears.listener(examples, shares)
    report["problems"] = check_examples.problems(report)
    if filtered is not None:
        kept = without_ears.needing_ears(examples, shares)
        note(f"{filtered}: {manifest.write(filtered, kept)} of {len(examples)} rows need ears")


def _print(report: dict[str, Any], manifests: "Sequence[str]") -> None:
    click.echo(f"{', '.join(manifests)}: {report['n']} rows")
    for listener, rate in report["bias"].items():
        click.echo(
            f"  without ears, {listener}: right {rate['accuracy']:.3f} of {rate['n']:.0f}, chance {rate['chance']:.3f}"
        )
    for problem in report["problems"]:
        click.echo(f"  problem: {problem}")
    click.echo("  no problems" if not report["problems"] else f"  {len(report['problems'])} problems")
