"""Runs a recipe from its first stage to its last, and resumes a stopped run from its folder.

Flow: `start` writes `recipe.json` -> for each stage: load the model that the stage before has written -> prepare what
is trained -> make the stage (`stages/`) -> train (`trainer.py`) -> write the model into `stage-N-NAME/final`. A stage
whose `final` exists is skipped, so `resume` continues in the stage that was stopped, from its newest checkpoint.
"""

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from earwise.config.recipe import RECORD, Recipe, recorded_recipe
from earwise.config.stages import StageConfig
from earwise.errors import ConfigError
from earwise.files import append_jsonl, atomic_folder, lock_folder, relative_path, write_json
from earwise.models import detect, lora_checkpoint, registry
from earwise.models.base import AudioLM, load
from earwise.models.detect import MARKER
from earwise.models.embedded.model import Embedded
from earwise.models.encoder_cache import EncoderCache, encoder_fingerprint
from earwise.models.lora_checkpoint import PeftAdapter
from earwise.models.memory.plan import this_machine
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.models.precision import float32_values, nf4
from earwise.models.precision.compute import set_compute
from earwise.models.precision.lora_beside import LOW_PRECISION
from earwise.training.check_recipe import CheckedRecipe, CheckedStage, check_stage
from earwise.training.checkpoints import list_checkpoints
from earwise.training.clip_loader import ClipLoader
from earwise.training.control.evaluation import AnswerEvaluator
from earwise.training.control.model_selection import ModelSelection
from earwise.training.control.out_of_memory import explain_out_of_memory
from earwise.training.control.stage_setup import check_same_start, evaluation, throughput, trainer_options
from earwise.training.distributed import parallel
from earwise.training.logging.run_status import write_process
from earwise.training.logging.step_log import LogFiles
from earwise.training.logging.tracking import Tracking, check_trackers
from earwise.training.memory_check import check_memory, check_quantized_stages
from earwise.training.pinning import pin_model
from earwise.training.profiler import Profiler, profiler_for
from earwise.training.stages.stage import Notify, StageContext
from earwise.training.stages.table import make_stage
from earwise.training.trainable import set_trainable, trains_encoder
from earwise.training.trainer import Trainer

METRICS, SAMPLES, FINAL = "metrics.jsonl", "rollouts.jsonl", "final"
ENCODER_CACHE_MB = 2048


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Settings of a run that do not belong to its recipe.

    Attributes:
        profile: Whether to log and report where the time of a step goes.
        answer_evaluator: Answers the held-out rows of `eval_dataset` and scores the answers; None: only losses.
        error_metrics: Metrics for which less is better, of the evaluations during a stage.
    """

    profile: bool = False
    answer_evaluator: AnswerEvaluator | None = None
    error_metrics: Callable[[StageConfig], Collection[str]] = lambda config: ()


@dataclass(frozen=True, slots=True)
class _Run:
    """What all stages of a run share.

    Attributes:
        recipe: Resolved recipe.
        out: Folder of the run.
        base: Folder that relative manifests start from.
        checked: Rows of the stages, if they are already open.
        options: Settings of the run that do not belong to the recipe.
        notify: Receives progress.
    """

    recipe: Recipe
    out: Path
    base: Path
    checked: CheckedRecipe | None
    options: "RunOptions"
    notify: Notify

    def checked_stage(self, number: int) -> CheckedStage:
        """Settings and rows of a stage, opened and checked unless this was done before."""
        if self.checked is not None:
            return self.checked.stages[number]
        return check_stage(self.recipe.stages[number], self.base, {}, self.notify)


def start(
    recipe: Recipe,
    out: Path,
    base: Path,
    *,
    checked: CheckedRecipe | None = None,
    options: RunOptions = RunOptions(),
    notify: Notify = lambda line: None,
) -> Path:
    """Run a recipe in a new folder.

    Args:
        recipe: Resolved recipe.
        out: Folder of the run: recipe.json, metrics.jsonl, rollouts.jsonl, one folder per stage, `final`.
        base: Folder that relative manifests start from.
        checked: Rows of the recipe from `check_recipe.check_training`; None to open and check them stage by stage.
        options: Settings of the run that do not belong to the recipe.
        notify: Receives progress.
    Returns:
        `out / "final"`, the folder of the trained model.
    Raises:
        ConfigError: if `out` already holds a run, another process is at work there, or a tracker cannot be opened.
    """
    check_trackers(recipe.trackers)
    parallel.init_processes()
    if (out / RECORD).exists():
        raise ConfigError(f"{out}: already holds a run; continue it with --resume {out}, or choose another --out")
    check_quantized_stages(recipe)
    if not parallel.on_cpu():
        check_memory(recipe, this_machine(parallel.world_size(), parallel.launcher_engine()))
    recipe = pin_model(recipe)
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "base": str(base.resolve()),
        "working_folder": str(Path.cwd()),
    } | {name: version(name) for name in ("earwise", "torch")}
    parallel.barrier()  # until every process has seen that the folder is free
    if parallel.is_main_process():
        write_json(out / RECORD, record)
    return _run_stages(_Run(recipe, out, base, checked, options, notify))


def resume(
    out: Path,
    *,
    checked: CheckedRecipe | None = None,
    track: Sequence[str] = (),
    options: RunOptions = RunOptions(),
    notify: Notify = lambda line: None,
) -> Path:
    """Continue a run from its folder alone; a finished run is returned as it is.

    Args:
        out: Folder of the run.
        checked: As in `start`.
        track: Trackers in addition to those of the recipe.
        options: As in `start`.
        notify: Receives progress.
    Returns:
        `out / "final"`, the folder of the trained model.
    Raises:
        ConfigError: if `out` holds no run.
    """
    parallel.init_processes()
    recipe, base = recorded_recipe(out)
    recipe = recipe.tracked_in(track)
    check_trackers(recipe.trackers)
    return _run_stages(_Run(recipe, out, base, checked, options, notify))


def load_recipe_model(recipe: Recipe, weights: Path | None = None) -> AudioLM:
    """Load the model that a recipe starts from, or the model that one of its stages has written.

    Args:
        recipe: Resolved recipe; its seed is the seed of randomly drawn weights.
        weights: Folder of a stage's model; None for the model that the recipe starts from.
    """
    model = _load_unquantized(recipe, weights)
    if recipe.model.quantization == "nf4":
        nf4.quantize_decoder(model)
    set_compute(model, recipe.model.compute)
    return model


def _load_unquantized(recipe: Recipe, weights: Path | None) -> AudioLM:
    """As `load_recipe_model`, with all weights in the dtype that they are loaded in."""
    config = recipe.model
    if weights is not None:
        return load(str(weights), dtype=config.dtype, trim=config.trim)
    connector = None if config.connector is None else config.connector.model_dump()
    decoder_init = None if config.decoder_init == "pretrained" else config.decoder_init
    has_random_weights = connector is not None or decoder_init is not None
    return load(
        config.name,
        config.weights,
        dtype=config.dtype,
        trim=config.trim,
        connector=connector,
        decoder_init=decoder_init,
        seed=recipe.seed if has_random_weights else None,
    )


def _run_stages(run: _Run) -> Path:
    """Run the stages that are not finished; only the first process reports."""
    if not parallel.is_main_process():
        return _run_stages_locked(replace(run, notify=lambda line: None))
    with lock_folder(run.out):
        _delete_unfinished_files(run.out)
        return _run_stages_locked(run)


def _run_stages_locked(run: _Run) -> Path:
    weights: Path | None = None
    for number, config in enumerate(run.recipe.stages):
        folder = run.out / f"stage-{number}-{config.label}"
        if not (folder / FINAL / MARKER).exists():
            with explain_out_of_memory(folder.name, config):
                _run_stage(run, number, folder, weights)
        weights = folder / FINAL
    final = run.out / FINAL
    if weights is not None and not final.exists() and parallel.is_main_process():
        final.symlink_to(weights.relative_to(run.out))
    return final


def _delete_unfinished_files(out: Path) -> None:
    """Delete files and folders that were being written when a process was killed; the run's folder is locked."""
    for unfinished in (*out.glob(".*.part"), *out.glob("stage-*/.*.part")):
        if unfinished.is_dir() and not unfinished.is_symlink():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def _run_stage(run: _Run, number: int, folder: Path, weights: Path | None) -> None:
    """Train one stage and write its model.

    Args:
        run: What all stages share.
        number: Number of the stage, from 0.
        folder: Its folder.
        weights: Folder of the model that the stage before has written; None for the first stage.
    """
    model = load_recipe_model(run.recipe, weights)
    checked = run.checked_stage(number)
    config, data = checked.config, checked.data
    if parallel.is_main_process():
        check_same_start(folder, str(weights or _start_name(run.recipe)), model, run.notify)
        write_process(run.out, folder.name, number, len(run.recipe.stages), config.max_steps)
    seed = run.recipe.seed + number
    torch.manual_seed(seed)  # PEFT draws LoRA's initial weights from the global generator; nothing else uses it
    start_values = set_trainable(model, config.trainable, _exact_values(run.recipe, weights))
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model.module)
    profiler = profiler_for(next(model.module.parameters()).device) if run.options.profile else Profiler()
    with _open_tracking(run, config, folder) as tracking:
        context = StageContext(
            model=model,
            data=data,
            encoder_cache=_encoder_cache(model, profiler, run.recipe.encoder_cache),
            clip_loader=ClipLoader(
                model,
                long_audio=config.data.long_audio,
                on_bad_row=config.data.on_bad_row,
                channel=config.data.channel,
            ),
            seed=seed,
            folder=folder,
            resumed=bool(list_checkpoints(folder)),
            log_sample=_SampleWriter(run.out, folder.name, tracking),
            notify=run.notify,
            profiler=profiler,
        )
        stage = make_stage(config, context)
        trainer = Trainer(
            model,
            stage,
            trainer_options(config, model, run.options.profile, seed),
            folder=folder,
            log_files=LogFiles(run.out / METRICS, run.out / SAMPLES, tracking.log_step, tracking.log_evaluation),
            encoder_cache=context.encoder_cache,
            start_values=start_values,
            profiler=profiler,
            notify=run.notify,
            evaluation=evaluation(config, context, stage, run.options.answer_evaluator, run.out / "eval" / folder.name),
            selection=ModelSelection.of(config, run.options.error_metrics(config)),
            throughput=throughput(model, config),
        )
        trainer.train()
        _report_clips(context.clip_loader, model, config, run.notify)
        _save_model(run, model, folder / FINAL, weights, trainer.float32_values)


def _start_name(recipe: Recipe) -> str:
    """Checkpoint folder or name of the model that the recipe starts from."""
    return recipe.model.weights or recipe.model.name


def _exact_values(recipe: Recipe, weights: Path | None) -> dict[str, torch.Tensor]:
    """Exact values of the model that a stage starts from, where a run left some; the arguments are those of
    `load_recipe_model`."""
    start = weights or Path(_start_name(recipe))
    return float32_values.read(detect.find_checkpoint(start)[1]) if start.is_dir() else {}


def _encoder_cache(model: AudioLM, profiler: Profiler, folder: str | None) -> EncoderCache:
    """The cache of encoder states, also on disk if the recipe names a folder; nothing is kept while the encoder is
    trained. One clip per encoder pass, so that a resumed run gets bit for bit the same states."""
    max_mb = 0 if trains_encoder(model) else ENCODER_CACHE_MB
    states = Path(folder) / encoder_fingerprint(model) if folder and max_mb else None
    return EncoderCache(model, max_mb=max_mb, batch_size=1, measure=lambda: profiler.phase("hear"), folder=states)


@contextmanager
def _open_tracking(run: _Run, config: StageConfig, folder: Path) -> Iterator[Tracking]:
    """The trackers of a stage; closed at its end, also after an error."""
    settings: dict[str, Any] = run.recipe.model_dump(mode="json", exclude={"stages", "eval", "trackers"})
    settings["stage"] = config.model_dump(mode="json")
    trackers = run.recipe.trackers if parallel.is_main_process() else ()
    tracking = Tracking(trackers, run.out, folder.name, settings, run.notify)
    try:
        yield tracking
    finally:
        tracking.close()


@dataclass(frozen=True, slots=True)
class _SampleWriter:
    """Writes rows of `rollouts.jsonl`, with paths relative to the run's folder, and hands them to the trackers."""

    out: Path
    stage: str
    tracking: Tracking

    def __call__(self, row: dict[str, Any]) -> None:
        if parallel.is_main_process():
            audio = [relative_path(Path(clip), self.out) for clip in row["audio"]]
            row = {"stage": self.stage} | row | {"audio": audio}
            append_jsonl(self.out / SAMPLES, row)
            self.tracking.log_sample(row)


def _report_clips(clip_loader: ClipLoader, model: AudioLM, config: StageConfig, notify: Notify) -> None:
    """Report clips that were too long for the model, and files that could not be read."""
    if clip_loader.long_clips:
        treatment = {"truncate": "only their beginning was used", "chunk": "they were passed in chunks"}
        notify(
            f"{len(clip_loader.long_clips)} clips are longer than the audio window of {model.name} "
            f"({model.spec.max_s:g} s): {treatment[config.data.long_audio]}"
        )
    for path, reason in clip_loader.skipped.items():
        notify(f"skipped {path}: {reason}")


def _save_model(
    run: _Run, model: AudioLM, folder: Path, weights: Path | None, exact: Mapping[str, torch.Tensor]
) -> None:
    """Write the trained model.

    Where LoRA belongs to weights of a lower precision than float32, which would lose most of it, the model is written
    as an adapter of the model that it started from; else as a whole checkpoint, with LoRA once more apart, and with the
    exact values of what was trained in full.

    Args:
        run: What all stages share.
        model: The model.
        folder: Folder to write.
        weights: Folder of the model that the stage started from; None for the model of the recipe.
        exact: Float32 values of parameters of which the model has the roundings.
    """
    if parallel.is_main_process():
        start = str(weights) if weights else _start_name(run.recipe)
        adapter = lora_checkpoint.from_module(model.module, lora_checkpoint.whole_base(start), exact)
        with atomic_folder(folder) as unfinished:
            keeps_lora_apart = isinstance(model, Embedded) or not adapter.matrices
            if not keeps_lora_apart and not lora_checkpoint.can_be_merged(model.module, adapter):
                _write_adapter(run, adapter, unfinished)
            else:
                model.save(unfinished)
                if not isinstance(model, Embedded):  # what the embedded model saves already has the LoRA apart
                    base = str(weights.resolve()) if weights else start
                    of_stage = lora_checkpoint.from_module(model.module, base, include_applied=False)
                    lora_checkpoint.write_beside(unfinished, of_stage)
                if any(parameter.dtype in LOW_PRECISION for parameter in model.module.parameters()):
                    float32_values.write(unfinished, adapter.full_parameters)
    parallel.barrier()


def _write_adapter(run: _Run, adapter: PeftAdapter, folder: Path) -> None:
    """Write a stage's model as an adapter. A base model that only a user's own function loads is written beside it; a
    base inside the run's folder is named by a relative path, so that the run can be moved as a whole."""
    name = run.recipe.model.name
    family = detect.family_of(name)
    if adapter.base == name and registry.find(family) is None:
        load_recipe_model(run.recipe).save(folder / "base")
        adapter = replace(adapter, base="base")
    elif Path(adapter.base).is_relative_to(run.out.resolve()):
        adapter = replace(adapter, base=relative_path(Path(adapter.base), run.out.resolve() / "stage" / FINAL))
    if Path(folder / adapter.base).is_dir():
        family = detect.find_checkpoint(folder / adapter.base)[0]
    lora_checkpoint.write(folder, adapter)
    write_json(folder / MARKER, {"family": family})
