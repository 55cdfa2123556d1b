"""transformers' decoder classes under the forest's attention.

An `AttentionFn` is plugged into them as an attention implementation of their own interface. Families whose decoder is
a class of transformers run it with `decode_packed`. The embedded model's decoder (`models.decoders.llama`) is run by
transformers' `LlamaModel` here for checks and comparisons only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRotaryEmbedding

from earwise.models.decoders.llama import LlamaDecoder
from earwise.models.parts.attention import AttentionFn, uses_eager_attention

IMPLEMENTATION = "earwise_forest"


def _forest_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, sliding_window: int | None = None, *,
    attend_with: AttentionFn, **_: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: hands the call of a layer to the `AttentionFn` given to the model."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    attended = attend_with(module.layer_idx, query, key, value, scale, sliding_window)  # type: ignore[arg-type]
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _forest_attention)


def decode_packed(decoder: torch.nn.Module, embeddings: Tensor, positions: Tensor, attend_with: AttentionFn) -> Tensor:
    """Run a transformers decoder (without head) over packed tokens.

    Args:
        decoder: A text model whose `config._attn_implementation` is `IMPLEMENTATION`.
        embeddings: `(seq, dim)`.
        positions: Position of each token in its own sequence, `(seq,)`.
        attend_with: Attention over the packed tokens.
    Returns:
        Hidden states after the final norm, `(seq, dim)`.
    """
    return run_decoder(decoder, positions, attend_with, inputs_embeds=embeddings[None])


def run_decoder(decoder: Any, positions: Tensor, attend_with: AttentionFn, **inputs: Tensor) -> Tensor:
    """Run a transformers decoder on inputs of its own; see `decode_packed`.

    Args:
        decoder: The text model.
        positions: Position of each token in its own sequence, `(seq,)`.
        attend_with: Attention over the packed tokens.
        **inputs: What the model's forward pass takes in place of token ids, each with a batch dimension of 1.
    """
    if uses_eager_attention():
        with _eager_configs(decoder.config):
            out = decoder(**inputs, use_cache=False)
    else:
        out = decoder(**inputs, position_ids=positions[None], use_cache=False, attend_with=attend_with)
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


@contextmanager
def _eager_configs(config: Any) -> Iterator[None]:
    """Set a config to eager attention. Setting it changes the parts of a config too, so these are restored as well."""
    parts = [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    settings = [(part, part._attn_implementation) for part in (config, *parts)]
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        for part, implementation in settings:
            part._attn_implementation = implementation


def as_transformers(decoder: LlamaDecoder, implementation: str) -> LlamaModel:
    """transformers' `LlamaModel` with the parameters of a decoder, and with its linear layers, LoRA included.

    Args:
        decoder: The decoder, which stays as it is.
        implementation: One of transformers' attention implementations, for example `eager`.
    """
    config = LlamaConfig(**decoder.config.transformers_fields(), attn_implementation=implementation)
    with torch.device("meta"):
        model = LlamaModel(config)
    model.rotary_emb = LlamaRotaryEmbedding(config=config).to(decoder.rotary_emb.inv_freq.device)
    model.embed_tokens, model.norm.weight = decoder.embed_tokens, decoder.norm.weight
    pairs: list[tuple[Any, Any]] = list(zip(model.layers, decoder.layers, strict=True))
    for layer, ours in pairs:
        for part in ("self_attn", "mlp"):
            for name, projection in getattr(ours, part).named_children():
                if name.endswith("_proj"):
                    setattr(getattr(layer, part), name, projection)
        layer.input_layernorm.weight = ours.input_layernorm.weight
        layer.post_attention_layernorm.weight = ours.post_attention_layernorm.weight
    return model.train(decoder.training)


def decode_eagerly(decoder: LlamaDecoder, embeddings: Tensor) -> Tensor:
    """Run a decoder as transformers runs it on one whole sequence, with its own eager attention, mask and positions.

    Args:
        decoder: The decoder.
        embeddings: `(seq, dim)`.
    Returns:
        Hidden states after the final norm, `(seq, dim)`.
    """
    hidden: Tensor = as_transformers(decoder, "eager")(inputs_embeds=embeddings[None], use_cache=False)[0][0]
    return hidden
