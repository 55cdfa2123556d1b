"""The decoder's linear layers in 4 bits (nf4 of bitsandbytes), for training LoRA on a GPU with little memory.

The layers are quantized after the model has been loaded, in blocks of 64 weights whose scales are quantized again
(QLoRA, arXiv:2305.14314, section 3). They compute in the dtype that they had. Embeddings, output head, norms, connector
and encoder keep theirs, and so does LoRA that is computed beside a layer (`lora_beside.py`). The result of training is
an adapter of the unquantized model, so no 4-bit weights are ever written.

Called by `training/run.py` where a recipe says `model.quantization: nf4`.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from earwise.errors import ConfigError
from earwise.models import registry
from earwise.models.base import AudioLM
from earwise.models.lora_targets import LoraPart, all_linear
from earwise.models.precision import lora_beside


@torch.no_grad()
def quantize_decoder(model: AudioLM) -> int:
    """Replace the decoder's linear layers by 4-bit ones, in place and one after the other.

    Returns:
        Number of layers.
    Raises:
        ConfigError: if bitsandbytes is not installed, or the weights are float32, whose LoRA from earlier stages would
            be quantized with them.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError("model.quantization nf4 needs bitsandbytes: pip install 'earwise[quantize]'")
    part = LoraPart("decoder", model.parameter_prefixes["decoder"], registry.lora_excluded(model.name))
    names = all_linear(model.module, part)
    beside, own = lora_beside.attached(model.module), lora_beside.attached(model.module, own=True)
    lora_beside.detach(model.module, own=True)
    for name in names:
        layer: Any = model.module.get_submodule(name)
        if layer.weight.dtype not in lora_beside.LOW_PRECISION:
            raise ConfigError(f"model.quantization nf4 needs model.dtype bfloat16; {name} is {layer.weight.dtype}")
        parent, _, child = name.rpartition(".")
        setattr(model.module.get_submodule(parent), child, _quantized(layer))
    lora_beside.attach(model.module, beside)
    lora_beside.attach(model.module, own, own=True)
    return len(names)


def _quantized(layer: nn.Linear) -> nn.Module:
    """A 4-bit layer with the weights of a linear layer, on the same device."""
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    weight = layer.weight
    quantized: Any = Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=weight.dtype,
        quant_type="nf4", device="meta",
    )  # fmt: skip
    # On a CPU with bfloat16 instructions, bitsandbytes rearranges the weights in place at the first forward pass that
    # needs no gradient of its input, for sizes that divide by 64 only, and has no backward pass for that form.
    quantized.support_avx512bf16_for_cpu = False
    quantized.weight = Params4bit(weight.data, requires_grad=False, quant_type="nf4")
    if layer.bias is not None:
        quantized.bias = layer.bias
    result: nn.Module = quantized.to(weight.device)  # moving it quantizes it
    return result.train(layer.training)
