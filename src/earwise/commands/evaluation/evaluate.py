"""`earwise evaluate`: score a model on one task or several, with blind controls."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.evaluation.judges import judge_options, panel_of, with_embeddings
from earwise.commands.evaluation.sampling import pause_params, sampling_options
from earwise.commands.loading import (
    channel_option,
    compute_option,
    field_values,
    json_option,
    model_option,
    note,
    open_engine,
    print_json,
)
from earwise.commands.options import collect_options
from earwise.commands.paths import FILE, NAME_OR_PATH
from earwise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from earwise.apps.task_runs import TaskChoice, TaskResult, TaskRunOptions
    from earwise.audio import Channel, LongAudio
    from earwise.evaluation.controls import Control
    from earwise.evaluation.judge.panel import JudgePanel
    from earwise.types import Example

THINKING_TOKENS = 512
"""For the help of --max-new-tokens; `apps.recipe_eval.THINKING_TOKENS` decides."""


@dataclass(frozen=True)
class EvaluateCommand:
    """The options of `earwise evaluate`."""

    tasks: tuple[str, ...]
    data: str | None
    audio_root: Path | None
    model: str
    out: Path
    style: str | None
    split: str | None
    conditions: tuple[str, ...]
    limit: int | None
    controls: bool
    control_names: "tuple[Control, ...]"
    max_new_tokens: int | None
    temperature: float
    seed: int
    samples: int
    confidence_window: int
    pause_entropy: float | None
    pause_token: str
    max_pauses: int
    option_order: str
    permutations: int
    batch: int
    long_audio: "LongAudio"
    channel: "Channel"
    compute: str
    part: str | None
    training: tuple[Path, ...]
    allow_missing: bool
    allow_errors: bool
    judges: tuple[str, ...]
    embeddings: str | None
    rubric: Path | None
    judge_estimate: bool
    as_json: bool

    def run_options(self) -> "TaskRunOptions":
        """The options as the tasks are run with them.

        Raises:
            ConfigError: if they contradict each other.
        """
        from earwise.apps.task_runs import TaskRunOptions
        from earwise.engine.base import SamplingParams
        from earwise.evaluation.options import EvalOptions
        from earwise.evaluation.processes.parts import launched_part, parse_part
        from earwise.evaluation.run import BLIND

        if self.control_names and not self.controls:
            raise ConfigError(f"--control {self.control_names[0]} and --no-controls contradict each other")
        if self.permutations > 1 and self.option_order == "stored":
            raise ConfigError(f"--permutations {self.permutations} needs --option-order shuffled")
        for path in self.training:
            if not path.is_file():
                raise ConfigError(f"--training {path}: no such file")
        options = EvalOptions(
            style=self.style or "",
            sampling_params=SamplingParams(
                temperature=self.temperature, seed=self.seed,
                pause=pause_params(self.pause_entropy, self.pause_token, self.max_pauses),
            ),
            seed=self.seed, batch=self.batch, shuffle_options=self.option_order == "shuffled",
            permutations=self.permutations, samples=self.samples, confidence_window=self.confidence_window,
            long_audio=self.long_audio, channel=self.channel,
        )  # fmt: skip
        return TaskRunOptions(
            options=options, max_new_tokens=self.max_new_tokens,
            blind=(self.control_names or BLIND) if self.controls else (),
            conditions=_conditions(self.split, self.conditions), limit=self.limit,
            part=parse_part(self.part) if self.part else launched_part(),
            training=self.training, allow_missing=self.allow_missing,
        )  # fmt: skip


@click.command("evaluate", short_help="Score a model on one task or several, with blind controls.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    default=("manifest",),
    show_default="manifest",
    metavar="TASK[=PATH]",
    help="A name that `earwise tasks` lists, or your own file.py:NAME, with its file; repeat for several tasks.",
)
@click.option(
    "--data",
    type=NAME_OR_PATH,
    metavar="PATH",
    help="File of the one --task, or starter:val for the bundled clips.",
)
@click.option("--audio-root", type=FILE, help="Folder of the clips, if it is not the file's own.")
@model_option
@click.option(
    "--out",
    "-o",
    required=True,
    type=FILE,
    help="Folder for samples.jsonl and metrics.json; the same command again continues a stopped run.",
)
@click.option(
    "--style",
    metavar="STYLE",
    help="Wording of the question: one of the task's own (see `earwise tasks`) or a general prompt style. "
    "[default: the task's]",
)
@click.option("--split", help="Only items of this split: train, val or test.")
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only items whose task, category, source, split, language or field has this value; may be repeated.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Only this number of items, evenly spaced over the file; a larger number later asks only the others.",
)
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Also ask with silence and with the clips of other items in place of the real ones.",
)
@click.option(
    "--control",
    "control_names",
    multiple=True,
    type=click.Choice(["silence", "noise", "shuffled", "text-only"]),
    help="What stands in place of the sound, instead of silence and shuffled clips; may be repeated.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    help=f"Longest completion, in tokens. [default: the task's; {THINKING_TOKENS} in styles that reason]",
)
@sampling_options
@click.option(
    "--option-order",
    default="shuffled",
    show_default=True,
    type=click.Choice(["shuffled", "stored"]),
    help="Options shuffled by seed, or in the order of the file, where the right one often stands first.",
)
@click.option(
    "--permutations",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Number of orders of its options in which each item is asked.",
)
@click.option(
    "--batch",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Items asked together; changes nothing but speed.",
)
@click.option(
    "--long-audio",
    default="error",
    show_default=True,
    type=click.Choice(["error", "truncate", "chunk"]),
    help="For clips longer than the model accepts: count an error, use the beginning, or pass several clips in a row.",
)
@channel_option
@compute_option
@click.option(
    "--part",
    metavar="K/N",
    help="Answer part K of N only, with N processes on one shared --out. [default: as the launcher says]",
)
@click.option(
    "--training",
    multiple=True,
    type=FILE,
    metavar="MANIFEST",
    help="Look for the items in this training manifest, by clip, video and question; may be repeated.",
)
@click.option(
    "--allow-missing", is_flag=True, help="Count items whose clip is missing as wrong instead of refusing the file."
)
@click.option(
    "--allow-errors",
    is_flag=True,
    help="Exit with code 0 even if some items have no completion (they count as wrong either way).",
)
@judge_options
@json_option
def command(**values: Any) -> None:
    """Ask MODEL every item of a task and score its answers; then ask again without the sound, to see what is left.

    \b
    earwise evaluate --data starter:val --out runs/first
    earwise evaluate --task mmau --data mmau-test-mini.json --audio-root audios/ --out runs/mmau
    earwise evaluate --task mmau=mmau-test-mini.json --task mmar=MMAR-meta.json --out runs/both
    earwise evaluate --data questions.jsonl --model runs/r1-aqa/final --out runs/after --limit 200
    earwise evaluate --data questions.jsonl --split val --where task=recognition --out runs/val
    earwise evaluate --task airbench-chat --data Chat_meta.json --judge "http://127.0.0.1:8000/v1#NAME" --out runs/chat
    torchrun --nproc-per-node 8 -m earwise evaluate --task mmsu=mmsu.jsonl --out runs/mmsu

    Several tasks get a folder each in OUT. For benchmarks with a submission format (mmau, mmar, adqa, dcase2025) a
    folder also gets predictions.json or .csv. Several processes, or machines with a shared folder, divide the items;
    the last one to finish writes the results.
    """
    from earwise.apps.benchmark_leaks import read_training
    from earwise.apps.task_runs import load_items, parse_tasks, run_task

    options = collect_options(EvaluateCommand, values)
    run_options = options.run_options()
    choices = parse_tasks(options.tasks, options.data, options.audio_root, options.out)
    for choice in choices:
        run_options.for_task(choice.task)
    read_training(run_options.training)  # refused before the model answers anything
    items = [load_items(choice, run_options) for choice in choices]
    for choice in choices:
        _note_formats(choice)
    choices = with_embeddings(choices, options.embeddings)
    choices = [_judged(choice, examples, run_options, options) for choice, examples in zip(choices, items, strict=True)]
    if options.judge_estimate:
        return
    engine = open_engine(options.model, options.compute)
    results: list[TaskResult] = []
    try:
        for choice, examples in zip(choices, items, strict=True):
            if len(choices) > 1:
                note(f"{choice.name}: {len(examples)} items")
            result = run_task(engine, choice, examples, run_options)
            if result is None:
                note(f"{choice.out}: part {run_options.part.name} is finished; the last part writes the results")
            else:
                results.append(result)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished answers are kept in {options.out}, the same command continues from there"
        ) from None
    _show(results, options, len(choices) > 1)
    for result in results:
        _refuse_errors(result, options)


def _judged(
    choice: "TaskChoice", examples: "list[Example]", run_options: "TaskRunOptions", options: EvaluateCommand
) -> "TaskChoice":
    """The task behind its judges, whose cost is printed; of several tasks those that need none stay as they are."""
    from earwise.evaluation.judge.panel import judged

    if options.judges and options.rubric is None and choice.task.judging is None and len(options.tasks) > 1:
        return choice
    panel = panel_of(choice.task, options.judges, options.rubric, estimate=options.judge_estimate)
    if panel is None:
        return choice
    _print_cost(panel, choice, examples, run_options, options)
    return replace(choice, task=judged(choice.task, panel))


def _print_cost(
    panel: "JudgePanel",
    choice: "TaskChoice",
    examples: "list[Example]",
    run_options: "TaskRunOptions",
    options: EvaluateCommand,
) -> None:
    """Print what the judges would be asked about answers of half the allowed length, for the clips and each control."""
    from earwise.evaluation.judge.estimate import expected_cost

    num_runs = 1 + len(run_options.blind)
    answer_tokens = run_options.for_task(choice.task).sampling_params.max_new_tokens // 2
    costs = expected_cost(panel, choice.task, examples, answer_tokens, choice.out, options.samples)
    for cost in costs:
        times = f", {num_runs} times over with the blind controls" if num_runs > 1 else ""
        line = f"before any answer, for answers of {answer_tokens} tokens{times}: {cost.describe()}"
        if not options.judge_estimate:
            note(line)
        elif not options.as_json:
            click.echo(line)
    if options.judge_estimate and options.as_json:
        print_json({"judges": [asdict(cost) for cost in costs], "runs": num_runs})


def _show(results: "list[TaskResult]", options: EvaluateCommand, has_several: bool) -> None:
    """Print the results, and write the table of several tasks."""
    from earwise.apps.task_runs import results_text, write_results
    from earwise.evaluation.terminal import as_text, timing_text

    for result in results:
        if result.predictions:
            note(f"predictions in the benchmark's format: {result.predictions}{_not_asked(result.num_empty)}")
    if has_several:
        rows = write_results(options.out, results)
        if options.as_json:
            print_json({"out": str(options.out), "tasks": rows})
        else:
            click.echo(results_text(rows))
            click.echo(f"{options.out}/tasks.json, and a folder a task; a page to read: earwise report FOLDER")
        return
    for result in results:
        out = result.choice.out
        if options.as_json:
            predictions = {"predictions": str(result.predictions)} if result.predictions else {}
            print_json({"out": str(out)} | result.metrics | predictions)
            continue
        click.echo(as_text(result.metrics))
        if timing := timing_text(out):
            note(timing)
        click.echo(f"{out}/metrics.json, {out}/samples.jsonl; a page to read: earwise report {out}")


def _note_formats(choice: "TaskChoice") -> None:
    """Say how the rows of a manifest in other formats were read."""
    from earwise.data.manifest import count_formats, format_line
    from earwise.evaluation.tasks.manifest import TASK as MANIFEST

    if choice.task.load is MANIFEST.load and (line := format_line(choice.path, count_formats(choice.path))):
        note(line)


def _not_asked(num_empty: int) -> str:
    return f" ({num_empty} items of the benchmark were not asked; their predictions are empty)" if num_empty else ""


def _refuse_errors(result: "TaskResult", options: EvaluateCommand) -> None:
    """Fail if items have no completion, unless they are allowed.

    Raises:
        DataError: with their number and the first error.
    """
    metrics, out = result.metrics, result.choice.out
    num_errors = metrics["error"]["count"]
    if num_errors > result.num_missing and not options.allow_errors:
        raise DataError(
            f"{num_errors} of {metrics['error']['n']} items could not be asked and count as wrong (first: "
            f"{metrics['first_error']}); all answers are kept in {out}; repair the files and evaluate into a "
            "new folder, or say --allow-errors"
        )


def _conditions(split: str | None, conditions: tuple[str, ...]) -> dict[str, str]:
    """The conditions of `--split` and `--where` together: field -> value.

    Raises:
        ConfigError: if a field cannot be used, or one field shall have two values.
    """
    from earwise.data.index import WHERE_FIELDS

    values: dict[str, str] = {}
    for field, value in [*([("split", split)] if split else []), *field_values(conditions, "--where")]:
        if field not in WHERE_FIELDS:
            raise ConfigError(f"--where {field}={value}: {field!r} is none of {', '.join(WHERE_FIELDS)}")
        if values.setdefault(field, value) != value:
            raise ConfigError(
                f"--where {field}={value}: {field} is required to be {values[field]} already; no item is both"
            )
    return values
