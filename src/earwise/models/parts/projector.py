"""The embedded model's connector: a learned mix of all encoder layers, one token per 320 ms, and a few summary tokens
per clip.

Sound and music are read best from middle layers, language from the last, so the connector sees them all: layers are
normalised, weighted by learned gates and projected together. Summary tokens see the mean and the deviation over time,
as a linear probe would. `ridge_start` gives both a closed-form start: least squares from encoder states to the
decoder's own word embeddings of the clip's labels. A learned lead stands before every summary token and before the
frames; it starts as words (" Language:"), so that a decoder that has only ever read text finds its way at once.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def pool_states(layers: Float[Tensor, "layers states dim"], pool: int) -> Float[Tensor, "layers rows dim"]:
    """What the connector reads of a clip: mean and deviation over time (2 rows), then the mean of every `pool`
    states."""
    mean = layers.mean(1, keepdim=True)
    deviation = layers.std(1, keepdim=True, correction=0)
    short = -layers.shape[1] % pool
    if short:
        # The last window is the mean of the states that exist, so it is filled up with their own mean.
        tail = layers[:, layers.shape[1] - (pool - short) :].mean(1, keepdim=True)
        layers = torch.cat([layers, tail.expand(-1, short, -1)], 1)
    return torch.cat([mean, deviation, layers.unflatten(1, (-1, pool)).mean(2)], 1)


class LayerMix(nn.Module):
    """Pooled encoder layers -> `summary` tokens and one token per pooled window, in the decoder's width.

    Args:
        layers: Encoder layers read (stem included).
        dim: Encoder width.
        out: Decoder width.
        summary: Number of summary tokens.
        rank: Width of the summary tokens' bottleneck.
        lead: Tokens of each lead.
    """

    def __init__(self, layers: int, dim: int, out: int, summary: int = 4, rank: int = 64, lead: int = 2) -> None:
        super().__init__()
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

    def mixed(self, heard: Float[Tensor, "layers rows dim"]) -> Float[Tensor, "rows features"]:
        """Layers normalised to unit variance, weighted by the gates (all 1 at the start) and laid side by side; row 1
        (deviation) is only scaled."""
        heard = heard.float()
        level = heard[:, :1].std(-1, keepdim=True, correction=0) + 1e-6
        gates = torch.softmax(self.gates, 0) * len(self.gates)
        return rearrange(heard / level * gates[:, None, None], "layers rows dim -> rows (layers dim)")

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


@torch.no_grad()
def ridge_start(
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
