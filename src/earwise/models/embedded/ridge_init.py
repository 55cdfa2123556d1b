"""Closed-form initialisation of the embedded model's connector: ridge regression from encoder states to words.

Before gradient training, the tokens of `LayerMix` are set to the least-squares fit of the decoder's own embeddings of
a clip's labels. `training.stages.ridge` collects states and labels; this file solves the regression.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from earwise.models.parts.projector import LayerMix


@torch.no_grad()
def ridge_init(
    connector: LayerMix,
    clips: Sequence[Tensor],
    targets: Sequence[Float[Tensor, "clips out"]],
    leads: Float[Tensor, "leads lead out"],
    *,
    strength: float = 2.0,
) -> list[float]:
    """Set a connector to the ridge regression from encoder states to target embeddings, in place.

    Args:
        connector: The connector.
        clips: `LayerMix.reduce_states` of each clip.
        targets: One matrix per summary token, with a target embedding per clip; a row of NaN is a clip without that
            label. The first matrix is also the target of the frame tokens.
        leads: Embeddings of the words before each summary token, and before the frame tokens.
        strength: Ridge penalty in units of the mean feature variance.
    Returns:
        Share of the targets' variance that each summary token explains, on these clips.
    """
    connector.leads.copy_(leads)
    rows = [connector.mix_layers(clip) for clip in clips]
    features = torch.stack([row[:2].flatten() for row in rows]).double()
    explained = [
        _fit_summary_token(connector, token, features, target, strength) for token, target in enumerate(targets)
    ]
    # Every third window of every labelled clip, which is enough for the fit.
    windows = [
        (clip, row)
        for clip in range(len(rows))
        for row in range(2, len(rows[clip]), 3)
        if not targets[0][clip].isnan().any()
    ]
    frame_features = torch.stack([rows[clip][row] for clip, row in windows]).double()
    frame_targets = torch.stack([targets[0][clip] for clip, _ in windows]).double()
    weight, bias, _ = _ridge(frame_features, frame_targets, strength)
    connector.frames.weight.copy_(weight.T)
    connector.frames.bias.copy_(bias)
    return explained


def _fit_summary_token(connector: LayerMix, token: int, features: Tensor, target: Tensor, strength: float) -> float:
    """Set one summary token to its ridge regression, within the bottleneck's rank; returns the explained share."""
    rank = connector.summary.shape[1]
    squeeze = connector.squeeze.weight.unflatten(0, (len(connector.summary), rank))
    labelled = ~target.isnan().any(1)
    weight, bias, share = _ridge(features[labelled], target[labelled].double(), strength)
    # The best map of that rank on these clips: project the fitted values on their leading directions.
    fitted = features[labelled] @ weight
    _, _, right = torch.linalg.svd(fitted - fitted.mean(0), full_matrices=False)
    basis = right[:rank]
    squeeze[token, : len(basis)] = (weight @ basis.T).T.to(squeeze)
    squeeze[token, len(basis) :] = 0
    connector.summary[token, : len(basis)] = basis.to(connector.summary)
    connector.summary_bias[token] = bias.to(connector.summary_bias)
    return share


def _ridge(features: Tensor, target: Tensor, strength: float) -> tuple[Tensor, Tensor, float]:
    """Ridge regression, solved in the smaller of its primal and dual forms.

    Args:
        features: `(examples, features)`.
        target: `(examples, out)`.
        strength: See `ridge_init`.
    Returns:
        Weight `(features, out)`, bias `(out,)`, and the share of the target's variance that is explained.
    """
    feature_mean, target_mean = features.mean(0), target.mean(0)
    x, y = features - feature_mean, target - target_mean
    penalty = strength * float(x.square().mean()) * min(len(x), x.shape[1]) ** 0.5
    if len(x) <= x.shape[1]:
        gram = x @ x.T
        weight = x.T @ torch.linalg.solve(gram + penalty * torch.eye(len(x), dtype=x.dtype), y)
    else:
        gram = x.T @ x
        weight = torch.linalg.solve(gram + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    share = 1 - float((x @ weight - y).square().sum() / y.square().sum().clamp_min(1e-12))
    return weight, target_mean - feature_mean @ weight, share
