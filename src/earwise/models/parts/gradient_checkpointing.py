"""Activation checkpointing: a layer keeps its input only and is computed again in the backward pass.

For stages whose activations do not fit (`stages.N.gradient_checkpointing`). It works on transformers' own layers, which
ask in their forward whether they are to be recomputed; only in training mode, so sampling and the reference pass cost
what they did.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from earwise.errors import ModelError


def enable_gradient_checkpointing(module: nn.Module) -> int:
    """Switch recomputation on, in place, for every layer that knows how; the gradients stay the same.

    Args:
        module: A model with transformers' decoder (and encoder) layers inside.
    Returns:
        Number of layers.
    Raises:
        ModelError: if there is none.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError("gradient_checkpointing: this model has no layers that can be computed again; set it to false")
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        layer.gradient_checkpointing = True
    return len(layers)
