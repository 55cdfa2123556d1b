"""Trains a recipe and measures the model before and after, as the recipe's `eval:` says.

Above `train`, which knows nothing of evaluation, and above `apps/recipe_eval.py`. Called by `earwise.train` and by the
command `earwise train`, in every process of a distributed run: all processes train, and the first one measures.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from earwise.apps.recipe_eval import (
    answer_metrics,
    check_metric,
    error_metrics,
    eval_rows,
    evaluate_entry,
    headline_figures,
)
from earwise.config.recipe import RECORD, Recipe, recorded_recipe
from earwise.engine.loading import fetch_base_weights
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError
from earwise.files import lock_folder
from earwise.models import detect, hub
from earwise.training import run
from earwise.training.check_recipe import CheckedRecipe, check_training
from earwise.training.control.evaluation import AnswerRequest
from earwise.training.distributed import parallel
from earwise.training.logging.run_status import note_process, recorded_process
from earwise.training.pinning import pin_model

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Settings of a training run that do not belong to its recipe."""

    evaluate: bool = True
    """Measure the model before and after training, if the recipe has an `eval:`."""
    track: tuple[str, ...] = ()
    """Trackers besides those of the recipe: `wandb`, `trackio` or `module:function`."""
    profile_steps: bool = False
    """Report and log where the time of a step goes."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One entry of the recipe's `eval:`, measured before and after training (see `recipe_eval.headline_figures`)."""

    manifest: str
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run."""

    final: Path
    """Folder of the trained model."""
    out: Path
    """Folder of the run: recipe.json, metrics.jsonl, rollouts.jsonl, one folder per stage, `final`."""
    evaluations: tuple[Evaluation, ...]
    """Empty without `eval:`, without `TrainOptions.evaluate`, and in all processes but the first."""
    seconds: float
    """Duration of the call, in seconds."""
    is_first_process: bool = True
    """Whether this process is the one that reports; False in all others of a distributed run."""


def train_recipe(
    recipe: Recipe,
    base: Path,
    out: Path,
    *,
    options: TrainOptions = TrainOptions(),
    notify: Notify = lambda _: None,
) -> TrainResult:
    """Train a recipe from its first stage to its last.

    Args:
        recipe: Resolved recipe.
        base: Folder that relative manifests start from.
        out: Folder of the run, which must not hold one yet.
        options: Settings of the run.
        notify: Called with lines about progress.
    Raises:
        ConfigError: if `out` holds a run, or the recipe cannot be trained.
        DataError, AudioError: if a manifest or its audio is wrong.
        KeyboardInterrupt: if the run was interrupted; the message says how to continue it.
    """
    recipe = pin_model(recipe.tracked_in(options.track))
    checked = check_run(recipe, base, notify)
    if (out / RECORD).exists():
        raise ConfigError(f"{out}: already holds a run; continue it with --resume {out}, or choose another --out")
    if not options.evaluate:
        recipe = recipe.model_copy(update={"eval": ()})  # recorded with the run, so that --resume measures neither

    def train() -> Path:
        run_options = _run_options(recipe, base, options)
        return run.start(recipe, out, base, checked=checked, options=run_options, notify=notify)

    return _train_and_evaluate(recipe, base, out, train, options, notify)


def resume_run(
    out: Path,
    *,
    options: TrainOptions = TrainOptions(),
    notify: Notify = lambda _: None,
) -> TrainResult:
    """Continue a stopped run from its folder alone; evaluations that are finished are not repeated.

    Args:
        out: Folder of the run.
        options: Settings of the run.
        notify: Called with lines about progress.
    Raises:
        ConfigError: if the folder holds no run.
        KeyboardInterrupt: as `train_recipe`.
    """
    recipe, base = recorded_recipe(out)
    checked = check_run(recipe.tracked_in(options.track), base, notify)
    if (out / "final" / detect.MARKER).exists():
        notify(
            f"{out}: is finished, nothing is left to train; "
            f"to train further start another run with model.name={out / 'final'}"
        )

    def train() -> Path:
        run_options = _run_options(recipe, base, options)
        return run.resume(out, checked=checked, track=options.track, options=run_options, notify=notify)

    return _train_and_evaluate(recipe, base, out, train, options, notify)


def check_run(recipe: Recipe, base: Path, notify: Notify = lambda _: None) -> CheckedRecipe:
    """Everything of a recipe that can be checked before a model is loaded: its rows, its settings, and that it trains
    on none of the rows that it is measured on.

    Args:
        recipe: Resolved recipe.
        base: Folder that relative manifests start from.
        notify: Called with lines about progress.
    Raises:
        ConfigError, DataError, AudioError: as `check_recipe.check_training`.
    """
    for stage in recipe.stages:
        check_metric(stage)
    return check_training(recipe, base, notify, load_eval_rows=eval_rows)


def _run_options(recipe: Recipe, base: Path, options: TrainOptions) -> run.RunOptions:
    """The run's own options: among them what answers and scores the held-out rows during training."""

    def evaluate_answers(request: AnswerRequest) -> dict[str, float]:
        metrics = evaluate_entry(request.config, base, request.engine, request.folder, seed=recipe.seed, blind=())
        return answer_metrics(metrics)

    return run.RunOptions(options.profile_steps, evaluate_answers, error_metrics)


def _train_and_evaluate(
    recipe: Recipe, base: Path, out: Path, train: Callable[[], Path], options: TrainOptions, notify: Notify
) -> TrainResult:
    started = perf_counter()
    parallel.init_processes()
    is_first = parallel.is_main_process()
    evaluates = options.evaluate and is_first
    with _interruptible(out), ExitStack() as stack:
        if is_first:
            stack.enter_context(lock_folder(out))
            stack.enter_context(recorded_process(out))
            fetch_base_weights(recipe.model.name, notify)
        parallel.barrier()
        before = _evaluate(recipe, base, out, "before", None, notify) if evaluates else []
        final = train()
        after = _evaluate(recipe, base, out, "after", final, notify) if evaluates else []
        entries = recipe.eval if evaluates else ()
        evaluations = tuple(
            Evaluation(entry.manifest, *figures) for entry, *figures in zip(entries, before, after, strict=True)
        )
        if evaluations:
            note_process(out, results=[asdict(evaluation) for evaluation in evaluations])
    parallel.leave_processes()
    return TrainResult(final, out, evaluations, perf_counter() - started, is_first)


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    """Let Ctrl-C say how the run is continued."""
    try:
        yield
    except KeyboardInterrupt:
        command = f"earwise train --resume {out}" if (out / RECORD).exists() else "the same command"
        raise KeyboardInterrupt(f"interrupted; finished work is kept, continue with {command}") from None


def _evaluate(
    recipe: Recipe, base: Path, out: Path, when: str, final: Path | None, notify: Notify
) -> list[dict[str, Any]]:
    """Measure every entry of `eval:` into `out/eval/WHEN-N`; rows that are finished there are not asked again.

    Args:
        recipe: Resolved recipe.
        base: Folder that relative manifests start from.
        out: Folder of the run.
        when: `before` or `after`.
        final: Folder of the trained model; None measures the model that the recipe starts from.
        notify: Called with lines about progress.
    """
    if not recipe.eval:
        return []
    engine = LocalEngine(run.load_recipe_model(recipe, final))
    names = (recipe.model.weights, recipe.model.name) if final is None else (str(final),)
    if folder := next((Path(name) for name in names if name and Path(name).is_dir()), None):
        engine.name = detect.display_name(engine.name, folder)
    elif hub_name := next((name for name in names if name and hub.is_hub_name(name)), None):
        engine.name = hub_name
    figures = []
    for number, entry in enumerate(recipe.eval):
        activity = f"measuring {entry.manifest} {when} training"
        note_process(out, activity=activity)
        notify(activity)
        metrics = evaluate_entry(
            entry, base, engine, out / "eval" / f"{when}-{number}", seed=recipe.seed, blind=("silence",), notify=notify
        )
        figures.append(headline_figures(metrics))
    return figures
