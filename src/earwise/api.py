"""The Python front door for training and evaluation.

Questions are asked through `audio_model.load`.

    earwise.train("r1-aqa", profile="cpu", out="runs/r1")
    earwise.evaluate("runs/r1", "starter:val", out="runs/after")

Each is one call for what the command of that name does. Below: `apps/recipe_run.py` trains, `evaluate` measures.
"""

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from earwise.apps.recipe_eval import progress_printer, select_items
from earwise.apps.recipe_run import TrainOptions, TrainResult, resume_run, train_recipe
from earwise.audio_model import AudioModel, ignore_progress, load
from earwise.config.recipe import load_recipe
from earwise.config.recipe_files import find_recipe
from earwise.data.manifest import select
from earwise.data.manifest_path import task_file
from earwise.errors import DataError
from earwise.evaluation.run import BLIND, EvalOptions, evaluate_with_controls
from earwise.evaluation.task_table import load_task

Notify = Callable[[str], None]


def train(
    recipe: str | PathLike[str],
    *,
    profile: str | None = None,
    arm: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    options: TrainOptions | None = None,
    notify: Notify = ignore_progress,
) -> TrainResult:
    """Train a recipe from its first stage to its last, and measure the model before and after.

    Args:
        recipe: Name of a packaged recipe (`earwise recipe` lists them), or path of a YAML file.
        profile: Scale of the recipe: a name under its `profiles:`.
        arm: Variant of the recipe: a name under its `arms:`.
        overrides: Dotted key -> value, for example `{"stages.0.max_steps": 10}`.
        data: Folder that relative manifests start from; None takes that of the recipe.
        out: Folder of the run; None takes `runs/RECIPE[-PROFILE][-ARM]`.
        options: Settings of the run that do not belong to the recipe.
        notify: Called with lines about progress, for example `print`.
    Raises:
        ConfigError: if the recipe is wrong, or `out` holds a run (see `resume`).
        DataError, AudioError: if a manifest or its audio is wrong.
    """
    path, base = find_recipe(str(recipe))
    assignments = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
    resolved = load_recipe(path, profile=profile, arm=arm, overrides=assignments)
    folder = Path(out) if out is not None else Path("runs") / "-".join(filter(None, (resolved.recipe, profile, arm)))
    return train_recipe(
        resolved, base if data is None else Path(data), folder, options=options or TrainOptions(), notify=notify
    )


def resume(
    out: str | PathLike[str], *, options: TrainOptions | None = None, notify: Notify = ignore_progress
) -> TrainResult:
    """Continue a stopped training run from its folder alone; a finished run is returned as it is.

    Args:
        out: Folder of the run.
        options: Settings of the run that do not belong to its recipe.
        notify: Called with lines about progress.
    Raises:
        ConfigError: if the folder holds no run.
    """
    return resume_run(Path(out), options=options or TrainOptions(), notify=notify)


def evaluate(
    model: str | PathLike[str] | AudioModel,
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    task: str = "manifest",
    where: Mapping[str, str] | None = None,
    limit: int | None = None,
    options: EvalOptions | None = None,
    notify: Notify = ignore_progress,
) -> dict[str, Any]:
    """Ask a model every item of a task and score the answers, then again with silence and with another item's audio.

    Args:
        model: A loaded model, or the name of one (see `load`).
        data: File of the task, or `starter:val` for the bundled clips.
        out: Folder for `samples.jsonl` and `metrics.json`; items that are finished there are not asked again.
        task: Name of the task: `manifest`, `mmau`, `mmar`, `mellow`, or `module:object`.
        where: Use only items whose fields (task, category, source, split, language) have these values.
        limit: Use only this many items, evenly spaced over the file.
        options: Prompt style, sampling, seed and batches; greedy answers of up to 64 tokens by default.
        notify: Called with lines about progress, for example `print`.
    Returns:
        The content of `metrics.json`: accuracy with intervals, the blind controls, and the counts they are based on.
    Raises:
        DataError: if the file is wrong, or no item is left.
        EngineError: if the model or its server fails on every item.
    """
    loaded_task = load_task(task)
    path = task_file(task, str(data), Path())
    examples = select(loaded_task.load(path, None), where or {})
    if not examples:
        raise DataError(f"{path}: no item has {dict(where or {})}; correct `where`")
    engine = (model if isinstance(model, AudioModel) else load(model, notify)).engine
    return evaluate_with_controls(
        engine, select_items(examples, limit, Path(out)), Path(out), options, task=loaded_task, blind=BLIND,
        on_progress=progress_printer(notify),
    )  # fmt: skip
