"""Checkpoints: a folder that is whole or not there, with all that an exact continuation needs."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earwise.errors import DataError
from earwise.files import write_json

LATEST = "checkpoint"


def save(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, extra: Mapping[str, Any]
) -> None:
    """Write `folder/checkpoint`, replacing the previous one only when the new one is complete.

    Args:
        folder: The stage's folder.
        module: Its trained parameters are stored, the frozen ones are not.
        optimizer: State, in the order of its parameters.
        step: Finished optimizer steps.
        extra: Data position, reference and whatever else the stage gave, tensors and plain values only.
    Raises:
        DataError: if the disk refuses; the previous checkpoint stays.
    """
    part = folder / f".{LATEST}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        trained = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
        torch.save({"trained": trained, "optimizer": optimizer.state_dict(), "extra": dict(extra)}, part / "state.pt")
        write_json(part / "step.json", {"step": step})
        old = folder / f".{LATEST}.old"
        shutil.rmtree(old, ignore_errors=True)
        if (folder / LATEST).exists():
            (folder / LATEST).rename(old)
        part.rename(folder / LATEST)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(
            f"{folder}: checkpoint at step {step} cannot be written ({error}); free some space, then --resume"
        ) from error


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest whole checkpoint in place; None if there is none yet."""
    at = folder / LATEST
    if not at.exists():
        at = folder / f".{LATEST}.old"  # a kill between the two renames
    if not (at / "state.pt").exists():
        return None
    import json

    state = torch.load(at / "state.pt", weights_only=True)
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if parameters.keys() != state["trained"].keys():
        strange = sorted(parameters.keys() ^ state["trained"].keys())[:3]
        raise DataError(
            f"{at}: checkpoint and recipe train different parameters ({', '.join(strange)} ...); "
            "resume with the recipe it was made by"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(json.loads((at / "step.json").read_text())["step"]), state["extra"]
