"""What is trained: freezing of model parts, LoRA, optimizer groups, and the frozen reference of the policy.

Used when a stage starts. LoRA layers come from PEFT.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earwise.config.optimizer import OptimizerConfig
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import ModelError
from earwise.models import registry
from earwise.models.base import AudioLM
from earwise.models.lora_targets import LoraPart, check_patterns, resolve_targets
from earwise.models.parts import lora_product
from earwise.models.precision import lora_beside
from earwise.training.policy import MicroBatch, Policy


def set_trainable(
    model: AudioLM, config: TrainableConfig, start_values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Freeze and unfreeze the parts of a model and add LoRA, in place.

    LoRA and the connector are float32 parameters of the model whatever the dtype of the other weights is. Other
    parameters that are trained in full keep their dtype, in which the model computes; the trainer keeps float32 masters
    of them (`optimization/master_weights.py`).

    Args:
        model: The model.
        config: How each part is trained.
        start_values: Exact float32 values of parameters, as an earlier stage left them; the model has their roundings.
    Returns:
        Exact float32 values of fully trained parameters, where they are known to be more than the model's roundings.
    Raises:
        ConfigError: if one of LoRA's target modules matches no layer.
        ModelError: if the model's `parameter_prefixes` match none of the parameters to train.
    """
    model.module.requires_grad_(False)
    modes = {"encoder": config.encoder, "connector": config.connector, "decoder": config.decoder}
    for part, mode in modes.items():
        if mode == "full":
            for name, parameter in model.module.named_parameters():
                if name.startswith(model.parameter_prefixes[part]):
                    parameter.requires_grad_(True)
    if lora_parts := [part for part, mode in modes.items() if mode == "lora"]:
        _add_lora(model, lora_parts, config.lora)
    exact = dict(start_values or {}) | _merge_lora_of_full_parameters(model)
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad and (".lora_" in name or name.startswith(model.parameter_prefixes["connector"])):
            parameter.data = exact.pop(name, parameter.data).to(parameter.device, torch.float32)
    lora_product.fuse_lora_layers(model.module)
    if not any(parameter.requires_grad for parameter in model.module.parameters()):
        raise ModelError(
            f"{model.name}: its parameter_prefixes match none of the parameters that the recipe trains; see `AudioLM`"
        )
    trained = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in exact.items() if name in trained}


def _merge_lora_of_full_parameters(model: AudioLM) -> dict[str, Tensor]:
    """Merge the LoRA of an earlier stage or of the checkpoint, which is computed beside low-precision weights, into
    those weights that are trained in full now; returns the float32 sums by name, whose roundings the model gets."""
    merged: dict[str, Tensor] = {}
    for name, layer in list(model.module.named_modules()):
        parameter = getattr(layer, "weight", None)
        has_lora = any(lora_beside.attached(layer, own=own) for own in (False, True))
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad and has_lora:
            merged[f"{name}.weight"] = lora_beside.merged_float32(layer)
            lora_beside.detach(layer, own=True)
            parameter.data = merged[f"{name}.weight"].to(parameter.dtype)
    return merged


def _add_lora(model: AudioLM, part_names: list[str], config: LoraConfig) -> None:
    """Add LoRA layers to some parts of the model."""
    with _no_kernel_warning():
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model

    excluded = registry.lora_excluded(model.name)
    parts = [LoraPart(name, model.parameter_prefixes[name], excluded) for name in part_names]
    names = resolve_targets(model.module, parts, config.target_modules, config.exclude_modules, model.name)
    check_patterns(config.rank_pattern, names, "rank_pattern", model.name)
    check_patterns(config.alpha_pattern, names, "alpha_pattern", model.name)
    peft_config = PeftConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=names,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        rank_pattern=config.rank_pattern,
        alpha_pattern=config.alpha_pattern,
    )
    trained_before = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    inject_adapter_in_model(peft_config, model.module)
    model.module.eval()  # new layers start in training mode, in which their dropout acts
    for parameter in trained_before:  # PEFT freezes whatever is no LoRA
        parameter.requires_grad_(True)


@contextmanager
def _no_kernel_warning() -> Iterator[None]:
    """Inside the block, bitsandbytes, which PEFT imports, does not warn that it lacks a kernel for 4-bit weights on
    CPUs: training without them needs none, and with them has bitsandbytes' own."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def trains_encoder(model: AudioLM) -> bool:
    """Whether gradients must reach the encoder, so that no encoder states may be cached."""
    return any(
        parameter.requires_grad
        for name, parameter in model.module.named_parameters()
        if name.startswith(model.parameter_prefixes["encoder"])
    )


def parameter_groups(
    model: AudioLM, config: OptimizerConfig, trained: Mapping[str, Tensor] | None = None
) -> list[dict[str, object]]:
    """Trained parameters as optimizer groups; encoder and connector may have learning rates of their own.

    Weight decay is for weights only, as in transformers' Trainer: biases and the weights of norms, which have one
    dimension, are in groups without it.

    Args:
        model: The model, prepared by `set_trainable`.
        config: Learning rates and weight decay.
        trained: Parameter name -> what the optimizer updates (`MasterWeights.trained`); None: the parameters.
    Returns:
        Groups with `params`, `lr` and `weight_decay`, the decoder's first; empty groups are left out.
    """
    if trained is None:
        trained = {name: value for name, value in model.module.named_parameters() if value.requires_grad}
    learning_rates = {"connector": config.connector_learning_rate, "encoder": config.encoder_learning_rate}
    groups: dict[tuple[str, bool], list[Tensor]] = {
        (part, decays): [] for part in ("decoder", "encoder", "connector") for decays in (True, False)
    }
    for name, parameter in trained.items():
        part = next((part for part in learning_rates if name.startswith(model.parameter_prefixes[part])), "decoder")
        if part == "encoder" and learning_rates[part] is None:
            part = "decoder"  # an encoder without a rate of its own shares the decoder's group
        groups[part, parameter.ndim > 1 or not config.weight_decay].append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rates.get(part) or config.learning_rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
        if parameters
    ]


class Reference:
    """The policy as it was when this object was made.

    Keeps a copy of the fully trained parameters. LoRA needs no copy: it starts at zero, so the reference is the model
    with LoRA switched off.

    Args:
        module: The policy's module, prepared by `set_trainable`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._start: dict[str, Tensor] = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and ".lora_" not in name
        }

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside the block the module computes as the reference, without gradients."""
        parameters = dict(self._module.named_parameters())
        trained = {name: parameters[name].data for name in self._start}
        lora_layers: list[Any] = [
            layer for layer in self._module.modules() if hasattr(layer, "enable_adapters") and hasattr(layer, "lora_A")
        ]
        try:
            for name, value in self._start.items():
                parameters[name].data = value
            for layer in lora_layers:
                layer.enable_adapters(False)
            with torch.no_grad():
                yield
        finally:
            for name, value in trained.items():
                parameters[name].data = value
            for layer in lora_layers:
                layer.enable_adapters(True)

    def logprobs(self, policy: Policy, micro_batch: MicroBatch[Any]) -> Float[Tensor, "branches tokens"]:
        """Log-probabilities (nats) of the trained tokens of a micro-batch under the reference."""
        with self.active():
            logprobs: Tensor = policy(*micro_batch.policy_inputs)
        return logprobs

    def state_dict(self) -> dict[str, Tensor]:
        """The copied parameters, for a checkpoint: a resumed run must have the same reference."""
        return self._start

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the copied parameters from a checkpoint."""
        self._start = {name: value.to(self._start[name]) for name, value in state.items()}
