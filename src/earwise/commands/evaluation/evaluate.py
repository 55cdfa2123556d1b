"""`earwise evaluate`: score a model on a task, with blind controls."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.evaluation.judges import judge_options, panel_of
from earwise.commands.loading import (
    channel_option,
    compute_option,
    field_values,
    find_manifest,
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
    from earwise.audio import Channel, LongAudio
    from earwise.evaluation.judge.panel import JudgePanel
    from earwise.evaluation.run import EvalOptions
    from earwise.evaluation.task import Task
    from earwise.types import Example

THINKING_TOKENS = 512
"""Default of --max-new-tokens in styles that reason before the answer; in all others the task's own."""


@dataclass(frozen=True)
class EvaluateCommand:
    """The options of `earwise evaluate`."""

    task: str
    data: str
    audio_root: Path | None
    model: str
    out: Path
    style: str | None
    split: str | None
    conditions: tuple[str, ...]
    limit: int | None
    controls: bool
    max_new_tokens: int | None
    temperature: float
    seed: int
    permutations: int
    batch: int
    long_audio: "LongAudio"
    channel: "Channel"
    compute: str
    allow_errors: bool
    judges: tuple[str, ...]
    rubric: Path | None
    judge_estimate: bool
    as_json: bool

    @property
    def path(self) -> Path:
        """The task's file; for the task `manifest` also a table or data set, which is converted."""
        is_manifest = self.task == "manifest" or self.data.startswith("starter:")
        return find_manifest(self.data) if is_manifest else Path(self.data)

    def eval_options(self, task: "Task") -> "EvalOptions":
        """The options as the evaluation takes them.

        Raises:
            ConfigError: if the task has no such prompt style.
        """
        from earwise.engine.base import SamplingParams
        from earwise.evaluation.run import EvalOptions
        from earwise.prompts import REASONING_STYLES

        style = task.style_of(self.style or "")
        default = THINKING_TOKENS if style in REASONING_STYLES else task.max_new_tokens
        sampling_params = SamplingParams(
            max_new_tokens=self.max_new_tokens or default, temperature=self.temperature, seed=self.seed
        )
        return EvalOptions(
            style=style, sampling_params=sampling_params, seed=self.seed, batch=self.batch,
            permutations=self.permutations, long_audio=self.long_audio, channel=self.channel,
        )  # fmt: skip


@click.command("evaluate", short_help="Score a model on a task, with blind controls.")
@click.option(
    "--task",
    default="manifest",
    show_default=True,
    metavar="TASK",
    help="A name that `earwise tasks` lists, or your own file.py:NAME.",
)
@click.option(
    "--data",
    required=True,
    type=NAME_OR_PATH,
    metavar="PATH",
    help="The task's file, or starter:val for the bundled clips.",
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
    help="Only items whose task, category, source, split or language has this value; may be repeated.",
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
    "--max-new-tokens",
    type=click.IntRange(1),
    help=f"Longest completion, in tokens. [default: the task's; {THINKING_TOKENS} in styles that reason]",
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Sampling temperature; 0 decodes greedily.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed of sampling, of the controls and of the options' order."
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
    earwise evaluate --data questions.jsonl --model runs/r1-aqa/final --out runs/after --limit 200
    earwise evaluate --data questions.jsonl --split val --where task=recognition --out runs/val
    earwise evaluate --task airbench-chat --data Chat_meta.json --judge "http://127.0.0.1:8000/v1#NAME" --out runs/chat

    For benchmarks with a submission format (mmau, mmar, adqa, dcase2025) OUT also gets predictions.json or .csv.
    """
    from earwise.apps.recipe_eval import select_items
    from earwise.data.manifest import count_formats, format_line
    from earwise.evaluation.judge.panel import judged
    from earwise.evaluation.run import BLIND, evaluate_with_controls
    from earwise.evaluation.task_table import load_task
    from earwise.evaluation.tasks.manifest import TASK as MANIFEST
    from earwise.evaluation.terminal import as_text

    options = collect_options(EvaluateCommand, values)
    task, conditions = load_task(options.task), _conditions(options.split, options.conditions)
    eval_options = options.eval_options(task)
    examples = _selected(task.load(options.path, options.audio_root), conditions, options.path)
    if task.load is MANIFEST.load and (line := format_line(options.path, count_formats(options.path))):
        note(line)
    examples = select_items(examples, options.limit, options.out)
    panel = panel_of(task, options.judges, options.rubric, estimate=options.judge_estimate)
    if panel is not None:
        _print_cost(panel, task, examples, eval_options, options)
        task = judged(task, panel)
    if options.judge_estimate:
        return
    engine = open_engine(options.model, options.compute)
    try:
        metrics = evaluate_with_controls(
            engine,
            examples,
            options.out,
            eval_options,
            task=task,
            blind=BLIND if options.controls else (),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished answers are kept in {options.out}, the same command continues from there"
        ) from None
    predictions = _write_predictions(task, options)
    if options.as_json:
        print_json({"out": str(options.out)} | metrics | ({"predictions": str(predictions)} if predictions else {}))
    else:
        click.echo(as_text(metrics))
        click.echo(
            f"{options.out}/metrics.json, {options.out}/samples.jsonl; a page to read: earwise report {options.out}"
        )
    _refuse_errors(metrics, options)


def _print_cost(
    panel: "JudgePanel", task: "Task", examples: "list[Example]", eval_options: "EvalOptions", options: EvaluateCommand
) -> None:
    """Print what the judges would be asked about answers of half the allowed length, for the clips and each control."""
    from earwise.evaluation.judge.estimate import expected_cost
    from earwise.evaluation.run import BLIND

    num_runs = 1 + (len(BLIND) if options.controls else 0)
    answer_tokens = eval_options.sampling_params.max_new_tokens // 2
    costs = expected_cost(panel, task, examples, answer_tokens, options.out)
    for cost in costs:
        times = f", {num_runs} times over with the blind controls" if num_runs > 1 else ""
        line = f"before any answer, for answers of {answer_tokens} tokens{times}: {cost.describe()}"
        if not options.judge_estimate:
            note(line)
        elif not options.as_json:
            click.echo(line)
    if options.judge_estimate and options.as_json:
        print_json({"judges": [asdict(cost) for cost in costs], "runs": num_runs})


def _refuse_errors(metrics: dict[str, Any], options: EvaluateCommand) -> None:
    """Fail if items have no completion, unless they are allowed.

    Raises:
        DataError: with their number and the first error.
    """
    num_errors = metrics["error"]["count"]
    if num_errors and not options.allow_errors:
        raise DataError(
            f"{num_errors} of {metrics['error']['n']} items could not be asked and count as wrong (first: "
            f"{metrics['first_error']}); all answers are kept in {options.out}; repair the files and evaluate into a "
            "new folder, or say --allow-errors"
        )


def _write_predictions(task: "Task", options: EvaluateCommand) -> Path | None:
    """Write the benchmark's submission file into the run's folder; returns its path, or None if there is no format."""
    from earwise.evaluation.results import read_run

    if task.write_predictions is None:
        return None
    path = options.out / task.predictions_name
    num_missing = task.write_predictions(read_run(options.out), path, options.path)
    empty = (
        f" ({num_missing} items of the benchmark were not asked; their predictions are empty)" if num_missing else ""
    )
    note(f"predictions in the benchmark's format: {path}{empty}")
    return path


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


def _selected(examples: "list[Example]", conditions: dict[str, str], path: Path) -> "list[Example]":
    """The items that meet all conditions.

    Raises:
        DataError: if there are none, with the values that exist.
    """
    from earwise.data.manifest import select

    for field, value in conditions.items():
        matches = select(examples, {field: value})
        if not matches:
            values = sorted({str(getattr(example, field)) or "(none)" for example in examples})
            listed = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
            raise DataError(f"{path}: no item has {field} {value!r}; there are {listed}")
        examples = matches
    return examples
