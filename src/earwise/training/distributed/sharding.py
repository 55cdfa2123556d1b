"""The decoder's layers sharded over processes with FSDP2.

Weights, gradients and optimizer state of each decoder layer are split evenly over the processes; a layer is gathered
only while it computes. Encoder, connector, embeddings and output head are replicated in every process: which of them a
micro-batch uses depends on its content, whereas every micro-batch uses every decoder layer, so that no process waits
for a call that another does not make. For sampling and for the reference, the layers are gathered (`unsharded_layers`),
and a process may then compute as often as it likes.

Source: torch's `fully_shard`. It is chosen by `fsdp_version: 2` in the launcher's configuration
(`earwise/recipes/engines`).
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
from earwise.training.distributed import parallel
from earwise.training.policy import MicroBatch, Policy


def shard_decoder(model: AudioLM) -> list[Any]:
    """Shard the decoder's layers in place, if the launcher asks for it. Call it before the optimizer is made.

    Returns:
        The sharded layers in order; empty if nothing is sharded.
    Raises:
        ConfigError: if the decoder is frozen, because its layers then have no gradients to reduce.
        ModelError: if the decoder has no list of layers.
    """
    if not is_sharded():
        return []
    from torch.distributed.fsdp import fully_shard

    trunk, layers = decoder_layers(model)
    if not any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
        raise ConfigError(
            "fsdp2 shards the decoder, which is frozen here; launch with the configuration ddp "
            "(earwise recipe --path ddp)"
        )
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    sharded: list[Any] = [fully_shard(layer, reshard_after_forward=reshards_after_forward()) for layer in layers]
    # The trunk is FSDP2's root, which prefetches a layer while the one before computes; it shards nothing itself.
    replicated = {p for p in trunk.parameters() if p not in in_layers and not _is_sharded_tensor(p)}
    root: Any = fully_shard(trunk, ignored_params=replicated)
    for module in (root, *sharded):
        module.set_gradient_divide_factor(1.0)  # losses are divided by counts of the whole step: gradients are summed
        module.set_force_sum_reduction_for_comms(True)
    with torch.no_grad():  # FSDP2 takes the first module that computes as its root
        filler = filler_micro_batch(model)
        Policy(model)(filler.forest, filler.encoder_states, filler.waveforms)
    for layer in sharded:
        layer.reshard()  # needed where layers stay gathered after a forward pass: the optimizer expects shards
    return sharded


def is_sharded() -> bool:
    """Whether the launcher asks for sharded layers."""
    return parallel.world_size() > 1 and parallel.launcher_engine() == "fsdp2"


def reshards_after_forward() -> bool:
    """Whether a layer is sharded again between forward and backward (as in ZeRO-3) or stays gathered (ZeRO-2)."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"


def decoder_layers(model: AudioLM) -> tuple[nn.Module, list[nn.Module]]:
    """The module that calls the decoder's layers one after the other, and the layers.

    Raises:
        ModelError: if the decoder has no list of layers.
    """
    prefixes = model.parameter_prefixes["decoder"]
    candidates = [
        (name, module)
        for name, module in model.module.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and f"{name}.".startswith(prefixes)
    ]
    if not candidates:
        raise ModelError(f"{model.name}: no list of layers in {', '.join(prefixes)}; launch with ddp.yaml instead")
    name, layers = max(candidates, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))
    return model.module.get_submodule(name.rpartition(".")[0]), list(layers)


@contextmanager
def unsharded_layers(layers: Sequence[Any]) -> Iterator[None]:
    """Context in which every process holds all layers whole and may call them independently of the others."""
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
        # Prepacked weights are reused until a parameter's version changes; gathered buffers come back with the old one.
        torch.autograd.graph.increment_version([parameter.detach() for parameter in layer.parameters()])
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(reshards_after_forward())
            layer.reshard()


def unshard_parameters(layers: Sequence[Any]) -> None:
    """Make the layers' parameters whole in every process for good, at the end of training."""
    for layer in layers:
        for module in layer.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if _is_sharded_tensor(parameter):
                    setattr(module, name, nn.Parameter(parameter.full_tensor(), requires_grad=parameter.requires_grad))


def full_state(value: Any) -> Any:
    """A state (tensors in dictionaries and lists) with every tensor gathered. A collective: all processes must call."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: full_state(item) for key, item in value.items()}
    return [full_state(item) for item in value] if isinstance(value, list) else value


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard a whole tensor, which every process holds, in the same way as a parameter."""
    if not isinstance(parameter, DTensor):
        return value
    value = value.to(parameter.to_local().device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def shard_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard an optimizer's state, read whole from a checkpoint, in the same way as its parameters."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if _is_sharded_tensor(parameter):
                moments = optimizer.state[parameter]
                moments |= {
                    name: shard_like(value, parameter)
                    for name, value in moments.items()
                    if value.shape == parameter.shape
                }


def replicated_parameters(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parameters that are not sharded, whose gradients FSDP2 does not reduce."""
    return [parameter for parameter in parameters if not _is_sharded_tensor(parameter)]


@torch.no_grad()
def clip_grad_norm(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale gradients down to a norm of at most `max_norm` over all parameters, sharded and replicated.

    Returns:
        The norm before clipping.
    """
    if not any(map(_is_sharded_tensor, parameters)):
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    replicated = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    squares = parallel.all_sum({"squares": sum(float(shard.double().square().sum()) for shard in shards)})["squares"]
    norm = (squares + sum(float(gradient.double().square().sum()) for gradient in replicated)) ** 0.5
    scale = min(1.0, max_norm / (norm + 1e-6))
    for gradient in (*shards, *replicated):
        gradient.mul_(scale)
    return float(norm)


def filler_micro_batch(model: AudioLM) -> MicroBatch[None]:
    """A micro-batch of two tokens, for a process that has fewer than others: all processes gather layers, or none."""
    end, device = model.eos_ids[0], next(model.module.parameters()).device
    path = TokenPath((end, end), (False, True), (-1, -1))
    return MicroBatch([[path]], pack([build_tree([path])], device), {}, {}, None)


def _is_sharded_tensor(parameter: object) -> bool:
    return isinstance(parameter, DTensor)
