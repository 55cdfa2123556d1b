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
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from earwise.errors import ConfigError, ModelError
from earwise.forest import TokenPath, build_tree, pack
from earwise.models.base import AudioLM
from earwise.models.precision.lora_beside import LOW_PRECISION
from earwise.training.distributed import parallel
from earwise.training.policy import MicroBatch, Policy


@dataclass(frozen=True, slots=True)
class ShardedDecoder:
    """The decoder's layers under FSDP2.

    Attributes:
        layers: The layers in order; empty if nothing is sharded.
        compute_dtype: What their float32 parameters are rounded to when they compute; None: nothing, they compute in
            their own dtypes.
    """

    layers: list[Any] = field(default_factory=list)
    compute_dtype: torch.dtype | None = None


def shard_decoder(model: AudioLM, start_values: Mapping[str, Tensor]) -> ShardedDecoder:
    """Shard the decoder's layers in place, if the launcher asks for it. Call it before the optimizer is made.

    Layers that are trained in full become float32; where the model computes in a lower precision, FSDP2 gathers them in
    that and reduces gradients in float32. Frozen layers with LoRA keep the dtypes of both.

    Args:
        model: The model, prepared by `set_trainable`.
        start_values: Exact float32 values of parameters of which the model has the roundings.
    Returns:
        The sharded layers.
    Raises:
        ConfigError: if the decoder is frozen, because its layers then have no gradients to reduce.
        ModelError: if the decoder has no list of layers.
    """
    if not is_sharded():
        return ShardedDecoder()
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    trunk, layers = decoder_layers(model)
    if not any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
        raise ConfigError(
            "fsdp2 shards the decoder, which is frozen here; launch with the configuration ddp "
            "(earwise recipe --path ddp)"
        )
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    policy = MixedPrecisionPolicy(param_dtype=_to_float32(model.module, in_layers, start_values))
    sharded: list[Any] = [
        fully_shard(layer, reshard_after_forward=reshards_after_forward(), mp_policy=policy) for layer in layers
    ]
    # The trunk is FSDP2's root, which prefetches a layer while the one before computes; it shards nothing itself.
    replicated = {p for p in trunk.parameters() if p not in in_layers and not _is_sharded_tensor(p)}
    root: Any = fully_shard(trunk, ignored_params=replicated)
    for module in (root, *sharded):
        module.set_gradient_divide_factor(1.0)  # losses are divided by counts of the whole step: gradients are summed
        module.set_force_sum_reduction_for_comms(True)
    # By itself FSDP2 prefetches in the reverse order of all forward passes since the last backward pass. The checks and
    # evaluations of one process are such passes, and would make it gather layers that the others do not.
    for place, layer in enumerate(sharded):
        layer.set_modules_to_backward_prefetch([sharded[max(place - 1, 0)]])
    with torch.no_grad():  # FSDP2 takes the first module that computes as its root
        filler = filler_micro_batch(model)
        Policy(model)(*filler.policy_inputs)
    for layer in sharded:
        layer.reshard()  # needed where layers stay gathered after a forward pass: the optimizer expects shards
    return ShardedDecoder(sharded, policy.param_dtype)


def _to_float32(
    module: nn.Module, in_layers: Collection[Tensor], start_values: Mapping[str, Tensor]
) -> torch.dtype | None:
    """Make the layers float32 if some of their low-precision parameters are trained, in place.

    Returns:
        The dtype that they compute in; None if nothing was changed.
    """
    parameters = {name: value for name, value in module.named_parameters() if value in in_layers}
    compute_dtypes = {value.dtype for value in parameters.values() if value.requires_grad} & set(LOW_PRECISION)
    if not compute_dtypes:
        return None
    for name, parameter in parameters.items():
        parameter.data = start_values.get(name, parameter.data).to(parameter.device, torch.float32)
    return min(compute_dtypes, key=str)


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


@torch.no_grad()
def unshard_parameters(model: AudioLM, decoder: ShardedDecoder) -> dict[str, Tensor]:
    """Make the layers' parameters whole in every process for good, in the dtype that they compute in, at the end of
    training; one tensor at a time.

    Returns:
        Name -> float32 value of each parameter that computes in a lower precision, on the CPU of the first process;
        empty in the others.
    """
    exact: dict[str, Tensor] = {}
    for path, module in model.module.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            whole = parameter.full_tensor()
            dtype = decoder.compute_dtype or whole.dtype
            if dtype != whole.dtype and parallel.is_main_process():
                exact[f"{path}.{name}"] = whole.cpu()
            setattr(module, name, nn.Parameter(whole.to(dtype), requires_grad=parameter.requires_grad))
    return exact


@torch.no_grad()
def full_state(value: Any) -> Any:
    """A state (tensors in dictionaries and lists) with its sharded tensors whole, on the CPU of the first process; the
    others get None for them. A collective: all processes must call.

    Tensors are gathered one at a time, so that no process holds more than one of them whole beside its shards.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if parallel.is_main_process() else None
    if isinstance(value, dict):
        return {key: full_state(item) for key, item in value.items()}
    return [full_state(item) for item in value] if isinstance(value, list) else value


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard a whole tensor, which every process can read, in the same way as a parameter."""
    if not isinstance(parameter, DTensor):
        return value
    value = value.to(parameter.to_local().device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


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
