"""What a stage is given when it starts or goes on: settings of the loop, the hardware's peak, a check of its start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from earwise.config.stages import StageConfig
from earwise.errors import ModelError
from earwise.files import write_json
from earwise.models.base import AudioLM
from earwise.models.precision.compute import FLOAT32, plan_of
from earwise.training.control.evaluation import AnswerEvaluator, HeldOutEvaluation
from earwise.training.control.step_guard import FailurePolicy
from earwise.training.control.trainer_options import TrainerOptions
from earwise.training.distributed import parallel
from earwise.training.logging.run_status import note_process
from earwise.training.logging.throughput import Throughput, peak_flops
from earwise.training.policy import forest_tolerance
from earwise.training.stages.stage import Stage, StageContext

START = "start.json"
"""File in a stage's folder with name and hash of the model that the stage began with."""


def trainer_options(config: StageConfig, model: AudioLM, profile: bool, seed: int) -> TrainerOptions:
    return TrainerOptions(
        optimizer=config.optimizer,
        max_steps=config.max_steps,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        max_minutes=config.max_minutes,
        failure_policy=FailurePolicy(
            config.on_nonfinite_loss,
            config.on_loss_spike,
            config.spike_std,
            config.max_skipped_steps,
            config.max_rollbacks,
        ),
        eval_steps=config.eval_steps if config.eval_dataset else None,
        load_best_model_at_end=config.load_best_model_at_end,
        profile=profile,
        forest_tolerance=forest_tolerance(model.module),
        seed=seed,
    )


def throughput(model: AudioLM, config: StageConfig) -> Throughput | None:
    """What the work of a step is measured against; None on a device whose peak is not known."""
    device = next(model.module.parameters()).device
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak is None:
        return None
    prefixes = model.parameter_prefixes["decoder"]
    size = sum(parameter.numel() for name, parameter in model.module.named_parameters() if name.startswith(prefixes))
    return Throughput(size, config.trainable.decoder == "full", peak * parallel.world_size())


def check_same_start(folder: Path, name: str, model: AudioLM, notify: Callable[[str], None]) -> None:
    """Refuse to resume on other weights than those that the stage began with: its checkpoints hold only what is
    trained. Say in which precision products are computed (`model.compute`): another one than at first is allowed,
    since the machine may be another.

    Args:
        folder: Folder of the stage.
        name: Name or folder of the model that it starts from.
        model: That model as it is now.
        notify: Receives the lines about precision.
    Raises:
        ModelError: naming both hashes.
    """
    record = folder / START
    precision = str(plan := plan_of(model.module))
    if plan != FLOAT32:
        notify(f"{folder.name}: products with frozen weights: {precision}")
    if record.exists():
        began = json.loads(record.read_text(encoding="utf-8"))
        revision = began["revision"]
        if revision != model.revision:
            raise ModelError(
                f"{name}: the weights have changed since this stage began (hash {revision}, now "
                f"{model.revision}); restore them, or start a new run"
            )
        if (before := began.get("compute", precision)) != precision:
            notify(
                f"{folder.name}: began with products in {before}, goes on in {precision}: results differ by rounding"
            )
        return
    write_json(record, {"model": model.name, "revision": model.revision, "compute": precision})


def evaluation(
    config: StageConfig,
    context: StageContext,
    stage: Stage[Any],
    answer_evaluator: AnswerEvaluator | None,
    folder: Path,
) -> HeldOutEvaluation | None:
    """What evaluates the model during a stage; None if the recipe asks for nothing.

    Args:
        config: Settings of the stage.
        context: What the run gives to the stage.
        stage: The stage.
        answer_evaluator: Scores answers, where the recipe asks for them.
        folder: Folder for the answers.
    """
    if config.eval_dataset is None:
        return None
    evaluator = answer_evaluator if config.predict_with_generate else None
    return HeldOutEvaluation(
        context.model,
        stage,
        context.encoder_cache,
        config.eval_dataset,
        evaluator,
        folder,
        context.profiler,
        lambda activity: note_process(context.folder.parent, activity=activity),
    )
