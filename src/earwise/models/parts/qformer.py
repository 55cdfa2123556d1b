"""Window-level Q-Former: learned queries read each window of the encoders' states through cross-attention, so that a
clip gives the same few tokens a second whatever its length.

transformers' Q-Former of BLIP-2 does the work; this file cuts the windows and asks. SALMONN reads windows of 17 states
(0.34 s) with one query: 88 tokens for 30 s. `QFormer` is the same as a connector of the embedded model, whose clips are
no longer than they sound: its last window may be short.

Source: SALMONN (arXiv:2310.13289), section 3.1; papers/salmonn.md sections 1 and 6. Deviation: no dropout in training.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from earwise.models.parts.projector import concat_weighted_layers


class WindowQFormer(nn.Module):
    """Queries over windows.

    Args:
        heard: Width of the states that are read.
        window: States a window, and from one window to the next; a last one that is not whole is left out.
        queries: Tokens a window.
        dim: Width of the tokens.
        layers: Self-attention, cross-attention and feed-forward each.
        heads: Of both attentions.
        ffn_dim: Width of the feed-forward's middle.
    """

    def __init__(
        self, heard: int, window: int, *, queries: int = 1, dim: int = 768, layers: int = 2, heads: int = 12,
        ffn_dim: int = 3072,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window = window
        self.query = nn.Parameter(0.02 * torch.randn(1, queries, dim))
        self.former = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn_dim,
                encoder_hidden_size=heard, cross_attention_frequency=1, use_qformer_text_input=False,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip

    def windows(self, states: int) -> int:
        """Whole windows in that many states."""
        return states // self.window

    def forward(self, states: Float[Tensor, "clips states heard"]) -> Float[Tensor, "clips tokens dim"]:
        """`queries` tokens for each whole window of each clip."""
        count = self.windows(states.shape[1])
        windows = states[:, : count * self.window].unflatten(1, (count, self.window)).flatten(0, 1)
        return self.ask(windows).unflatten(0, (len(states), count)).flatten(1, 2)

    def ask(
        self, windows: Float[Tensor, "windows states heard"], real: Bool[Tensor, "windows states"] | None = None
    ) -> Float[Tensor, "windows queries dim"]:
        """What the queries read of each window; of its `real` states, if it is filled up."""
        out: Tensor = self.former(
            query_embeds=self.query.expand(len(windows), -1, -1), encoder_hidden_states=windows,
            encoder_attention_mask=None if real is None else real.long(),
        ).last_hidden_state  # fmt: skip
        return out


class QFormer(nn.Module):
    """Encoder layers -> one token per started window, in the decoder's width.

    Args:
        layers: Encoder layers read, the last so many (stem included).
        dim: Encoder width; also the Q-Former's.
        out: Decoder width.
        window: Encoder states of a window.
    """

    def __init__(self, layers: int, dim: int, out: int, window: int) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.zeros(layers))
        self.former = WindowQFormer(layers * dim, window, dim=dim, heads=max(1, dim // 64), ffn_dim=4 * dim)
        self.out = nn.Linear(dim, out)

    def kept(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read states dim"]:
        """Every state: the windows are read by attention."""
        return layers[-len(self.gates) :]

    def tokens(self, states: int) -> int:
        """Of a clip of so many encoder states."""
        return -(-states // self.former.window)

    def forward(self, heard: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Embeddings of some clips."""
        if not heard:
            return []
        rows = [concat_weighted_layers(clip.float(), clip.float().mean(1, keepdim=True), self.gates) for clip in heard]
        windows = [window for clip in rows for window in clip.split(self.former.window)]
        lengths = torch.tensor([len(window) for window in windows], device=rows[0].device)
        real = torch.arange(int(lengths.max()), device=rows[0].device)[None] < lengths[:, None]
        read = self.former.ask(pad_sequence(windows, batch_first=True), real)
        return list(self.out(read[:, 0]).split([self.tokens(len(clip)) for clip in rows]))
