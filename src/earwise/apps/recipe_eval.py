"""What a recipe asks for under `eval:`, carried out: a model on a manifest, with blind controls; resumable.

Between evaluation, which knows nothing of recipes, and the programs that run whole recipes: `earwise train`, ablations
and the demo.
"""

import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from time import monotonic
from typing import Any

from earwise.config.control.run_control import EvalConfig
from earwise.config.stages import StageConfig
from earwise.data import manifest
from earwise.data.manifest_path import task_file
from earwise.engine.base import Engine, SamplingParams
from earwise.errors import ConfigError, DataError
from earwise.evaluation.controls import Control
from earwise.evaluation.processes.row_log import all_rows
from earwise.evaluation.published.choice_file import missing_audio
from earwise.evaluation.run import BLIND, EvalOptions, EvalProgress, evaluate_with_controls
from earwise.evaluation.scores import headline, lower_is_better
from earwise.evaluation.task_table import load_task
from earwise.files import write_json
from earwise.prompts import REASONING_STYLES
from earwise.types import Example

ANSWER_METRICS = ("accuracy", "format")
"""Metrics of answers that every task has, beside the scores of its own."""
THINKING_TOKENS = 512
"""Longest completion in styles that reason before the answer, where no length is asked for, in tokens."""
SELECTION = "selection.json"
"""File of a run's folder: the items that a limit has chosen."""
PROGRESS_EVERY_S = 5.0
"""Seconds between two progress lines."""

Notify = Callable[[str], None]
"""Receives one line of progress."""


def evaluate_entry(
    config: EvalConfig,
    base: Path,
    engine: Engine,
    out: Path,
    *,
    seed: int = 0,
    blind: Sequence[Control] = BLIND,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Evaluate an engine as an entry under `eval:` says; rows that are finished in `out` are not asked again.

    Args:
        config: The entry: manifest, prompt style, longest completion, number of items.
        base: Folder that a relative manifest path starts from.
        engine: The engine that answers.
        out: Folder of the evaluation.
        seed: Seed of the controls and of the options' order.
        blind: The blind controls to run.
        notify: Receives progress lines.
    Returns:
        What `metrics.json` holds.
    Raises:
        EarwiseError: see `evaluation.run.evaluate`.
    """
    task, rows = load_task(config.task), eval_rows(config, base)
    default = THINKING_TOKENS if task.style_of(config.style) in REASONING_STYLES else task.max_new_tokens
    sampling_params = SamplingParams(max_new_tokens=config.max_new_tokens or default)
    options = EvalOptions(style=config.style, sampling_params=sampling_params, seed=seed, channel=config.channel)
    return evaluate_with_controls(engine, rows, out, options, task=task, blind=blind)


def eval_rows(config: EvalConfig, base: Path) -> list[Example]:
    """The rows that an entry under `eval:`, or an `eval_dataset`, selects.

    Args:
        config: The entry.
        base: Folder that a relative path of the file starts from.
    Raises:
        DataError: if the file is wrong, or no row is left.
    """
    path = task_file(config.task, config.manifest, base)
    if config.task == "manifest":
        rows = manifest.read(path, require_audio=not config.allow_text_only)
    else:
        audio_root = None if config.audio_root is None else base / Path(config.audio_root).expanduser()
        rows = load_task(config.task).load(path, audio_root)
    rows = manifest.select(rows, config.where)
    if not rows:
        raise DataError(f"{path}: has no row with {dict(config.where)}; correct `where`")
    if config.task != "manifest" and (missing := missing_audio(rows)):
        raise DataError(
            f"{path}: {len(missing)} clips are missing, the first is {missing[0]}; set audio_root to their folder"
        )
    return evenly_spaced(rows, config.limit)


def check_metric(stage: StageConfig) -> None:
    """Refuse a `metric_for_best_model` that the evaluations of a stage do not measure.

    Raises:
        ConfigError: naming those that they do.
    """
    if stage.eval_dataset is None or stage.metric_for_best_model is None:
        return
    task = load_task(stage.eval_dataset.task)
    names = ["loss"] if stage.has_loss_on_rows and stage.eval_dataset.task == "manifest" else []
    names += [*ANSWER_METRICS, *task.score_notes] if stage.predict_with_generate else []
    if stage.metric_for_best_model not in names:
        near = get_close_matches(stage.metric_for_best_model, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(dict.fromkeys(names))}"
        raise ConfigError(f"metric_for_best_model {stage.metric_for_best_model!r} is not measured; {hint}")


def error_metrics(stage: StageConfig) -> frozenset[str]:
    """Metrics of a stage's evaluations for which less is better, for its best checkpoint and early stopping."""
    config = stage.eval_dataset
    if config is None:
        return frozenset()
    task = load_task(config.task)
    headline_name = task.headline_of(task.style_of(config.style))
    return task.lower_is_better | ({"accuracy"} if headline_name in task.lower_is_better else set())


def answer_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of an evaluation during training: `n`, `accuracy` (the headline), `format`, and every score by its
    name; what has no value is left out."""
    figures = headline_figures(metrics)
    values = {"n": figures["n"]} | {name: figures[name] for name in ANSWER_METRICS}
    values |= {name: metric["accuracy"] for name, metric in (metrics["accuracy"] or {}).items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def evenly_spaced(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` examples evenly spaced over the list (the first ones of a sorted manifest are much alike); None: all."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[number * len(examples) // limit] for number in range(limit)]


def select_items(examples: list[Example], limit: int | None, out: Path) -> list[Example]:
    """The items of a run: evenly spaced ones, and those that an earlier run in the same folder has answered.

    The choice is written into the folder, so that several processes make the same one whenever they start.

    Args:
        examples: All examples.
        limit: Number of items; None for all.
        out: Folder of the run.
    Returns:
        The items in the order of `examples`.
    Raises:
        ConfigError: if the folder holds answers to more items than `limit`.
    """
    if limit is None or limit >= len(examples):
        return examples
    try:
        earlier = json.loads((out / SELECTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    chosen = set(earlier.get("items", ())) if earlier.get("limit") == limit else set()
    if len(chosen) != limit or not chosen <= {example.id for example in examples}:
        chosen = _chosen_items(examples, limit, out)
        write_json(out / SELECTION, {"limit": limit, "items": sorted(chosen)})
    return [example for example in examples if example.id in chosen]


def _chosen_items(examples: list[Example], limit: int, out: Path) -> set[str]:
    """Ids of the items of a run, see `select_items`."""
    finished = {row["id"] for row in all_rows(out)}
    spaced = {example.id for example in evenly_spaced(examples, limit)}
    if finished <= spaced:
        return spaced
    num_answered = sum(example.id in finished for example in examples)
    if num_answered > limit:
        raise ConfigError(
            f"{out} holds answers to {num_answered} items, more than the limit of {limit}; choose another folder"
        )
    unanswered = [example for example in examples if example.id not in finished]
    added = {example.id for example in evenly_spaced(unanswered, limit - num_answered)}
    return (finished & {example.id for example in examples}) | added


def headline_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures that sum up an evaluation before or after training.

    Returns:
        `n`, the headline `score` by name, whether it counts errors (`lower_is_better`), `accuracy` (its value with the
        real sound), `blind_accuracy` (under silence) and `format` (share of completions in the requested format); None
        where there is no value.
    """
    real, blind = headline(metrics), headline(metrics, control="silence")
    return {
        "n": metrics["n"],
        "score": metrics["headline"],
        "lower_is_better": lower_is_better(metrics, metrics["headline"]),
        "accuracy": real.value if real else None,
        "blind_accuracy": blind.value if blind else None,
        "format": metrics["format"]["accuracy"] if metrics["format"] else None,
    }


def progress_printer(notify: Notify) -> Callable[[EvalProgress], None]:
    """A callback for `evaluate` that sends progress lines: one at the end, and before that one every few seconds."""
    last_time = monotonic()

    def report(progress: EvalProgress) -> None:
        nonlocal last_time
        if progress.done < progress.total and monotonic() - last_time < PROGRESS_EVERY_S:
            return
        last_time = monotonic()
        control = progress.control or "with sound"
        errors = f", {progress.errors} errors" if progress.errors else ""
        notify(f"  {control}: {progress.done} of {progress.total} items, {progress.correct} right{errors}")

    return report
