"""Connectors of the embedded model without attention: `LayerMix` (the one that ships) and `Projector`.

`LayerMix`: sound and music are best read from an encoder's middle layers, language from its last, so the connector sees
all of them: layers are normalised, weighted by learned gates and projected together. It gives one token per 320 ms, and
a few summary tokens per clip that see the mean and the standard deviation over time, as a linear probe would. A learned
prefix ("lead") stands before every summary token and before the frame tokens. It is initialised with words
(" Language:"), so that a decoder that has only read text understands its input from the start.
`models.embedded.ridge_init` initialises the rest in closed form.

`Projector` is what Mellow's ablation varies: one token for the mean over time and one per window, each through a linear
layer or Mellow's residual projection.

Source: Mellow (arXiv:2503.08540) and its released code, for `ResidualProjection`. Deviations: hidden states of the
encoder instead of class posteriors; no dropout, so that sampling and training see the same probabilities.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def pool_states(layers: Float[Tensor, "layers states dim"], pool: int) -> Float[Tensor, "layers rows dim"]:
    """Pool encoder states over time: mean and standard deviation of the clip (two rows), then means of windows.

    Args:
        layers: Encoder states of a clip.
        pool: States per window; the last window may be shorter.
    """
    states = layers.shape[1]
    window_of_state = torch.arange(states, device=layers.device) // pool
    window_index = torch.arange(-(-states // pool), device=layers.device)
    in_window = (window_of_state == window_index[:, None]).to(layers)
    # One product with these weights is several times faster than reductions over the middle dimension.
    weights = torch.cat([in_window.new_ones(1, states), in_window])
    means = (weights / weights.sum(1, keepdim=True)) @ layers
    deviation = ((weights[:1] / states) @ (layers - means[:, :1]).square_()).sqrt()
    return torch.cat([means[:, :1], deviation, means[:, 1:]], 1)


def concat_weighted_layers(
    rows: Float[Tensor, "layers rows dim"], clip_mean: Float[Tensor, "layers 1 dim"], gates: Float[Tensor, "*layers"]
) -> Float[Tensor, "rows features"]:
    """Scale each layer to unit standard deviation, weight it by its gate, and concatenate the layers.

    Args:
        rows: States of the layers.
        clip_mean: Mean state of the clip in each layer, whose standard deviation is the unit.
        gates: Logits of the layers' weights; equal gates weight every layer with 1.
    """
    scale = clip_mean.std(-1, keepdim=True, correction=0) + 1e-6
    weights = torch.softmax(gates, 0) * len(gates)
    return rearrange(rows / scale * weights[:, None, None], "layers rows dim -> rows (layers dim)")


class LayerMix(nn.Module):
    """Pooled states of several encoder layers -> summary tokens and one token per window, in the decoder's width.

    Args:
        layers: Number of encoder layers to read, counted from the last (the convolutions' output counts as a layer).
        dim: Width of the encoder.
        out: Width of the decoder.
        summary: Number of summary tokens.
        rank: Width of the summary tokens' bottleneck.
        lead: Number of tokens of each lead.
        pool: Encoder states per window.
    """

    def __init__(
        self, layers: int, dim: int, out: int, summary: int = 4, rank: int = 64, lead: int = 2, pool: int = 16
    ) -> None:
        super().__init__()
        self._pool = pool
        self.gates = nn.Parameter(torch.zeros(layers))
        self.frames = nn.Linear(layers * dim, out)
        self.squeeze = nn.Linear(2 * layers * dim, summary * rank, bias=False)
        self.summary = nn.Parameter(torch.randn(summary, rank, out) * rank**-0.5)
        self.summary_bias = nn.Parameter(torch.zeros(summary, out))
        self.leads = nn.Parameter(torch.randn(summary + 1, lead, out) * 0.1)

    @property
    def num_fixed_tokens(self) -> int:
        """Number of tokens before the frame tokens, for clips of any length."""
        summary, lead = len(self.summary), self.leads.shape[1]
        return summary * (lead + 1) + lead

    def reduce_states(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read rows dim"]:
        """The part of a clip's encoder states that `forward` needs; see `pool_states`."""
        return pool_states(layers[-len(self.gates) :], self._pool)

    def token_count(self, states: int) -> int:
        """Number of tokens of a clip with this many encoder states."""
        return self.num_fixed_tokens - (-states // self._pool)

    def mix_layers(self, pooled: Float[Tensor, "layers rows dim"]) -> Float[Tensor, "rows features"]:
        """The layers of a clip side by side: rows of mean, standard deviation, and windows."""
        pooled = pooled.float()
        return concat_weighted_layers(pooled, pooled[:, :1], self.gates)

    def forward(self, clips: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Audio embeddings of some clips.

        Args:
            clips: `reduce_states` of each clip.
        Returns:
            For each clip the summary tokens, each behind its lead; the last lead; one token per window.
        """
        if not clips:
            return []
        rows = [self.mix_layers(clip) for clip in clips]
        squeezed = self.squeeze(torch.stack([row[:2].flatten() for row in rows]))
        squeezed = rearrange(squeezed, "clips (summary rank) -> clips summary rank", summary=len(self.summary))
        summary = torch.einsum("csr,sro->cso", squeezed, self.summary) + self.summary_bias
        leads = self.leads[:-1].expand(len(rows), -1, -1, -1)
        summary_with_leads = torch.cat([leads, summary[:, :, None]], 2).flatten(1, 2)
        frames = self.frames(torch.cat([row[2:] for row in rows])).split([len(row) - 2 for row in rows])
        return [
            torch.cat([summary_tokens, self.leads[-1], frame_tokens])
            for summary_tokens, frame_tokens in zip(summary_with_leads, frames, strict=True)
        ]


class ResidualProjection(nn.Module):
    """Mellow's projector: `norm(W1 x + W2 gelu(W1 x))`, without biases.

    Args:
        dim: Width of the input.
        out: Width of the output.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.straight = nn.Linear(dim, out, bias=False)
        self.bent = nn.Linear(out, out, bias=False)
        self.norm = nn.LayerNorm(out)
        nn.init.xavier_uniform_(self.straight.weight)
        nn.init.xavier_uniform_(self.bent.weight)

    def forward(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        """Project each row."""
        projected = self.straight(rows)
        normed: Tensor = self.norm(projected + self.bent(nn.functional.gelu(projected)))
        return normed


class Projector(nn.Module):
    """One token for the mean of a clip and one per window, all through the same projection.

    Args:
        layers: Number of encoder layers to read, counted from the last (the convolutions' output counts as a layer).
        dim: Width of the encoder.
        out: Width of the decoder.
        pool: Encoder states per window.
        residual: True uses `ResidualProjection`, False a linear layer with bias.
    """

    def __init__(self, layers: int, dim: int, out: int, pool: int, *, residual: bool) -> None:
        super().__init__()
        self._pool = pool
        self.gates = nn.Parameter(torch.zeros(layers))
        self.project = ResidualProjection(layers * dim, out) if residual else nn.Linear(layers * dim, out)

    def reduce_states(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read rows dim"]:
        """The part of a clip's encoder states that `forward` needs: their mean, then the means of windows."""
        pooled = pool_states(layers[-len(self.gates) :], self._pool)
        return torch.cat([pooled[:, :1], pooled[:, 2:]], 1)

    def token_count(self, states: int) -> int:
        """Number of tokens of a clip with this many encoder states."""
        return 1 - (-states // self._pool)

    def forward(self, clips: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Audio embeddings of some clips, from `reduce_states` of each."""
        if not clips:
            return []
        rows = [concat_weighted_layers(clip.float(), clip[:, :1].float(), self.gates) for clip in clips]
        return list(self.project(torch.cat(rows)).split([len(row) for row in rows]))
