"""Checkpoints: a folder a step that is whole or not there, with all that an exact continuation needs."""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earwise.errors import DataError
from earwise.files import building
from earwise.train.distributed import parallel
from earwise.train.distributed.sharding import cut_state, like, whole

PREFIX = "checkpoint-"


def save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    extra: Mapping[str, Any],
    *,
    keep: int = 1,
) -> None:
    """Write `folder/checkpoint-STEP` and delete the oldest once it is complete; all processes call, the first writes.

    Args:
        folder: The stage's folder.
        module: Its trained parameters are stored, the frozen ones are not.
        optimizer: State, in the order of its parameters.
        step: Finished optimizer steps.
        extra: Data position, reference and whatever else the stage gave, tensors and plain values only.
        keep: How many checkpoints are left there, the newest.
    Raises:
        DataError: if the disk refuses; the previous checkpoints stay.
    """
    trained = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    content = whole({"trained": trained, "optimizer": optimizer.state_dict(), "extra": dict(extra)})
    if not parallel.main():
        return
    try:
        with building(folder / f"{PREFIX}{step}") as part:
            torch.save(content, part / "state.pt")
    except (DataError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise DataError(
            f"{folder}: checkpoint at step {step} cannot be written ({error.__cause__ or error}); "
            "free some space, then --resume"
        ) from error
    for old in [*checkpoints(folder)[:-keep], *folder.glob(f".{PREFIX}*")]:
        shutil.rmtree(old, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a stage, the newest last."""
    found = {path.name.removeprefix(PREFIX): path for path in folder.glob(f"{PREFIX}*")}
    return [found[number] for number in sorted(filter(str.isdigit, found), key=int)]


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest checkpoint in place.

    Returns:
        Finished steps, and what the stage gave; None if there is no checkpoint yet.
    Raises:
        DataError: if it is damaged, or of another recipe.
    """
    kept = checkpoints(folder)
    if not kept:
        return None
    at = kept[-1]
    try:
        state = torch.load(at / "state.pt", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(
            f"{at}: damaged ({said}); delete it, and --resume goes on from the one before, or from the start"
        ) from error
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if parameters.keys() != state["trained"].keys():
        strange = sorted(parameters.keys() ^ state["trained"].keys())[:3]
        raise DataError(
            f"{at}: checkpoint and recipe train different parameters ({', '.join(strange)} ...); "
            "resume with the recipe it was made by"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(state["trained"][name], parameter))
    optimizer.load_state_dict(state["optimizer"])
    cut_state(optimizer)
    return int(at.name.removeprefix(PREFIX)), state["extra"]
