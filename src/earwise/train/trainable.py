"""What is trained: freezing by group, LoRA by peft, and the frozen reference that a policy is held to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earwise.config.stages import OptimizerConfig, TrainableConfig
from earwise.errors import ConfigError, ModelError
from earwise.models.base import AudioLM
from earwise.models.parts import lora_product
from earwise.train.policy import Micro, Policy


def prepare(model: AudioLM, config: TrainableConfig) -> None:
    """Freeze, unfreeze and add LoRA in place. LoRA and the connector are trained in float32 whatever the dtype of the
    weights beside them: bfloat16 keeps three digits, and a step changes the fourth.

    Raises:
        ConfigError: if LoRA's targets match no layer.
        ModelError: if the model's groups name nothing that is to be trained.
    """
    model.module.requires_grad_(False)
    for group, mode in (("encoder", config.encoder), ("connector", config.connector), ("decoder", config.decoder)):
        if mode == "full":
            for name, parameter in model.module.named_parameters():
                if name.startswith(model.groups[group]):
                    parameter.requires_grad_(True)
        elif mode == "lora":
            from peft import LoraConfig, inject_adapter_in_model

            lora = LoraConfig(
                r=config.lora.r,
                lora_alpha=config.lora.alpha,
                target_modules=list(config.lora.targets),
                lora_dropout=0.0,
            )
            try:
                inject_adapter_in_model(lora, model.module.get_submodule(model.groups[group][0].removesuffix(".")))
            except ValueError as error:
                raise ConfigError(
                    f"lora.targets {list(config.lora.targets)} match no layer of the {group} of {model.name}"
                ) from error
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad and (".lora_" in name or name.startswith(model.groups["connector"])):
            parameter.data = parameter.data.float()
    lora_product.fuse(model.module)
    if not any(parameter.requires_grad for parameter in model.module.parameters()):
        raise ModelError(f"{model.name}: its groups name no parameter of what the recipe trains; see `AudioLM.groups`")


def encoder_trains(model: AudioLM) -> bool:
    """True if gradients must reach the encoder, so that nothing heard may be kept."""
    return any(
        p.requires_grad for name, p in model.module.named_parameters() if name.startswith(model.groups["encoder"])
    )


def parameter_groups(model: AudioLM, config: OptimizerConfig) -> list[dict[str, object]]:
    """Trained parameters for the optimizer, those of a learning rate together: encoder and connector may have their
    own."""
    own = {"connector": config.connector_lr, "encoder": config.encoder_lr}
    groups: dict[str, list[Tensor]] = {"rest": [], "encoder": [], "connector": []}
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad:
            part = next((part for part in own if name.startswith(model.groups[part])), "rest")
            groups["rest" if part == "encoder" and own[part] is None else part].append(parameter)
    return [{"params": some, "lr": own.get(part) or config.lr} for part, some in groups.items() if some]


class Reference:
    """The policy as it was when this object was made, at the price of a copy of what is trained directly; LoRA is
    simply switched off.

    Args:
        module: The policy's parameters, with LoRA just added (LoRA starts as zero, so "off" is the start).
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
        now = {name: parameters[name].data for name in self._start}
        lora: list[Any] = [
            layer for layer in self._module.modules() if hasattr(layer, "enable_adapters") and hasattr(layer, "lora_A")
        ]
        try:
            for name, value in self._start.items():
                parameters[name].data = value
            for layer in lora:
                layer.enable_adapters(False)
            with torch.no_grad():
                yield
        finally:
            for name, value in now.items():
                parameters[name].data = value
            for layer in lora:
                layer.enable_adapters(True)

    def logprobs(self, policy: Policy, micro: Micro) -> Float[Tensor, "branches tokens"]:
        """Log-probabilities (nats) of a micro batch under the reference."""
        with self.active():
            found: Tensor = policy(micro.forest, micro.heard, micro.waveforms)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint: a resumed run must be held to the same start."""
        return self._start

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the start from a checkpoint."""
        self._start = {name: value.to(self._start[name]) for name, value in state.items()}
