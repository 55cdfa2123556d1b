"""Window-level Q-Former: learned queries read each window of encoder states through cross-attention.

A clip thus gives the same number of tokens per second whatever its length. The Q-Former itself is transformers' (that
of BLIP-2); this file cuts the windows. SALMONN uses windows of 17 states (0.34 s) with one query: 88 tokens for 30 s.
`QFormer` is the same as a connector of the embedded model, whose clips are not padded, so that a last window may be
short.

Source: SALMONN (arXiv:2310.13289), section 3.1. Deviation: no dropout in training.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from earwise.models.parts.projector import concat_weighted_layers


class WindowQFormer(nn.Module):
    """A Q-Former over windows of encoder states.

    Args:
        encoder_dim: Width of the encoder states.
        window: States per window, which is also the stride; an incomplete last window is dropped.
        queries: Tokens per window.
        dim: Width of the tokens.
        layers: Number of layers, each with self-attention, cross-attention and feed-forward.
        heads: Number of heads of both attentions.
        ffn_dim: Hidden width of the feed-forward.
    """

    def __init__(
        self, encoder_dim: int, window: int, *, queries: int = 1, dim: int = 768, layers: int = 2, heads: int = 12,
        ffn_dim: int = 3072,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window = window
        self.query = nn.Parameter(0.02 * torch.randn(1, queries, dim))
        self.former = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn_dim,
                encoder_hidden_size=encoder_dim, cross_attention_frequency=1, use_qformer_text_input=False,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip

    def window_count(self, states: int) -> int:
        """Number of complete windows in this many states."""
        return states // self.window

    def forward(self, states: Float[Tensor, "clips states encoder_dim"]) -> Float[Tensor, "clips tokens dim"]:
        """`queries` tokens for each complete window of each clip."""
        count = self.window_count(states.shape[1])
        windows = states[:, : count * self.window].unflatten(1, (count, self.window)).flatten(0, 1)
        return self.read_windows(windows).unflatten(0, (len(states), count)).flatten(1, 2)

    def read_windows(
        self, windows: Float[Tensor, "windows states encoder_dim"], mask: Bool[Tensor, "windows states"] | None = None
    ) -> Float[Tensor, "windows queries dim"]:
        """The tokens of each window.

        Args:
            windows: Encoder states of each window.
            mask: True for states that are real, False for padding; None if there is no padding.
        """
        out: Tensor = self.former(
            query_embeds=self.query.expand(len(windows), -1, -1), encoder_hidden_states=windows,
            encoder_attention_mask=None if mask is None else mask.long(),
        ).last_hidden_state  # fmt: skip
        return out


class QFormer(nn.Module):
    """Several encoder layers -> one token per started window, in the decoder's width.

    Args:
        layers: Number of encoder layers to read, counted from the last (the convolutions' output counts as a layer).
        dim: Width of the encoder, and of the Q-Former.
        out: Width of the decoder.
        window: Encoder states per window.
    """

    def __init__(self, layers: int, dim: int, out: int, window: int) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.zeros(layers))
        self.former = WindowQFormer(layers * dim, window, dim=dim, heads=max(1, dim // 64), ffn_dim=4 * dim)
        self.out = nn.Linear(dim, out)

    def reduce_states(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read states dim"]:
        """The part of a clip's encoder states that `forward` needs: all states of the layers that are read."""
        return layers[-len(self.gates) :]

    def token_count(self, states: int) -> int:
        """Number of tokens of a clip with this many encoder states."""
        return -(-states // self.former.window)

    def forward(self, clips: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Audio embeddings of some clips, from `reduce_states` of each."""
        if not clips:
            return []
        rows = [concat_weighted_layers(clip.float(), clip.float().mean(1, keepdim=True), self.gates) for clip in clips]
        windows = [window for clip in rows for window in clip.split(self.former.window)]
        lengths = torch.tensor([len(window) for window in windows], device=rows[0].device)
        mask = torch.arange(int(lengths.max()), device=rows[0].device)[None] < lengths[:, None]
        tokens = self.former.read_windows(pad_sequence(windows, batch_first=True), mask)
        return list(self.out(tokens[:, 0]).split([self.token_count(len(clip)) for clip in rows]))
