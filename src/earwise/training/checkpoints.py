"""Checkpoints: one folder per saved step with all that an exact continuation needs.

A checkpoint folder is written under another name and renamed when it is complete, so it is either whole or absent. It
holds the trained parameters, the optimizer's state and the state of the stage; frozen parameters are not stored.
"""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earwise.errors import DataError
from earwise.files import atomic_folder
from earwise.training.distributed import parallel
from earwise.training.distributed.sharding import full_state, shard_like, shard_optimizer_state

PREFIX = "checkpoint-"
STATE_FILE = "state.pt"


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    stage_state: Mapping[str, Any],
    *,
    save_total_limit: int = 1,
) -> None:
    """Write `folder/checkpoint-STEP`, then delete the oldest checkpoints. All processes call; the first one writes.

    Args:
        folder: Folder of the stage.
        module: The model's module; its trained parameters are stored.
        optimizer: The optimizer.
        step: Number of finished optimizer steps.
        stage_state: State of the stage (data position, reference): tensors and plain values only.
        save_total_limit: Number of checkpoints that remain, the newest.
    Raises:
        DataError: if the checkpoint cannot be written; the earlier ones remain.
    """
    trained = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    content = full_state({"trained": trained, "optimizer": optimizer.state_dict(), "extra": dict(stage_state)})
    if not parallel.is_main_process():
        return
    try:
        with atomic_folder(folder / f"{PREFIX}{step}") as unfinished:
            torch.save(content, unfinished / STATE_FILE)
    except (DataError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise DataError(
            f"{folder}: checkpoint at step {step} cannot be written ({error.__cause__ or error}); "
            "free some space, then --resume"
        ) from error
    for outdated in [*list_checkpoints(folder)[:-save_total_limit], *folder.glob(f".{PREFIX}*")]:
        shutil.rmtree(outdated, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a stage, the newest last."""
    by_step = {path.name.removeprefix(PREFIX): path for path in folder.glob(f"{PREFIX}*")}
    return [by_step[step] for step in sorted(filter(str.isdigit, by_step), key=int)]


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any]] | None:
    """Restore module and optimizer from the newest checkpoint, in place.

    Args:
        folder: Folder of the stage.
        module: The model's module, prepared for training as when the checkpoint was written.
        optimizer: The optimizer of its trained parameters.
    Returns:
        Number of finished steps and the state of the stage; None if there is no checkpoint.
    Raises:
        DataError: if the checkpoint is damaged, or was written with a recipe that trains other parameters.
    """
    saved = list_checkpoints(folder)
    if not saved:
        return None
    newest = saved[-1]
    try:
        state = torch.load(newest / STATE_FILE, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{newest}: damaged ({reason}); delete it, and --resume goes on from the one before, or from the start"
        ) from error
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if parameters.keys() != state["trained"].keys():
        different = sorted(parameters.keys() ^ state["trained"].keys())[:3]
        raise DataError(
            f"{newest}: checkpoint and recipe train different parameters ({', '.join(different)} ...); "
            "resume with the recipe that the checkpoint was made with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(shard_like(state["trained"][name], parameter))
    optimizer.load_state_dict(state["optimizer"])
    shard_optimizer_state(optimizer)
    return int(newest.name.removeprefix(PREFIX)), state["extra"]
