"""The embedded model's connectors without attention: a learned mix of all encoder layers, one token per 320 ms, and a
few summary tokens per clip (`LayerMix`, what ships); and the same rows through one projector (`Projector`).

Sound and music are read best from middle layers, language from the last, so the connector sees them all: layers are
normalised, weighted by learned gates and projected together. Summary tokens see the mean and the deviation over time,
as a linear probe would. `ridge_start` gives both a closed-form start: least squares from encoder states to the
decoder's own word embeddings of the clip's labels. A learned lead stands before every summary token and before the
frames; it starts as words (" Language:"), so that a decoder that has only ever read text finds its way at once.

`Projector` is what Mellow's ablation varies: the mean over time, then a token per window, each through a linear layer
or Mellow's residual one (arXiv 2503.08540, released code; papers/mellow.md, section 2). Deviations: hidden states of
the encoder in place of class posteriors, no dropout of one half, so that what was sampled and what is trained have the
same probabilities.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def pool_states(layers: Float[Tensor, "layers states dim"], pool: int) -> Float[Tensor, "layers rows dim"]:
    """What the connector reads of a clip: mean and deviation over time (2 rows), then the mean of every `pool`
    states."""
    states = layers.shape[1]
    windows = torch.arange(states, device=layers.device) // pool
    rows = (windows == torch.arange(-(-states // pool), device=layers.device)[:, None]).to(layers)
    # A product with these weights is several times faster than reductions over the middle dimension.
    weights = torch.cat([rows.new_ones(1, states), rows])
    means = (weights / weights.sum(1, keepdim=True)) @ layers
    deviation = ((weights[:1] / states) @ (layers - means[:, :1]).square_()).sqrt()
    return torch.cat([means[:, :1], deviation, means[:, 1:]], 1)


class LayerMix(nn.Module):
    """Pooled encoder layers -> `summary` tokens and one token per pooled window, in the decoder's width.

    Args:
        layers: Encoder layers read, the last so many (stem included).
        dim: Encoder width.
        out: Decoder width.
        summary: Number of summary tokens.
        rank: Width of the summary tokens' bottleneck.
        lead: Tokens of each lead.
        pool: Encoder states of a window.
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
    def fixed_tokens(self) -> int:
        """Tokens in front of the frame tokens, whatever the clip's length."""
        summary, lead = len(self.summary), self.leads.shape[1]
        return summary * (lead + 1) + lead

    def kept(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read rows dim"]:
        """See `pool_states`."""
        return pool_states(layers[-len(self.gates) :], self._pool)

    def tokens(self, states: int) -> int:
        """Of a clip of so many encoder states."""
        return self.fixed_tokens - (-states // self._pool)

    def mixed(self, heard: Float[Tensor, "layers rows dim"]) -> Float[Tensor, "rows features"]:
        """All rows; row 1 (deviation) is only scaled."""
        heard = heard.float()
        return concat_weighted_layers(heard, heard[:, :1], self.gates)

    def forward(self, heard: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Embeddings of some clips: each summary token behind its lead, the last lead, then one token per window."""
        if not heard:
            return []
        rows = [self.mixed(clip) for clip in heard]
        narrow = self.squeeze(torch.stack([row[:2].flatten() for row in rows]))
        narrow = rearrange(narrow, "clips (summary rank) -> clips summary rank", summary=len(self.summary))
        summary = torch.einsum("csr,sro->cso", narrow, self.summary) + self.summary_bias
        led = torch.cat([self.leads[:-1].expand(len(rows), -1, -1, -1), summary[:, :, None]], 2).flatten(1, 2)
        frames = self.frames(torch.cat([row[2:] for row in rows])).split([len(row) - 2 for row in rows])
        return [torch.cat([first, self.leads[-1], rest]) for first, rest in zip(led, frames, strict=True)]


class ResidualProjection(nn.Module):
    """Mellow's projector: a linear layer, and beside it a second one on its GELU; no biases, normed.

    Args:
        dim: Width of what it reads.
        out: Width of what it gives.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.straight = nn.Linear(dim, out, bias=False)
        self.bent = nn.Linear(out, out, bias=False)
        self.norm = nn.LayerNorm(out)
        nn.init.xavier_uniform_(self.straight.weight)
        nn.init.xavier_uniform_(self.bent.weight)

    def forward(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        """Row by row."""
        straight = self.straight(rows)
        normed: Tensor = self.norm(straight + self.bent(nn.functional.gelu(straight)))
        return normed


class Projector(nn.Module):
    """A token for the clip's mean and one per window, all through the same layer.

    Args:
        layers: Encoder layers read, the last so many (stem included).
        dim: Encoder width.
        out: Decoder width.
        pool: Encoder states of a window.
        residual: `Residual` in place of one linear layer with bias.
    """

    def __init__(self, layers: int, dim: int, out: int, pool: int, *, residual: bool) -> None:
        super().__init__()
        self._pool = pool
        self.gates = nn.Parameter(torch.zeros(layers))
        self.project = ResidualProjection(layers * dim, out) if residual else nn.Linear(layers * dim, out)

    def kept(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read rows dim"]:
        """Mean, then windows."""
        pooled = pool_states(layers[-len(self.gates) :], self._pool)
        return torch.cat([pooled[:, :1], pooled[:, 2:]], 1)

    def tokens(self, states: int) -> int:
        """Of a clip of so many encoder states."""
        return 1 - (-states // self._pool)

    def forward(self, heard: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Embeddings of some clips."""
        if not heard:
            return []
        rows = [concat_weighted_layers(clip.float(), clip[:, :1].float(), self.gates) for clip in heard]
        return list(self.project(torch.cat(rows)).split([len(row) for row in rows]))


def concat_weighted_layers(
    heard: Float[Tensor, "layers rows dim"], of_clip: Float[Tensor, "layers 1 dim"], gates: Float[Tensor, "*layers"]
) -> Float[Tensor, "rows features"]:
    """Layers brought to unit variance (that of `of_clip`, a row for the whole clip), weighted by the gates (all 1 at
    the start) and laid side by side."""
    level = of_clip.std(-1, keepdim=True, correction=0) + 1e-6
    weights = torch.softmax(gates, 0) * len(gates)
    return rearrange(heard / level * weights[:, None, None], "layers rows dim -> rows (layers dim)")


@torch.no_grad()
def ridge_init(
    connector: LayerMix,
    heard: Sequence[Tensor],
    targets: Sequence[Float[Tensor, "clips out"]],
    leads: Float[Tensor, "leads lead out"],
    *,
    strength: float = 2.0,
) -> list[float]:
    """Set a connector to the ridge regression from what is heard to target embeddings.

    Args:
        connector: Changed in place; `targets[0]` also starts the frame tokens.
        heard: Pooled states per clip.
        targets: One matrix per summary token; rows of NaN are clips without that label.
        leads: Embeddings of the words that stand before each summary token and before the frames.
        strength: Ridge penalty in units of the mean feature variance.
    Returns:
        Share of the targets' variance that each summary token explains on the clips given.
    """
    connector.leads.copy_(leads)
    rows = [connector.mixed(clip) for clip in heard]
    features = torch.stack([row[:2].flatten() for row in rows]).double()
    explained = []
    rank = connector.summary.shape[1]
    squeeze = connector.squeeze.weight.unflatten(0, (len(connector.summary), rank))
    for token, target in enumerate(targets):
        known = ~target.isnan().any(1)
        weight, bias, share = _ridge(features[known], target[known].double(), strength)
        explained.append(share)
        # The best rank-r map on these clips: project the fitted values on their leading directions.
        _, _, right = torch.linalg.svd(
            features[known] @ weight - (features[known] @ weight).mean(0), full_matrices=False
        )
        basis = right[:rank]
        squeeze[token, : len(basis)] = (weight @ basis.T).T.to(squeeze)
        squeeze[token, len(basis) :] = 0
        connector.summary[token, : len(basis)] = basis.to(connector.summary)
        connector.summary_bias[token] = bias.to(connector.summary_bias)
    picks = [
        (clip, row)
        for clip in range(len(rows))
        for row in range(2, len(rows[clip]), 3)
        if not targets[0][clip].isnan().any()
    ]
    frame_features = torch.stack([rows[clip][row] for clip, row in picks]).double()
    weight, bias, _ = _ridge(frame_features, torch.stack([targets[0][clip] for clip, _ in picks]).double(), strength)
    connector.frames.weight.copy_(weight.T)
    connector.frames.bias.copy_(bias)
    return explained


def _ridge(features: Tensor, target: Tensor, strength: float) -> tuple[Tensor, Tensor, float]:
    """Weight (features, out), bias and explained share of a ridge regression, in the smaller of its two forms."""
    mean, level = features.mean(0), target.mean(0)
    x, y = features - mean, target - level
    penalty = strength * float(x.square().mean()) * min(len(x), x.shape[1]) ** 0.5
    if len(x) <= x.shape[1]:
        gram = x @ x.T
        weight = x.T @ torch.linalg.solve(gram + penalty * torch.eye(len(x), dtype=x.dtype), y)
    else:
        gram = x.T @ x
        weight = torch.linalg.solve(gram + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    share = 1 - float((x @ weight - y).square().sum() / y.square().sum().clamp_min(1e-12))
    return weight, level - mean @ weight, share
