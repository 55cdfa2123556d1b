"""`earwise table`: a paper's own tables, with a model's figures beside the published ones."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earwise.commands.evaluation.judges import estimate_option, judge_option
from earwise.commands.loading import json_option, model_option, note, open_engine, print_json
from earwise.commands.paths import FILE
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.apps.paper_tables.measure import MeasuredPaper
    from earwise.apps.task_runs import TaskRunOptions
    from earwise.evaluation.judge.models import JudgeModel


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
@judge_option
@estimate_option
@click.option("--allow-missing", is_flag=True, help="Count items whose clip is missing as wrong.")
@click.option("--list", "list_sets", is_flag=True, help="List the sets of PAPER with their places; measure nothing.")
@json_option
def command(
    paper: str,
    data: Path | None,
    fixtures: bool,
    model: str,
    out: Path | None,
    list_sets: bool,
    judges: tuple[str, ...],
    judge_estimate: bool,
    as_json: bool,
    **settings: "int | str | bool | None",
) -> None:
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
    from earwise.apps.paper_tables.published import benchmark_sets, find_paper

    content = find_paper(paper)
    if list_sets:
        rows = [
            {"set": key, "name": benchmark_sets()[key].name, "file": benchmark_sets()[key].file} for key in content.sets
        ]
        if as_json:
            print_json({"sets": rows})
        else:
            click.echo("\n".join(f"{row['file']:48} {row['name']}" for row in rows))
        return
    if fixtures == (data is not None):
        raise ConfigError("give --data DIR with the paper's sets, or --fixtures for hand-made rows")
    out = out or Path("runs") / f"table-{paper}"
    if data is None:
        from earwise.apps.paper_tables.fixtures import write_fixtures

        data = out / "fixtures"
        if not data.exists():
            write_fixtures(data)
    if judge_estimate:
        _print_estimate(paper, data, out, judges, settings, as_json)
        return
    result = _measure(paper, data, model, out, judges, settings)
    _write(result, out)
    if as_json:
        from earwise.apps.paper_tables.render import as_json as plain

        print_json(plain(result) | {"out": str(out)})
        return
    click.echo((out / "table.md").read_text(encoding="utf-8"))
    click.echo(f"{out}/table.md, table.csv, table.tex, table.json; a page to read: earwise report {out}/SET")


def _measure(
    paper: str,
    data: Path,
    model: str,
    out: Path,
    judges: tuple[str, ...],
    settings: "dict[str, int | str | bool | None]",
) -> "MeasuredPaper":
    """Measure the model on the paper's sets."""
    from earwise.apps.paper_tables.measure import measure_paper
    from earwise.apps.paper_tables.published import find_paper

    options, models = _options(data, settings), _open_judges(judges)
    engine = open_engine(model)
    try:
        return measure_paper(find_paper(paper), data, engine, out, options, judges=models, notify=note)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished answers are kept in {out}, the same command continues from there"
        ) from None


def _print_estimate(
    paper: str,
    data: Path,
    out: Path,
    judges: tuple[str, ...],
    settings: "dict[str, int | str | bool | None]",
    as_json: bool,
) -> None:
    """Print what the judges would be asked about each set."""
    from earwise.apps.paper_tables.measure import estimate_judges
    from earwise.apps.paper_tables.published import find_paper

    if not judges:
        raise ConfigError("--judge-estimate: there is no judge; add --judge MODEL")
    costs = estimate_judges(find_paper(paper), data, out, _options(data, settings), _open_judges(judges))
    if as_json:
        print_json({"judges": [{"set": key, **asdict(cost)} for key, cost in costs]})
        return
    click.echo("\n".join(f"{key}: {cost.describe()}" for key, cost in costs) or "no set of this paper needs a judge")


def _open_judges(names: tuple[str, ...]) -> "list[JudgeModel]":
    from earwise.evaluation.judge.models import open_judge

    return [open_judge(name, open_engine, note) for name in names]


def _options(data: Path, settings: "dict[str, int | str | bool | None]") -> "TaskRunOptions":
    """How the sets are run.

    Raises:
        ConfigError: if the data folder is not there.
    """
    from earwise.apps.task_runs import TaskRunOptions
    from earwise.evaluation.options import EvalOptions
    from earwise.evaluation.processes.parts import launched_part

    if not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder")
    limit, max_new_tokens, batch = (settings[name] for name in ("limit", "max_new_tokens", "batch"))
    return TaskRunOptions(
        options=EvalOptions(style=str(settings["style"]), shuffle_options=False, batch=int(batch or 1)),
        max_new_tokens=None if max_new_tokens is None else int(max_new_tokens),
        blind=(),
        limit=None if limit is None else int(limit),
        part=launched_part(),
        allow_missing=bool(settings["allow_missing"]),
    )


def _write(result: "MeasuredPaper", out: Path) -> None:
    """Write the tables in all forms."""
    from earwise.apps.paper_tables.render import as_csv, as_json, as_latex, as_markdown
    from earwise.files import write_json, write_text

    write_text(out / "table.md", as_markdown(result))
    write_text(out / "table.csv", as_csv(result))
    write_text(out / "table.tex", as_latex(result))
    write_json(out / "table.json", as_json(result))
