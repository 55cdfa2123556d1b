"""`earwise report`: one HTML page about evaluation and training runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import json_option, note, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, UserPath
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.report import RunSource
    from earwise.report.published_figures import PublishedFigure


@dataclass(frozen=True)
class ReportCommand:
    """The options of `earwise report`."""

    folders: tuple[Path, ...]
    out: Path | None
    training: tuple[Path, ...]
    title: str | None
    seed: int
    audio_mb: float
    published: Path | None
    published_models: tuple[str, ...]
    tables: Path | None
    as_json: bool


@click.command("report", short_help="One HTML page of runs, with every sample, players and training curves.")
@click.argument("folders", nargs=-1, required=True, metavar="RUN...", type=FILE)
@click.option("--out", "-o", type=FILE, help="File to write. [default: report.html in the last RUN]")
@click.option(
    "--training",
    "-t",
    multiple=True,
    type=FILE,
    help="Folder of a training run (or its metrics.jsonl) whose curves are drawn; may be repeated.",
)
@click.option("--title", help="Title of the page. [default: Evaluation; for training runs their names]")
@click.option("--seed", default=0, show_default=True, help="Seed of the order in which clips are put into the page.")
@click.option(
    "--audio-mb",
    default=6.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Megabytes of clips in the page; the others are linked by their path.",
)
@click.option(
    "--published",
    type=UserPath(dir_okay=False),
    help="JSON or CSV of published figures (model, value in percent, source) to show beside the score. [default: those "
    "that the package knows for the last run's benchmark and edition]",
)
@click.option(
    "--published-model",
    "published_models",
    multiple=True,
    metavar="TEXT",
    help="Only published figures of models whose name contains TEXT; may be repeated.",
)
@click.option(
    "--tables",
    type=UserPath(file_okay=False),
    help="Folder for every table of the page as CSV, Markdown and LaTeX.",
)
@json_option
def command(**values: Any) -> None:
    """Write one self-contained page about RUNs.

    The first RUN is the baseline (before); the last is the run that the page is about (after).

    A RUN is a folder of `earwise evaluate`, or of `earwise train`: of the latter the page shows the evaluations before
    and after training, the curves, and samples from the training.

    \b
    earwise report runs/first
    earwise report runs/r1-aqa-cpu
    earwise report runs/before runs/after --training runs/r1-aqa --out report.html
    earwise report runs/first --tables tables/
    earwise report runs/mmau --published-model Qwen2-Audio
    """
    from earwise.report import write_report
    from earwise.report.published_figures import matching
    from earwise.report.table_files import write_tables
    from earwise.report.training import is_training_run, read_evaluations

    options = collect_options(ReportCommand, values)
    folders, out = options.folders, options.out
    if out is not None and out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the file to write, for example {out / 'report.html'}")
    training_runs = [folder for folder in folders if is_training_run(folder)]
    runs: list[RunSource] = []
    for folder in folders:
        runs += read_evaluations(folder, len(folders) == 1) if folder in training_runs else [folder]
    logs = [path / "metrics.jsonl" if path.is_dir() else path for path in (*training_runs, *options.training)]
    default_title = ", ".join(folder.absolute().name for folder in training_runs) or "Evaluation"
    path = write_report(
        out or folders[-1] / "report.html", runs, logs, title=options.title or default_title, seed=options.seed,
        audio_budget=int(options.audio_mb * 1e6),
        published=matching(_figures(runs, options.published), options.published_models),
    )  # fmt: skip
    table_files = []
    if options.tables is not None:
        table_files = write_tables(path.read_text(encoding="utf-8"), options.tables)
    if options.as_json:
        print_json({"report": str(path)} | ({"tables": [str(file) for file in table_files]} if table_files else {}))
    else:
        note(f"{path.stat().st_size / 1e6:.1f} MB")
        click.echo(str(path))


def _figures(runs: "list[RunSource]", published: Path | None) -> "list[PublishedFigure]":
    """The figures of a file, or those that the package knows for the last run."""
    from earwise.apps.paper_tables.beside_run import figures_beside
    from earwise.evaluation.results import read_run
    from earwise.report.published_figures import read_published

    if published is not None:
        return read_published(published)
    if not runs:
        return []
    last = runs[-1]
    return figures_beside((read_run(last) if isinstance(last, Path) else last).metrics)
