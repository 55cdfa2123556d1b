"""`earwise table`: a paper's own tables, with a model's figures beside the published ones."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.evaluation.judges import estimate_option, judge_option
from earwise.commands.loading import channel_option, json_option, model_option, note, open_engine, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.apps.paper_tables.measure import MeasuredPaper
    from earwise.apps.task_runs import TaskRunOptions
    from earwise.audio import Channel
    from earwise.evaluation.judge.models import JudgeModel


@dataclass(frozen=True)
class TableCommand:
    """The options of `earwise table`."""

    paper: str
    data: Path | None
    fixtures: bool
    model: str
    out: Path | None
    limit: int | None
    style: str
    max_new_tokens: int | None
    batch: int
    channel: "Channel"
    judges: tuple[str, ...]
    judge_estimate: bool
    allow_missing: bool
    list_sets: bool
    as_json: bool

    @property
    def folder(self) -> Path:
        """Folder of the runs and tables."""
        return self.out or Path("runs") / f"table-{self.paper}"

    def sets_folder(self) -> Path:
        """Folder with the paper's sets; hand-made ones are written into the folder of the runs.

        Raises:
            ConfigError: if the folder is not there, or there is no such paper.
        """
        from earwise.apps.paper_tables.fixtures import write_fixtures
        from earwise.apps.paper_tables.published import find_paper

        find_paper(self.paper)
        data = self.data or self.folder / "fixtures"
        if self.data is None and not data.exists():
            write_fixtures(data)
        if not data.is_dir():
            raise ConfigError(f"--data {data}: no such folder")
        return data

    def run_options(self) -> "TaskRunOptions":
        """How the sets are run."""
        from earwise.apps.task_runs import TaskRunOptions
        from earwise.evaluation.options import EvalOptions
        from earwise.evaluation.processes.parts import launched_part

        return TaskRunOptions(
            options=EvalOptions(style=self.style, shuffle_options=False, batch=self.batch, channel=self.channel),
            max_new_tokens=self.max_new_tokens,
            blind=(),
            limit=self.limit,
            part=launched_part(),
            allow_missing=self.allow_missing,
        )


@click.command("table", short_help="A paper's tables: published figures, and a model's beside them.")
@click.argument("paper", metavar="PAPER")
@click.option("--data", type=FILE, metavar="DIR", help="Folder with the paper's sets; --list names their places.")
@click.option("--fixtures", is_flag=True, help="Hand-made rows on bundled clips in place of the sets, marked as such.")
@model_option
@click.option("--out", "-o", type=FILE, help="Folder of the runs and tables. [default: runs/table-PAPER]")
@click.option("--limit", type=click.IntRange(1), help="Only this number of items of each set.")
@click.option("--style", metavar="STYLE", default="", help="Prompt style of all sets. [default: each task's own]")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest completion, in tokens. [default: the task's]")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Items asked together.")
@channel_option
@judge_option
@estimate_option
@click.option("--allow-missing", is_flag=True, help="Count items whose clip is missing as wrong.")
@click.option("--list", "list_sets", is_flag=True, help="List the sets of PAPER with their places; measure nothing.")
@json_option
def command(**values: Any) -> None:
    """Print the tables of PAPER (r1-aqa, sari, qwen2-audio, mellow, xs-cot) with MODEL's figures beside the published.

    \b
    earwise table r1-aqa --list
    earwise table r1-aqa --data benchmarks/ --model runs/r1-aqa/final --out runs/r1-aqa-table
    earwise table qwen2-audio --data benchmarks/ --model runs/mine/final --judge "http://127.0.0.1:8000/v1#NAME"
    earwise table mellow --fixtures --limit 4

    Sets that are not there are named below the tables; columns that a judge scores say so until one is named. OUT gets
    table.md, table.csv, table.tex, table.json and a folder a set; the same command again continues. Options of
    questions stand in the order of the file, as in the papers' programs, and no blind control is run: use `earwise
    evaluate` for those.
    """
    options = collect_options(TableCommand, values)
    if options.list_sets:
        _list_sets(options)
        return
    if options.fixtures == (options.data is not None):
        raise ConfigError("give --data DIR with the paper's sets, or --fixtures for hand-made rows")
    if options.judge_estimate:
        _print_estimate(options)
        return
    result = _measure(options)
    _write(result, options.folder)
    if options.as_json:
        from earwise.apps.paper_tables.render import as_json

        print_json(as_json(result) | {"out": str(options.folder)})
        return
    click.echo((options.folder / "table.md").read_text(encoding="utf-8"))
    names = "table.md, table.csv, table.tex, table.json"
    click.echo(f"{options.folder}/{names}; a page to read: earwise report {options.folder}/SET")


def _list_sets(options: TableCommand) -> None:
    """Print the sets of the paper and the places of their files."""
    from earwise.apps.paper_tables.published import benchmark_sets, find_paper

    sets = [(key, benchmark_sets()[key]) for key in find_paper(options.paper).sets]
    if options.as_json:
        print_json({"sets": [{"set": key, "name": entry.name, "file": entry.file} for key, entry in sets]})
    else:
        click.echo("\n".join(f"{entry.file:48} {entry.name}" for _, entry in sets))


def _measure(options: TableCommand) -> "MeasuredPaper":
    """Measure the model on the paper's sets."""
    from earwise.apps.paper_tables.measure import measure_paper
    from earwise.apps.paper_tables.published import find_paper

    paper, data = find_paper(options.paper), options.sets_folder()
    run_options, judges = options.run_options(), _open_judges(options.judges)
    engine = open_engine(options.model)
    try:
        return measure_paper(paper, data, engine, options.folder, run_options, judges=judges, notify=note)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished answers are kept in {options.folder}, the same command continues from there"
        ) from None


def _print_estimate(options: TableCommand) -> None:
    """Print what the judges would be asked about each set."""
    from earwise.apps.paper_tables.measure import estimate_judges
    from earwise.apps.paper_tables.published import find_paper

    if not options.judges:
        raise ConfigError("--judge-estimate: there is no judge; add --judge MODEL")
    paper, data = find_paper(options.paper), options.sets_folder()
    run_options, judges = options.run_options(), _open_judges(options.judges)
    costs = estimate_judges(paper, data, options.folder, run_options, judges)
    if options.as_json:
        print_json({"judges": [{"set": key, **asdict(cost)} for key, cost in costs]})
        return
    click.echo("\n".join(f"{key}: {cost.describe()}" for key, cost in costs) or "no set of this paper needs a judge")


def _open_judges(names: tuple[str, ...]) -> "list[JudgeModel]":
    from earwise.evaluation.judge.models import open_judge

    return [open_judge(name, open_engine, note) for name in names]


def _write(result: "MeasuredPaper", out: Path) -> None:
    """Write the tables in all forms."""
    from earwise.apps.paper_tables.render import as_csv, as_json, as_latex, as_markdown
    from earwise.files import write_json, write_text

    write_text(out / "table.md", as_markdown(result))
    write_text(out / "table.csv", as_csv(result))
    write_text(out / "table.tex", as_latex(result))
    write_json(out / "table.json", as_json(result))
