"""`earwise build reasonaqa`: ReasonAQA from published captions and questions."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.build.check import check_built, check_option
from earwise.commands.build.published import (
    ManifestSummary,
    audio_option,
    missing_option,
    out_option,
    print_manifest_summary,
)
from earwise.commands.build.teacher import TeacherOptions, open_teacher, teacher_limits, teacher_options
from earwise.commands.loading import json_option, note, print_json
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.datasets.published.missing_audio import OnMissing
    from earwise.datasets.reasonaqa.builder import ReasonAQAResult
    from earwise.datasets.teachers.request_runner import RunEstimate


@dataclass(frozen=True, slots=True)
class ReasonAQACommandOptions:
    """Options of `earwise build reasonaqa`; see the help texts below."""

    files: tuple[str, ...]
    out: Path
    audio_root: Path | None
    on_missing: "OnMissing"
    kinds: str
    per_caption: int
    log_folder: Path | None
    shard: str | None
    dry_run: bool
    seed: int
    run_checks: bool
    as_json: bool
    teacher_options: TeacherOptions


@click.command("reasonaqa", short_help="Captions into captioning, entailment, difference and questions.")
@click.argument("files", nargs=-1, required=True, metavar="SOURCE=PATH...")
@out_option
@audio_option
@missing_option
@click.option(
    "--kinds",
    default="caption",
    show_default=True,
    help="What to make of captions, separated by commas: caption, entailment, difference, multiple_choice, detail, or "
    "all.",
)
@click.option(
    "--per-caption",
    default=5,
    show_default=True,
    help="Number of multiple-choice questions, and of open questions, for each caption.",
)
@click.option(
    "--log", "log_folder", type=FILE, help="Folder of the teacher's answers.  [default: OUT.answers beside OUT]"
)
@click.option(
    "--shard", metavar="I/N", help="Send only this part of the requests; a run without --shard writes the manifest."
)
@click.option("--dry-run", is_flag=True, help="Only estimate the requests and tokens.")
@click.option("--seed", default=0, show_default=True, help="Seed of pairs, wrong options and positions.")
@teacher_options
@check_option
@json_option
def command(**values: Any) -> None:
    """Build ReasonAQA from published files, and compare the counts of its parts with the paper's table.

    SOURCE is audiocaps, clotho, wavcaps or own (captions, which --kinds applies to), or clothoaqa, entailment, adiff or
    reasonaqa (used as they are). own is a file of yours with paths and captions, as CSV or JSON lines. Splits are
    derived from the file names. The same command continues an interrupted run and sends no request twice. On several
    machines: run the command with --shard 1/8 ... 8/8, copy all logs into one folder, and run it there once without
    --shard.

    \b
    earwise build reasonaqa clotho=clotho_captions_development.csv clothoaqa=clotho_aqa_train.csv --out train.jsonl
    earwise build reasonaqa reasonaqa=train.json --audio-root audio/ --out train.jsonl
    earwise build reasonaqa audiocaps=train.csv --kinds all --teacher http://host:8000/v1 --teacher-model M -o t.jsonl
    """
    from earwise.data.sources.skip_log import SkipLog
    from earwise.datasets.reasonaqa import builder
    from earwise.datasets.reasonaqa.task_list import KINDS
    from earwise.datasets.reasonaqa.template_replies import TEMPLATE_REPLIES
    from earwise.datasets.teachers.keyed_log import parse_shard

    options = collect_options(ReasonAQACommandOptions, values)
    kinds = (
        KINDS if options.kinds == "all" else tuple(part.strip() for part in options.kinds.split(",") if part.strip())
    )
    build_options = builder.ReasonAQAOptions(
        kinds, options.per_caption, options.seed, options.audio_root, options.on_missing
    )
    run = builder.TeacherRun(
        open_teacher(options.teacher_options, TEMPLATE_REPLIES),
        options.log_folder or options.out.with_name(f"{options.out.stem}.answers"),
        teacher_limits(options.teacher_options),
        parse_shard(options.shard),
        options.teacher_options.retry_failed,
    )
    files = [_parse_file(file) for file in options.files]
    with SkipLog(options.out, note) as skip_log:
        if options.dry_run:
            estimate = builder.plan_reasonaqa(files, run, build_options, on_skip=skip_log, notify=note)
            _print_estimate(estimate, options.as_json)
            return
        result = builder.build_reasonaqa(files, options.out, run, build_options, on_skip=skip_log, notify=note)
    if result.num_rows is None:
        _print_shard(result, options.shard, run.folder, options.as_json)
        return
    extra = {} if result.teacher_summary is None else {"teacher": run.teacher.name}
    summary = ManifestSummary(options.out, result.num_rows, skip_log.count, result.tasks, result.licences, extra)
    _print_result(summary, result, options.as_json)
    if options.run_checks:
        check_built([options.out], read_audio=options.on_missing != "keep")


def _parse_file(file: str) -> tuple[str, Path]:
    """Source and path of an argument SOURCE=PATH."""
    name, equals, path = file.partition("=")
    if not equals or not path:
        raise ConfigError(f"{file!r} is not SOURCE=PATH; write for example clotho=clotho_captions_development.csv")
    return name, Path(path).expanduser()


def _print_result(summary: ManifestSummary, result: "ReasonAQAResult", as_json: bool) -> None:
    """Print what was built, and the comparison with the paper's counts."""
    cells = [
        {"subset": cell.subset, "split": cell.split, "found": cell.num_built, "published": cell.published}
        for cell in result.comparison
    ]
    print_manifest_summary(summary, as_json, {"table": cells} if cells else None)
    for cell in result.comparison if not as_json else ():
        if cell.num_built:
            published = "not in the paper" if cell.published is None else f"published {cell.published}"
            click.echo(f"  {cell.subset}, {cell.split}: {cell.num_built} ({published}{', equal' if cell.same else ''})")


def _print_shard(result: "ReasonAQAResult", shard: str | None, folder: Path, as_json: bool) -> None:
    """Print that a shard is complete."""
    if as_json:
        counts = result.teacher_summary.as_dict() if result.teacher_summary is not None else {}
        print_json({"shard": shard, "log": str(folder)} | counts)
    else:
        click.echo(f"{folder}: shard {shard} done; no manifest until the run without --shard")


def _print_estimate(estimate: "RunEstimate", as_json: bool) -> None:
    """Print what a run would ask the teacher."""
    if as_json:
        print_json(asdict(estimate))
        return
    click.echo(
        f"{estimate.requests} requests to send, {estimate.already} answered already; about {estimate.input_tokens} "
        f"tokens in and {estimate.output_tokens} out"
    )
