"""Exact float32 values of trained parameters, beside a checkpoint in a lower precision.

Training updates float32 values and computes with their bfloat16 or float16 roundings
(`training/optimization/master_weights.py`). A checkpoint holds the roundings, so that it has the dtype of the model
that training started from and other programs read it as such. The exact values are in a subfolder of it: from them the
next stage goes on, since an update of a stage is often smaller than the rounding.

Written and read by `training/run.py`; `models/base.py` reads those of the connector, which is computed in float32.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from earwise.errors import ModelError
from earwise.models import lora_checkpoint
from earwise.models.detect import FLOAT32_FOLDER, PEFT_CONFIG

FILE = "weights.safetensors"
"""File in the subfolder, with the parameter names of this package."""


def write(checkpoint_folder: Path, values: Mapping[str, Tensor]) -> None:
    """Write exact values into a subfolder of a checkpoint; nothing is written if there are none."""
    if values:
        (checkpoint_folder / FLOAT32_FOLDER).mkdir()
        contiguous = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        save_file(contiguous, checkpoint_folder / FLOAT32_FOLDER / FILE, {"format": "pt"})


def read(checkpoint_folder: Path) -> dict[str, Tensor]:
    """The exact values of a checkpoint that a run wrote, also of one that is an adapter; empty if it has none.

    Raises:
        ModelError: if the file is broken.
    """
    path = checkpoint_folder / FLOAT32_FOLDER / FILE
    if not path.is_file():
        is_adapter = (checkpoint_folder / PEFT_CONFIG).is_file()
        return dict(lora_checkpoint.read(checkpoint_folder).full_parameters) if is_adapter else {}
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); copy it again") from error


@torch.no_grad()
def apply(module: nn.Module, values: Mapping[str, Tensor], *, float32_prefixes: tuple[str, ...]) -> None:
    """Put exact values into the float32 parameters of a model, and into those with certain names whatever their dtype.

    Args:
        module: The model, loaded from the checkpoint of the values.
        values: Parameter name -> exact value.
        float32_prefixes: Beginnings of the names of parameters that become float32 (the connector).
    """
    for name, parameter in module.named_parameters():
        if name in values and (parameter.dtype == torch.float32 or name.startswith(float32_prefixes)):
            parameter.data = values[name].to(parameter.device, torch.float32)
            lora_checkpoint.remember_replaced(module, [name])
