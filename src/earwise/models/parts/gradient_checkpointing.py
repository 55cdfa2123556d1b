"""Gradient (activation) checkpointing: a layer stores only its input and is recomputed in the backward pass.

For stages whose activations do not fit into memory (`gradient_checkpointing` in a recipe). It uses the support built
into transformers' layers, and into ours, which recompute in training mode only, so sampling and the reference pass cost
the same as before.
"""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from earwise.errors import ModelError
from earwise.models.decoders.llama import LlamaDecoderLayer


def enable_gradient_checkpointing(module: nn.Module) -> int:
    """Enable checkpointing for every layer that supports it, in place. Gradients stay the same.

    Args:
        module: A model that contains decoder (and encoder) layers of transformers, or our Llama layers.
    Returns:
        Number of layers.
    Raises:
        ModelError: if no layer supports it.
    """
    supported = GradientCheckpointingLayer | LlamaDecoderLayer
    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, supported)]
    if not layers:
        raise ModelError("gradient_checkpointing: no layer of this model supports recomputation; set it to false")
    # A layer with dropout must draw the same mask again when it is recomputed.
    has_dropout = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in module.modules())
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=has_dropout)
        layer.gradient_checkpointing = True
    return len(layers)
