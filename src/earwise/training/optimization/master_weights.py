"""Float32 masters of trained parameters that are computed with in bfloat16 or float16.

An update of AdamW at a learning rate of 1e-6 changes the sixth digit of a weight; bfloat16 has three. So the optimizer
updates float32 copies, with float32 gradients and moments, and after each step the model gets their roundings, with
which it computes. Gradients of micro-batches are added up in float32 as well: a hook moves each one into the gradient
of its master as soon as autograd has computed it, so that no second set of gradients is kept.

FSDP2 does the same for the layers that it shards (`distributed/sharding.py`). LoRA and the connector are float32
parameters of the model itself (`trainable.set_trainable`) and need no master.

Sources: mixed precision training (arXiv:1710.03740), section 3.1; FSDP2's `MixedPrecisionPolicy`.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from earwise.models.precision.lora_beside import LOW_PRECISION


class MasterWeights:
    """The masters of a module's trained parameters.

    Args:
        module: The module, prepared by `set_trainable` and, with FSDP2, sharded.
        start_values: Exact float32 values of parameters of which the module has the roundings; the others start from
            the module's own values.
    """

    def __init__(self, module: nn.Module, start_values: Mapping[str, Tensor]) -> None:
        self._parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._masters: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.dtype in LOW_PRECISION and not isinstance(parameter, DTensor):
                start = start_values.get(name, parameter.detach())
                master = start.to(parameter.device, torch.float32, copy=True).requires_grad_(True)
                self._masters[name] = master
                parameter.register_post_accumulate_grad_hook(partial(_move_gradient, master))

    @property
    def trained(self) -> dict[str, Tensor]:
        """Name of each trained parameter -> what the optimizer updates: its master, or the parameter itself."""
        return {name: self._masters.get(name, parameter) for name, parameter in self._parameters.items()}

    @property
    def values(self) -> dict[str, Tensor]:
        """Name -> float32 value of each parameter that has a master."""
        return {name: master.detach() for name, master in self._masters.items()}

    @torch.no_grad()
    def round_to_module(self) -> None:
        """Give the module the roundings of the masters, after they have changed."""
        for name, master in self._masters.items():
            self._parameters[name].copy_(master)


@torch.no_grad()
def _move_gradient(master: Tensor, parameter: Tensor) -> None:
    """Hook: add the gradient of a parameter to that of its master, and free it."""
    if parameter.grad is not None:
        gradient = parameter.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None
