"""Window-level Q-Former: learned queries read each window of the encoders' states through cross-attention, so that a
clip gives the same few tokens a second whatever its length.

transformers' Q-Former of BLIP-2 does the work; this file cuts the windows and asks. SALMONN reads windows of 17 states
(0.34 s) with one query: 88 tokens for 30 s.

Source: SALMONN (arXiv:2310.13289), section 3.1; papers/salmonn.md sections 1 and 6. Deviation: no dropout in training.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel


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
        out = self.former(
            query_embeds=self.query.expand(len(windows), -1, -1), encoder_hidden_states=windows
        ).last_hidden_state
        tokens: Tensor = out.unflatten(0, (len(states), count)).flatten(1, 2)
        return tokens
