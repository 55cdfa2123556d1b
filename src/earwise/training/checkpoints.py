"""Checkpoints: one folder per saved step with all that an exact continuation needs.

A checkpoint folder is written under another name and renamed when it is complete, so it is either whole or absent. It
holds the trained parameters, the optimizer's state and the state of the stage; frozen parameters are not stored.
"""

import pickle
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from earwise.errors import DataError
from earwise.files import atomic_folder
from earwise.training.distributed import parallel
from earwise.training.distributed.sharding import full_state, shard_like

PREFIX = "checkpoint-"
STATE_FILE = "state.pt"


def save_checkpoint(
    folder: Path,
    trained: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    stage_state: Mapping[str, Any],
    *,
    save_total_limit: int = 1,
    keep: Collection[int | None] = (),
) -> None:
    """Write `folder/checkpoint-STEP`, then delete the oldest checkpoints. All processes call; the first one writes.

    Args:
        folder: Folder of the stage.
        trained: Parameter name -> what the optimizer updates (`MasterWeights.trained`).
        optimizer: The optimizer.
        step: Number of finished optimizer steps.
        stage_state: State of the stage (data position, reference): tensors and plain values only.
        save_total_limit: Number of checkpoints that remain, the newest.
        keep: Steps whose checkpoints remain too.
    Raises:
        DataError: if the checkpoint cannot be written; the earlier ones remain.
    """
    values = {name: value.detach() for name, value in trained.items()}
    content = full_state({"trained": values, "optimizer": optimizer.state_dict(), "extra": dict(stage_state)})
    if not parallel.is_main_process():
        return
    try:
        with atomic_folder(checkpoint_folder(folder, step)) as unfinished:
            torch.save(content, unfinished / STATE_FILE)
    except DataError as error:
        free = shutil.disk_usage(folder).free
        raise DataError(
            f"{folder}: checkpoint at step {step} cannot be written ({error.__cause__ or error}; it needs about "
            f"{_size(content) / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free); free some space, then --resume"
        ) from error
    outdated = [path for path in list_checkpoints(folder)[:-save_total_limit] if checkpoint_step(path) not in keep]
    for path in [*outdated, *folder.glob(f".{PREFIX}*")]:
        shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a stage, the newest last."""
    by_step = {path.name.removeprefix(PREFIX): path for path in folder.glob(f"{PREFIX}*")}
    return [by_step[step] for step in sorted(filter(str.isdigit, by_step), key=int)]


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Folder of the checkpoint of a step, in the folder of a stage."""
    return folder / f"{PREFIX}{step}"


def _size(value: Any) -> int:
    """Bytes of all tensors inside nested mappings and sequences."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def checkpoint_step(checkpoint: Path) -> int:
    """Number of finished steps of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix(PREFIX))


def delete_checkpoints_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps. All processes call; the first one deletes."""
    parallel.barrier()
    if parallel.is_main_process():
        for path in list_checkpoints(folder):
            if checkpoint_step(path) > step:
                shutil.rmtree(path)
    parallel.barrier()


def load_checkpoint(
    folder: Path, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, *, step: int | None = None
) -> tuple[int, dict[str, Any]] | None:
    """Restore parameters and optimizer from a checkpoint, in place.

    A checkpoint may come from another kind of device, and from another number of processes. Learning rates, weight
    decay and betas are those of the recipe, also where it was edited since the checkpoint was written. Each process
    reads from the file only what it keeps.

    Args:
        folder: Folder of the stage.
        trained: Parameter name -> what the optimizer updates, as in `save_checkpoint`.
        optimizer: The optimizer of these.
        step: Number of finished steps of the checkpoint to take; None: the newest.
    Returns:
        Number of finished steps and the state of the stage; None if there is no such checkpoint.
    Raises:
        DataError: if the checkpoint is damaged, or was written with a recipe that trains other parameters.
    """
    saved = [path for path in list_checkpoints(folder) if step in (None, checkpoint_step(path))]
    if not saved:
        return None
    newest = saved[-1]
    try:
        state = torch.load(newest / STATE_FILE, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{newest}: damaged ({reason}); delete it, and --resume goes on from the one before, or from the start"
        ) from error
    if trained.keys() != state["trained"].keys():
        different = sorted(trained.keys() ^ state["trained"].keys())[:3]
        raise DataError(
            f"{newest}: checkpoint and recipe train different parameters ({', '.join(different)} ...); "
            "resume with the recipe that the checkpoint was made with"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(shard_like(state["trained"][name], parameter))
    _restore_optimizer(optimizer, state["optimizer"], newest)
    return checkpoint_step(newest), state["extra"]


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], source: Path) -> None:
    """Restore an optimizer's state, each tensor sharded like its parameter; its settings stay those of the recipe.

    Raises:
        DataError: if the checkpoint's parameters are grouped in another way, or it is of another kind of optimizer.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    is_adamw = any("exp_avg" in moments for moments in state["state"].values())
    if sizes != [len(group["params"]) for group in state["param_groups"]] or (
        state["state"] and is_adamw != isinstance(optimizer, torch.optim.AdamW)
    ):
        raise DataError(
            f"{source}: the recipe groups the parameters in another way than the checkpoint (optimizer.optim, rates of "
            "single parts, or weight_decay from or to 0 were changed); undo that, or start the run anew"
        )
    sharded = {
        number: {
            name: shard_like(value, parameters[number])
            if torch.is_tensor(value) and value.shape == parameters[number].shape
            else value
            for name, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": sharded})
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
