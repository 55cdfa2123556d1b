"""The optimizers of a stage, by transformers' names: AdamW, and AdamW with 8-bit moments (bitsandbytes)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from earwise.config.optimizer import OptimizerConfig
from earwise.errors import ConfigError
from earwise.models.base import AudioLM
from earwise.training.trainable import parameter_groups


def build_optimizer(
    model: AudioLM, config: OptimizerConfig, *, sharded: bool, trained: Mapping[str, Tensor] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters of a model.

    Args:
        model: The model, prepared by `set_trainable`.
        config: Kind of optimizer, learning rates, betas and weight decay.
        sharded: Whether FSDP2 shards the decoder; sharded and whole parameters cannot be updated by one kernel.
        trained: Parameter name -> what the optimizer updates (`MasterWeights.trained`); None: the parameters.
    Raises:
        ConfigError: if the optimizer needs a package that is not installed, or cannot be used with FSDP2.
    """
    groups = parameter_groups(model, config, trained)
    if config.optim == "adamw_8bit":
        return _adamw_8bit(groups, config, sharded=sharded)
    on_cuda = next(model.module.parameters()).is_cuda
    return torch.optim.AdamW(
        groups,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True if on_cuda and not sharded else None,  # the other kernels need temporaries as large as the weights
        foreach=False if sharded else None,
    )


def _adamw_8bit(groups: list[dict[str, Any]], config: OptimizerConfig, *, sharded: bool) -> torch.optim.Optimizer:
    """AdamW whose moments are 8-bit numbers with one scale for 256 of them; small tensors keep float32."""
    if sharded:
        raise ConfigError("optimizer.optim adamw_8bit does not go with fsdp2, which shards the moments; use adamw")
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            f"optimizer.optim adamw_8bit needs bitsandbytes ({error}); pip install 'earwise[quantize]', or use adamw"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=config.betas, weight_decay=config.weight_decay)
    return optimizer
