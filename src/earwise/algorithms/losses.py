"""Supervised and preference losses: pure tensor functions on the log-probabilities of completion tokens.

They know nothing of audio, models or forests. Every function takes `logprobs` and a boolean `loss_mask` of the same
shape (batch, seq): row i is one completion (or supervised reply), and token t of it was predicted from everything
before it. Labels are shifted where log-probabilities are gathered (`forest.target_logprobs`), never here.

Every mean names its denominator. A batch that is split into micro-batches gives the same gradient as the whole batch if
the counts of the whole batch are passed (`denominator`, `num_items`, `num_sequences`, `num_pairs`) and the losses are
added up. Where gradients are averaged over processes, pass the count of the whole batch divided by the number of
processes.

This file holds what all losses share, supervised fine-tuning and DPO; `policy_loss.py` holds advantages and GRPO.
Argument names are those of TRL 1.16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from earwise.errors import ConfigError

DpoLossType = Literal["sigmoid", "robust", "ipo"]
Number = float | int


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss function returns.

    Attributes:
        loss: Scalar to minimise, with gradients.
        metrics: Plain numbers to log, each a mean over the tokens or rows of this call.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, float]


def completion_mask(ids: Int[Tensor, "batch seq"], eos: int | Sequence[int]) -> Bool[Tensor, "batch seq"]:
    """Mask of the tokens that belong to each completion: up to and including the first end token.

    Args:
        ids: Token ids of the completions, padded on the right.
        eos: Id, or ids, of the end token.
    Returns:
        True on completion tokens; a row without an end token is True throughout.

    >>> completion_mask(torch.tensor([[5, 2, 2], [2, 5, 5], [5, 5, 5]]), 2).int().tolist()
    [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    """
    ends = torch.as_tensor([eos] if isinstance(eos, int) else list(eos), device=ids.device, dtype=ids.dtype)
    is_end = torch.isin(ids, ends).int()
    return (is_end.cumsum(dim=1) - is_end) == 0


def sft_loss(
    logprobs: Float[Tensor, "batch seq"], loss_mask: Bool[Tensor, "batch seq"], *, denominator: Number | None = None
) -> LossOutput:
    """Mean negative log-probability per target token.

    Args:
        logprobs: Natural-log probability of each target token (nats).
        loss_mask: True where a token is a target.
        denominator: Number of target tokens in the whole batch, when this call sees a part of it. None: the number of
            target tokens of this call.
    Returns:
        Loss, and metrics `nll` (mean over this call's own targets, nats) and `tokens`.
    Raises:
        ValueError: if shapes differ, or there is no target and no denominator, or the denominator is not positive.

    >>> sft_loss(torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, False]])).loss.item()
    1.0
    """
    require_same_shape(loss_mask, logprobs=logprobs)
    total = -zero_masked(logprobs, loss_mask).sum()
    tokens = int(loss_mask.sum())
    if denominator is None and tokens == 0:
        raise ValueError(
            "loss_mask has no True: there is no token to train on; check which tokens of the replies are trained"
        )
    loss = total / require_positive("denominator", tokens if denominator is None else denominator)
    return LossOutput(loss, {"nll": float(total.detach()) / max(tokens, 1), "tokens": float(tokens)})


def dpo_loss(
    chosen_logprobs: Float[Tensor, "batch chosen_seq"],
    rejected_logprobs: Float[Tensor, "batch rejected_seq"],
    ref_chosen_logprobs: Float[Tensor, "batch chosen_seq"],
    ref_rejected_logprobs: Float[Tensor, "batch rejected_seq"],
    chosen_mask: Bool[Tensor, "batch chosen_seq"],
    rejected_mask: Bool[Tensor, "batch rejected_seq"],
    *,
    beta: Number = 0.1,
    loss_type: DpoLossType = "sigmoid",
    length_normalised: bool = False,
    label_smoothing: Number = 0.0,
    num_pairs: Number | None = None,
) -> LossOutput:
    """Preference loss: raise the chosen reply over the rejected one, measured against the reference.

    The margin of a pair is log(policy / reference) of the chosen reply minus that of the rejected one.

    Args:
        chosen_logprobs: Per-token log-probabilities of the chosen replies under the policy (nats).
        rejected_logprobs: The same for the rejected replies.
        ref_chosen_logprobs: Log-probabilities of the chosen replies under the frozen reference.
        ref_rejected_logprobs: Log-probabilities of the rejected replies under the frozen reference.
        chosen_mask: True on the tokens of the chosen replies.
        rejected_mask: True on the tokens of the rejected replies.
        beta: Weight of the margin; for `ipo` the margin's target is 1 / (2 beta).
        loss_type: "sigmoid" is DPO, -log sigmoid(beta * margin); "ipo" is (margin - 1 / (2 beta))^2; "robust" is DPO
            whose expectation stays the same when a share `label_smoothing` of the pairs has its labels swapped.
        length_normalised: Divide the log-ratio of each reply by its number of tokens (TRL's `sigmoid_norm`, and what
            TRL does for `ipo`).
        label_smoothing: Share of the pairs assumed to have swapped labels, in [0, 0.5). With "sigmoid" (conservative
            DPO) it mixes the losses of both directions; with "ipo" it must be 0.
        num_pairs: Pairs of the whole batch, when this call sees a part of it. None: those of this call.
    Returns:
        The loss, and the metrics `margin` (nats), `chosen_reward`, `rejected_reward` (beta * log-ratio) and `accuracy`
        (share of pairs whose margin is positive).
    Raises:
        ValueError: if shapes differ, a reply has no token, or `beta` is not positive.
        ConfigError: if `loss_type` is unknown, or `label_smoothing` does not suit it.
    Source: DPO (arXiv:2305.18290) eq. 7, IPO (arXiv:2310.12036) eq. 17, robust DPO (arXiv:2403.00409) eq. 12; all as in
    TRL 1.16.
    """
    if loss_type not in get_args(DpoLossType):
        raise ConfigError(f"loss_type {loss_type!r} is none of {', '.join(get_args(DpoLossType))}")
    if not 0 <= label_smoothing < 0.5 or (loss_type == "ipo" and label_smoothing):
        raise ConfigError(
            f"label_smoothing {label_smoothing} with {loss_type!r}: it must be in [0, 0.5), and 0 for ipo"
        )
    require_positive("beta", beta)
    require_same_shape(chosen_mask, chosen_logprobs=chosen_logprobs, ref_chosen_logprobs=ref_chosen_logprobs)
    require_same_shape(rejected_mask, rejected_logprobs=rejected_logprobs, ref_rejected_logprobs=ref_rejected_logprobs)
    if len(chosen_mask) != len(rejected_mask):
        raise ValueError(f"{len(chosen_mask)} chosen replies but {len(rejected_mask)} rejected ones; give pairs")

    def log_ratio(policy: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        tokens = mask.sum(dim=1)
        if not bool(tokens.all()):
            raise ValueError(f"reply {int((tokens == 0).nonzero()[0])} of the batch has no True in its mask")
        total = (zero_masked(policy, mask) - zero_masked(reference, mask)).sum(dim=1)
        return total / tokens if length_normalised else total

    chosen = log_ratio(chosen_logprobs, ref_chosen_logprobs, chosen_mask)
    rejected = log_ratio(rejected_logprobs, ref_rejected_logprobs, rejected_mask)
    margin = chosen - rejected
    if loss_type == "ipo":
        per_pair = (margin - 1 / (2 * beta)) ** 2
    else:
        as_labelled = -functional.logsigmoid(beta * margin)
        swapped = -functional.logsigmoid(-beta * margin)
        weight = label_smoothing if loss_type == "sigmoid" else -label_smoothing
        per_pair = ((1 - label_smoothing) * as_labelled + weight * swapped) / (1 - label_smoothing + weight)
    loss = per_pair.sum() / require_positive("num_pairs", len(margin) if num_pairs is None else num_pairs)
    values = torch.stack([margin, beta * chosen, beta * rejected, (margin > 0).to(margin.dtype)]).detach().mean(dim=1)
    return LossOutput(
        loss, dict(zip(("margin", "chosen_reward", "rejected_reward", "accuracy"), values.tolist(), strict=True))
    )


def zero_masked(values: Tensor, mask: Tensor) -> Tensor:
    """Set masked values to 0, so that padding of any value (infinities included) adds nothing to loss or gradient."""
    return values.masked_fill(~mask, 0.0)


def require_positive(name: str, value: Number) -> Number:
    """Return `value`; a ValueError naming it if it is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0")
    return value


def require_same_shape(mask: Tensor, **tensors: Tensor | None) -> None:
    """Raise a ValueError unless the mask is boolean and every given tensor has its shape."""
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask has dtype {mask.dtype}; masks must be boolean, True where a token counts")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, its mask {tuple(mask.shape)}; they must be equal"
            )
