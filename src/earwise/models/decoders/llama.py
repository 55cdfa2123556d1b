"""Llama's decoder as plain torch modules: the embedded model's text part, without transformers.

Importing transformers' model classes takes longer than importing torch, and most of that is for models and trainers
that a question does not need. The modules have transformers' parameter names and compute the same operations in the
same order, so results are equal bit for bit (`tests/parity/test_llama.py`). Attention is left to an `AttentionFn`.

Source: Llama (arXiv:2302.13971), grouped-query attention (arXiv:2305.13245), rotary positions (arXiv:2104.09864); the
parameter names of transformers' `LlamaModel`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earwise.models.parts.attention import AttentionFn


@dataclass(slots=True)
class LlamaSizes:
    """Sizes of a decoder, named as in transformers' `LlamaConfig`.

    Attributes:
        vocab_size: Number of tokens.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward part.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of query heads.
        num_key_value_heads: Number of key and value heads.
        max_position_embeddings: Longest sequence that the weights were trained on.
        rms_norm_eps: Number that is added to the mean square before its root.
        rope_theta: Base of the rotary frequencies.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def transformers_fields(self) -> dict[str, Any]:
        """The arguments of transformers' `LlamaConfig` for the same decoder, whose head is tied to its embeddings."""
        sizes = asdict(self)
        theta = sizes.pop("rope_theta")
        return sizes | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "tie_word_embeddings": True}


class LlamaRMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32.

    Args:
        width: Size of the last axis.
        eps: Number that is added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """The normalised states, in the dtype of the input."""
        exact = hidden.float()
        scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        normed: Tensor = self.weight * (exact * scale).to(hidden.dtype)
        return normed


class LlamaRotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions.

    Args:
        sizes: Sizes of the decoder.
    """

    inv_freq: Tensor

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        with torch.device("cpu"):  # not stored with the weights, so never on the meta device
            exponents = torch.arange(0, sizes.head_dim, 2, dtype=torch.float) / sizes.head_dim
            frequencies = 1.0 / (sizes.rope_theta**exponents)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Two tables `(batch, seq, head_dim)` for positions `(batch, seq)`, with the dtype and device of `hidden`."""
        angles = positions[..., None].float() * self.inv_freq.to(device=hidden.device, dtype=torch.float)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class LlamaAttention(nn.Module):
    """Projections of one attention layer; the attention itself is an `AttentionFn`.

    Args:
        sizes: Sizes of the decoder.
        layer_idx: Number of the layer.
    """

    def __init__(self, sizes: LlamaSizes, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = sizes.head_dim
        self.scaling = self.head_dim**-0.5
        query_width, key_width = (
            heads * self.head_dim for heads in (sizes.num_attention_heads, sizes.num_key_value_heads)
        )
        self.q_proj = nn.Linear(sizes.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(sizes.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(sizes.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(query_width, sizes.hidden_size, bias=False)

    def forward(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], attend_with: AttentionFn) -> Tensor:
        """Attend, `(batch, seq, hidden_size)` in and out."""
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        queries, keys, values = (
            projection(hidden).view(shape).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cosines, sines = (table.unsqueeze(1) for table in position_embeddings)
        queries = queries * cosines + _rotate_half(queries) * sines
        keys = keys * cosines + _rotate_half(keys) * sines
        attended = attend_with(self.layer_idx, queries, keys, values, self.scaling)
        out: Tensor = self.o_proj(attended.transpose(1, 2).contiguous().reshape((*hidden.shape[:-1], -1)))
        return out


class LlamaMLP(nn.Module):
    """Gated feed-forward part.

    Args:
        sizes: Sizes of the decoder.
    """

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.up_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate_size, sizes.hidden_size, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., hidden_size)` in and out."""
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class LlamaDecoderLayer(nn.Module):
    """Attention and feed-forward part, each behind a norm and added to the residual stream.

    Args:
        sizes: Sizes of the decoder.
        layer_idx: Number of the layer.
    """

    gradient_checkpointing = False
    """True stores only the layer's input in training, and computes the rest again in the backward pass."""
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, sizes: LlamaSizes, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(sizes, layer_idx)
        self.mlp = LlamaMLP(sizes)
        self.input_layernorm = LlamaRMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(sizes.hidden_size, sizes.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], attend_with: AttentionFn
    ) -> Tensor:
        """`(batch, seq, hidden_size)` in and out."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self._compute, hidden_states, position_embeddings, attend_with)
        return self._compute(hidden_states, position_embeddings, attend_with)

    def _compute(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], attend_with: AttentionFn) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), position_embeddings, attend_with)
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return hidden


class LlamaDecoder(nn.Module):
    """Llama without its output head. All weights are to be loaded or set.

    Args:
        config: Sizes.
    """

    def __init__(self, config: LlamaSizes) -> None:
        super().__init__()
        self.config = config
        # An embedding that draws random weights would import torch's compiler on the meta device, which takes a second.
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)

    def forward(self, embeddings: Tensor, positions: Tensor, attend_with: AttentionFn) -> Tensor:
        """Hidden states of packed tokens after the final norm.

        Args:
            embeddings: `(seq, dim)`.
            positions: Position of each token in its own sequence, `(seq,)`.
            attend_with: Attention over the packed tokens.
        Returns:
            `(seq, dim)`.
        """
        hidden = embeddings[None]
        tables = self.rotary_emb(hidden, positions[None])
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=tables, attend_with=attend_with)
        normed: Tensor = self.norm(hidden)[0]
        return normed


def _rotate_half(states: Tensor) -> Tensor:
    """The second half of the last axis, negated, followed by the first half."""
    half = states.shape[-1] // 2
    return torch.cat((-states[..., half:], states[..., :half]), dim=-1)
