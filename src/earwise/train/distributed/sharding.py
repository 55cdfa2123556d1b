"""The decoder's layers cut over processes with FSDP2: weights, gradients and optimizer state of each layer lie in equal
parts everywhere, and a layer is whole only while it computes.

Encoder, connector, embeddings and head stay whole in every process: which of them a micro batch calls depends on what
is in it, while every micro batch calls every layer, so that no process waits for a call that another does not make. For
sampling and for the reference the layers are gathered (`gathered`); a process may then compute as often as it likes.
Source: torch's `fully_shard`; chosen by `fsdp_version: 2` in the launcher's configuration (`recipes/engines`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from earwise.errors import ConfigError, ModelError
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.base import AudioLM
from earwise.train.distributed import parallel
from earwise.train.policy import MicroBatch, Policy


def shard(model: AudioLM) -> list[Any]:
    """Cut the decoder's layers in place, if the launcher asked for it; before the optimizer is made.

    Returns:
        The layers, in order; empty where nothing is cut.
    Raises:
        ConfigError: if the decoder is frozen: its layers then have no gradients that every process could wait for.
        ModelError: if the decoder has no list of layers.
    """
    if not cuts():
        return []
    from torch.distributed.fsdp import fully_shard

    trunk, layers = decoder_layers(model)
    if not any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
        raise ConfigError("fsdp2 shards the decoder, which is frozen here; launch with recipes/engines/ddp.yaml")
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    cut: list[Any] = [fully_shard(layer, reshard_after_forward=reshards()) for layer in layers]
    # As the root it lets a layer be gathered while the one before computes; it holds nothing itself.
    root: Any = fully_shard(trunk, ignored_params={p for p in trunk.parameters() if p not in inside and not _cut(p)})
    for layer in (root, *cut):
        layer.set_gradient_divide_factor(1.0)  # losses are divided by counts of the whole step: gradients add up
        layer.set_force_sum_reduction_for_comms(True)
    with torch.no_grad():  # FSDP2 takes the first module that computes for the root
        empty = filler(model)
        Policy(model)(empty.forest, empty.encoder_states, empty.waveforms)
    for layer in cut:
        layer.reshard()  # where layers stay whole after a forward pass: the optimizer wants what is cut
    return cut


def cuts() -> bool:
    """Whether the launcher asked for layers that are cut."""
    return parallel.world() > 1 and parallel.engine() == "fsdp2"


def reshards() -> bool:
    """Whether a layer is cut again between forward and backward (as ZeRO-3), or stays whole (as ZeRO-2)."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"


def decoder_layers(model: AudioLM) -> tuple[nn.Module, list[nn.Module]]:
    """The module that calls the decoder's layers one after the other, and these.

    Raises:
        ModelError: if there is no such list.
    """
    prefixes = model.parameter_prefixes["decoder"]
    found = [
        (name, part)
        for name, part in model.module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) and f"{name}.".startswith(prefixes)
    ]
    if not found:
        raise ModelError(f"{model.name}: no list of layers in {', '.join(prefixes)}; launch with ddp.yaml instead")
    name, layers = max(found, key=lambda one: sum(parameter.numel() for parameter in one[1].parameters()))
    return model.module.get_submodule(name.rpartition(".")[0]), list(layers)


@contextmanager
def gathered(layers: Sequence[Any]) -> Iterator[None]:
    """Inside, every process holds all layers whole, and may call them alone."""
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
        # What is packed for decoding is kept until a version changes, and these buffers come back as they were.
        torch.autograd.graph.increment_version([parameter.detach() for parameter in layer.parameters()])
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(reshards())
            layer.reshard()


def dissolve(layers: Sequence[Any]) -> None:
    """Make the layers' parameters whole for good, in every process; the end of training."""
    for layer in layers:
        for part in layer.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                if _cut(parameter):
                    setattr(part, name, nn.Parameter(parameter.full_tensor(), requires_grad=parameter.requires_grad))


def whole(value: Any) -> Any:
    """A state (tensors in dictionaries and lists) with every tensor whole; all processes must ask."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(inner) for key, inner in value.items()}
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor cut as a parameter is; every process has it whole already."""
    if not isinstance(parameter, DTensor):
        return value
    value = value.to(parameter.to_local().device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def cut_state(optimizer: torch.optim.Optimizer) -> None:
    """Cut an optimizer's state, whole as it was read from a checkpoint, as its parameters are."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if _cut(parameter):
                kept = optimizer.state[parameter]
                kept |= {name: like(v, parameter) for name, v in kept.items() if v.shape == parameter.shape}


def uncut(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Those whose gradients FSDP2 does not add up."""
    return [parameter for parameter in parameters if not _cut(parameter)]


@torch.no_grad()
def clip(parameters: Sequence[Tensor], limit: float) -> float:
    """Scale gradients down to a norm of at most `limit` over all parameters; returns the norm before."""
    if not any(map(_cut, parameters)):
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    others = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    squares = parallel.total({"squares": sum(float(part.double().square().sum()) for part in parts)})["squares"]
    norm = (squares + sum(float(other.double().square().sum()) for other in others)) ** 0.5
    scale = min(1.0, limit / (norm + 1e-6))
    for gradient in (*parts, *others):
        gradient.mul_(scale)
    return float(norm)


def filler(model: AudioLM) -> MicroBatch[None]:
    """A micro batch of two tokens, for a process that has fewer than others: layers are gathered by all or by none."""
    end, device = model.eos_ids[0], next(model.module.parameters()).device
    path = TokenPath((end, end), (False, True), (-1, -1))
    return MicroBatch([[path]], pack([build_tree([path])], device), {}, {}, None)


def _cut(parameter: object) -> bool:
    return isinstance(parameter, DTensor)
