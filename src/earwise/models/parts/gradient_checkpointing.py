"""Gradient (activation) checkpointing: a layer stores only its input and is recomputed in the backward pass.

For stages whose activations do not fit into memory (`gradient_checkpointing` in a recipe). It uses the support built
into transformers' layers, which recompute in training mode only, so sampling and the reference pass cost the same as
before.
"""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from earwise.errors import ModelError


def enable_gradient_checkpointing(module: nn.Module) -> int:
    """Enable checkpointing for every layer that supports it, in place. Gradients stay the same.

    Args:
        module: A model that contains transformers' decoder (and encoder) layers.
    Returns:
        Number of layers.
    Raises:
        ModelError: if no layer supports it.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError("gradient_checkpointing: no layer of this model supports recomputation; set it to false")
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        layer.gradient_checkpointing = True
    return len(layers)
