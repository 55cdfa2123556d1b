"""Losses: pure tensor functions on log-probabilities of answer tokens. They never know about audio, models or forests.

Every stage hands over `logprobs` and a `loss_mask` of one shape (batch, seq): row i is one completion (or target),
token t of it was drawn or written after everything before it. The shift between logits and labels is made where the
log-probabilities are gathered, not here.

Every mean names its denominator. A batch that is split over gradient accumulation gives the same gradient as the whole
if the counts of the whole batch are passed (`denominator`, `num_items`, `num_sequences`, `num_pairs`) and the losses
are added up; under data parallelism, where gradients are averaged over processes, pass the count of the whole batch
divided by the processes.

Sources: R1-AQA (xiaomi-research/r1-aqa@5d24f31, papers/r1-aqa.md section 5); names and later variants as in TRL 1.16.
Deviations: 1. advantages are computed in float64, so a flat group gives 0 and not rounding noise over 1e-4; 2. cispo
has no default for `epsilon_high`, because the clip's own 0.2 would scale every token down; 3. `loss_type="gspo"` is
short for grpo with sequence-level ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from earwise.errors import ConfigError

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"]
Scale = Literal["group", "batch", "none"]
Level = Literal["token", "sequence"]
PreferenceKind = Literal["sigmoid", "robust", "ipo"]
Number = float | int

STD_EPSILON = 1e-4
"""Added to the standard deviation of a group's rewards (R1-AQA's code and TRL)."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar to minimise, and plain numbers to log (means over this call's tokens or rows)."""

    loss: Float[Tensor, ""]
    metrics: dict[str, float]


def completion_mask(ids: Int[Tensor, "batch seq"], eos: int | Sequence[int]) -> Bool[Tensor, "batch seq"]:
    """True up to and including the first end token of each row; rows without one are True throughout.

    >>> completion_mask(torch.tensor([[5, 2, 2], [2, 5, 5], [5, 5, 5]]), 2).int().tolist()
    [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    """
    ends = torch.as_tensor([eos] if isinstance(eos, int) else list(eos), device=ids.device, dtype=ids.dtype)
    is_end = torch.isin(ids, ends).int()
    return (is_end.cumsum(dim=1) - is_end) == 0


def kl_k3(logprobs: Float[Tensor, "batch seq"], ref_logprobs: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Per-token estimate of KL(policy || reference) in nats: exp(d) - d - 1 with d = ref - policy; never negative."""
    difference = ref_logprobs - logprobs
    return torch.exp(difference) - difference - 1


def sft_loss(
    logprobs: Float[Tensor, "batch seq"], loss_mask: Bool[Tensor, "batch seq"], *, denominator: Number | None = None
) -> LossOutput:
    """Mean negative log-probability per target token.

    Args:
        logprobs: Natural-log probability of each target token (nats).
        loss_mask: True where a token is a target.
        denominator: Number of target tokens in the whole batch when this is a part of it; None: those of this call.
    Returns:
        Loss, and metrics `nll` (mean over this call's own targets, nats) and `tokens`.
    Raises:
        ValueError: if shapes differ, or there is no target and no denominator, or the denominator is not positive.

    >>> sft_loss(torch.tensor([[-1.0, -3.0]]), torch.tensor([[True, False]])).loss.item()
    1.0
    """
    _same_shape(loss_mask, logprobs=logprobs)
    total = -_keep(logprobs, loss_mask).sum()
    tokens = int(loss_mask.sum())
    if denominator is None and tokens == 0:
        raise ValueError("loss_mask has no True: nothing to learn from; check the spans of the targets")
    loss = total / _positive("denominator", tokens if denominator is None else denominator)
    return LossOutput(loss, {"nll": float(total.detach()) / max(tokens, 1), "tokens": float(tokens)})


def group_advantages(
    rewards: Float[Tensor, " batch"],  # type: ignore[name-defined]  # mypy reads one axis name as a forward reference
    group: int | Int[Tensor, " batch"],  # type: ignore[name-defined]
    *,
    scale: Scale = "group",
) -> Float[Tensor, " batch"]:  # type: ignore[name-defined]
    """How much better each completion is than the mean of its group.

    Args:
        rewards: One value per completion.
        group: Size of consecutive groups, or one group number per completion (in any order).
        scale: Divide by the standard deviation (n - 1) plus 1e-4 of the "group" or of the whole "batch", or by nothing.
    Returns:
        Advantages that sum to zero in each group, same dtype and device as `rewards`. A group of one gets 0.
    Raises:
        ValueError: if the batch is not whole groups, or a reward is not finite.
        ConfigError: if `scale` is unknown.

    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), 2, scale="none").tolist()
    [0.5, -0.5, 0.0, 0.0]

    Source: papers/r1-aqa.md section 5; `scale` as TRL's `scale_rewards`.
    """
    if scale not in get_args(Scale):
        raise ConfigError(f"scale {scale!r} is none of {', '.join(get_args(Scale))}")
    values = rewards.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"rewards hold a value that is not finite: {values.tolist()}")
    if isinstance(group, int):
        if group < 1 or len(values) % group:
            raise ValueError(f"{len(values)} rewards are not whole groups of {group}")
        index = torch.arange(len(values)) // group
    else:
        if group.shape != rewards.shape:
            raise ValueError(f"group has shape {tuple(group.shape)}, rewards {tuple(rewards.shape)}")
        index = torch.unique(group.cpu(), return_inverse=True)[1]
    counts = torch.bincount(index).clamp(min=1).double()
    means = torch.zeros_like(counts).index_add(0, index, values) / counts
    advantages = values - means[index]
    if scale == "group":
        squares = torch.zeros_like(counts).index_add(0, index, advantages**2)
        advantages = advantages / ((squares / (counts - 1).clamp(min=1)).sqrt()[index] + STD_EPSILON)
    elif scale == "batch":
        spread = values.std() if len(values) > 1 else torch.zeros((), dtype=torch.float64)
        advantages = advantages / (spread + STD_EPSILON)
    return advantages.to(rewards.device, rewards.dtype)


def grpo_loss(
    logprobs: Float[Tensor, "batch seq"],
    old_logprobs: Float[Tensor, "batch seq"] | None,
    ref_logprobs: Float[Tensor, "batch seq"] | None,
    advantages: Float[Tensor, " batch"],  # type: ignore[name-defined]
    loss_mask: Bool[Tensor, "batch seq"],
    *,
    loss_type: LossType = "grpo",
    beta: Number = 0.0,
    epsilon: Number = 0.2,
    epsilon_high: Number | None = None,
    delta: Number | None = None,
    importance_sampling_level: Level = "token",
    max_completion_length: int | None = None,
    num_items: Number | None = None,
    num_sequences: Number | None = None,
) -> LossOutput:
    """Policy-gradient loss over completion tokens, with the KL to the reference added per token.

    Per token: -min(ratio * A, clip(ratio) * A) + beta * KL, for cispo -min(ratio, epsilon_high) * A * logprob with no
    gradient through the ratio. The tokens are then averaged as `loss_type` says:

    | loss_type | sum over | divided by |
    |---|---|---|
    | grpo, gspo | means of each sequence over its tokens | `num_sequences` (R1-AQA's published loss) |
    | bnpo | tokens of this call | tokens of this call, times this call's share of `num_sequences` |
    | dr_grpo | tokens | `num_sequences` * `max_completion_length` |
    | dapo, cispo | tokens | `num_items` |

    Args:
        logprobs: Natural-log probability of each sampled token under the current policy (nats).
        old_logprobs: The same when it was sampled; None: the policy has not moved since (ratio 1, never clipped).
        ref_logprobs: The same under the frozen reference; needed unless `beta` is 0.
        advantages: One value per completion, centred in its group.
        loss_mask: True where the policy sampled a token that counts. A row without True adds nothing but keeps its
            place in `num_sequences` (a truncated completion that is masked).
        loss_type: How tokens are averaged, TRL's names.
        beta: Weight of the KL.
        epsilon: The ratio is clipped below at 1 - epsilon.
        epsilon_high: ... and above at 1 + epsilon_high (default: epsilon); for cispo the largest ratio itself, needed.
        delta: Upper bound of the unclipped ratio (two-sided clipping); None: no bound.
        importance_sampling_level: One ratio per "token", or one per "sequence" (GSPO): the exponent is the mean over
            its tokens.
        max_completion_length: Constant length of dr_grpo.
        num_items: Counted tokens of the whole batch when this is a part of it; default: of this call.
        num_sequences: Completions of the whole batch when this is a part of it; default: of this call.
    Returns:
        Loss, and metrics `kl` (when there is a reference), `ratio_mean`, `clip_low`, `clip_high`, `clip_frac` (shares
        of tokens).
    Raises:
        ValueError: if shapes differ, or `beta` is not 0 without a reference.
        ConfigError: if an option is unknown or missing.

    >>> half = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> grpo_loss(half, None, None, torch.tensor([1.0, -1.0]), mask).loss.item()
    0.0
    >>> round(grpo_loss(half, None, None, torch.tensor([1.0, -1.0]), mask, loss_type="dapo").loss.item(), 4)
    -0.3333

    Source: DeepSeekMath (arXiv 2402.03300) eq. 3, Dr. GRPO (2503.20783), DAPO (2503.14476), CISPO (2506.13585), GSPO
    (2507.18071).
    """
    if loss_type not in get_args(LossType):
        raise ConfigError(f"loss_type {loss_type!r} is none of {', '.join(get_args(LossType))}")
    if importance_sampling_level not in get_args(Level):
        raise ConfigError(
            f"importance_sampling_level {importance_sampling_level!r} is none of {', '.join(get_args(Level))}"
        )
    if loss_type == "cispo" and epsilon_high is None:
        raise ConfigError("loss_type 'cispo' needs epsilon_high, the largest ratio it keeps (5.0 is usual)")
    if loss_type == "dr_grpo" and max_completion_length is None:
        raise ConfigError("loss_type 'dr_grpo' needs max_completion_length, its constant denominator")
    _same_shape(loss_mask, logprobs=logprobs, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs)
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)}, logprobs {tuple(logprobs.shape)}; one a row"
        )
    if beta != 0.0 and ref_logprobs is None:
        raise ValueError(f"beta is {beta} but there are no ref_logprobs; compute them or set beta to 0")

    policy = _keep(logprobs, loss_mask)
    old = policy.detach() if old_logprobs is None else _keep(old_logprobs, loss_mask)
    lengths = loss_mask.sum(dim=1).clamp(min=1)
    log_ratio = policy - old
    if importance_sampling_level == "sequence" or loss_type == "gspo":
        log_ratio = (log_ratio.sum(dim=1) / lengths)[:, None].expand_as(policy)
    ratio = torch.exp(log_ratio)
    high = epsilon if epsilon_high is None else epsilon_high
    per_token, clipped_low, clipped_high = _surrogate(
        policy,
        ratio,
        advantages[:, None].to(policy.dtype),
        cispo=loss_type == "cispo",
        low=epsilon,
        high=high,
        delta=delta,
    )
    metrics = {
        "ratio_mean": ratio,
        "clip_low": clipped_low,
        "clip_high": clipped_high,
        "clip_frac": clipped_low | clipped_high,
    }
    if ref_logprobs is not None:
        metrics["kl"] = kl_k3(policy, _keep(ref_logprobs, loss_mask))
        if beta != 0.0:
            per_token = per_token + beta * metrics["kl"]

    per_token = per_token * loss_mask
    rows = float(len(policy))
    sequences = _positive("num_sequences", rows if num_sequences is None else num_sequences)
    if loss_type in ("grpo", "gspo"):
        loss = (per_token.sum(dim=1) / lengths).sum() / sequences
    elif loss_type == "bnpo":
        loss = per_token.sum() / loss_mask.sum().clamp(min=1) * (rows / sequences)
    elif loss_type == "dr_grpo":
        loss = per_token.sum() / (sequences * _positive("max_completion_length", max_completion_length or 0))
    else:
        items = loss_mask.sum().clamp(min=1) if num_items is None else _positive("num_items", num_items)
        loss = per_token.sum() / items
    return LossOutput(loss, _token_means(metrics, loss_mask))


def dpo_loss(
    chosen_logprobs: Float[Tensor, "batch chosen_seq"],
    rejected_logprobs: Float[Tensor, "batch rejected_seq"],
    ref_chosen_logprobs: Float[Tensor, "batch chosen_seq"],
    ref_rejected_logprobs: Float[Tensor, "batch rejected_seq"],
    chosen_mask: Bool[Tensor, "batch chosen_seq"],
    rejected_mask: Bool[Tensor, "batch rejected_seq"],
    *,
    beta: Number = 0.1,
    kind: PreferenceKind = "sigmoid",
    length_normalised: bool = False,
    label_smoothing: Number = 0.0,
    num_pairs: Number | None = None,
) -> LossOutput:
    """Preference loss on pairs: the policy should raise the chosen answer over the rejected one, against the reference.

    Args:
        chosen_logprobs: Per-token log-probabilities of the chosen answers under the policy (nats).
        rejected_logprobs: The same of the rejected answers.
        ref_chosen_logprobs: Chosen, under the frozen reference.
        ref_rejected_logprobs: Rejected, under the frozen reference.
        chosen_mask: True on answer tokens.
        rejected_mask: True on answer tokens.
        beta: Weight of the margin; for ipo the margin's target is 1 / (2 beta).
        kind: "sigmoid" is DPO, -log sigmoid(beta * margin); "ipo" is (margin - 1 / (2 beta))^2; "robust" is DPO whose
            expectation does not change when a share of `label_smoothing` of the pairs is the wrong way round.
        length_normalised: Divide each answer's log-ratio by its tokens (TRL's `sigmoid_norm`, and what TRL calls
            `ipo`).
        label_smoothing: Share of pairs taken to be the wrong way round, below 0.5. With "sigmoid" (conservative DPO)
            the two directions are mixed by it; "ipo" takes none.
        num_pairs: Pairs of the whole batch when this is a part of it; default: of this call.
    Returns:
        Loss, and metrics `margin` (nats), `chosen_reward`, `rejected_reward` (beta * log-ratio), `accuracy` (margin >
        0).
    Raises:
        ValueError: if shapes differ, a row has no answer token, or `beta` is not positive.
        ConfigError: if `kind` is unknown, or `label_smoothing` does not suit it.
    Source: DPO (arXiv 2305.18290) eq. 7, IPO (2310.12036) eq. 17, robust DPO (2403.00409) eq. 12; all as in TRL 1.16.
    """
    if kind not in get_args(PreferenceKind):
        raise ConfigError(f"kind {kind!r} is none of {', '.join(get_args(PreferenceKind))}")
    if not 0 <= label_smoothing < 0.5 or (kind == "ipo" and label_smoothing):
        raise ConfigError(f"label_smoothing {label_smoothing} with {kind!r}: it is 0 to below 0.5, and 0 for ipo")
    _positive("beta", beta)
    _same_shape(chosen_mask, chosen_logprobs=chosen_logprobs, ref_chosen_logprobs=ref_chosen_logprobs)
    _same_shape(rejected_mask, rejected_logprobs=rejected_logprobs, ref_rejected_logprobs=ref_rejected_logprobs)
    if len(chosen_mask) != len(rejected_mask):
        raise ValueError(f"{len(chosen_mask)} chosen answers for {len(rejected_mask)} rejected ones")

    def log_ratio(policy: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        tokens = mask.sum(dim=1)
        if not bool(tokens.all()):
            raise ValueError(f"answer {int((tokens == 0).nonzero()[0])} of the batch has no True in its mask")
        total = (_keep(policy, mask) - _keep(reference, mask)).sum(dim=1)
        return total / tokens if length_normalised else total

    chosen = log_ratio(chosen_logprobs, ref_chosen_logprobs, chosen_mask)
    rejected = log_ratio(rejected_logprobs, ref_rejected_logprobs, rejected_mask)
    margin = chosen - rejected
    if kind == "ipo":
        per_pair = (margin - 1 / (2 * beta)) ** 2
    else:
        right, wrong = -functional.logsigmoid(beta * margin), -functional.logsigmoid(-beta * margin)
        smooth = label_smoothing if kind == "sigmoid" else -label_smoothing
        per_pair = ((1 - label_smoothing) * right + smooth * wrong) / (1 - label_smoothing + smooth)
    loss = per_pair.sum() / _positive("num_pairs", len(margin) if num_pairs is None else num_pairs)
    values = torch.stack([margin, beta * chosen, beta * rejected, (margin > 0).to(margin.dtype)]).detach().mean(dim=1)
    return LossOutput(
        loss, dict(zip(("margin", "chosen_reward", "rejected_reward", "accuracy"), values.tolist(), strict=True))
    )


def _surrogate(
    policy: Tensor, ratio: Tensor, advantages: Tensor, *, cispo: bool, low: float, high: float, delta: Number | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The policy term of each token (to minimise), and where the clip took its gradient below and above."""
    if cispo:
        clipped_high = (ratio > high) & (advantages > 0)
        return -ratio.clamp(max=high).detach() * advantages * policy, torch.zeros_like(clipped_high), clipped_high
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    per_token = -torch.minimum(bounded * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    return per_token, (bounded < 1 - low) & (advantages < 0), (bounded > 1 + high) & (advantages > 0)


def _keep(values: Tensor, mask: Tensor) -> Tensor:
    """Zero where masked, so that padding of any value, infinities included, adds nothing to loss or gradient."""
    return values.masked_fill(~mask, 0.0)


def _token_means(values: dict[str, Tensor], mask: Tensor) -> dict[str, float]:
    """Means over the tokens that count, in one transfer from the device."""
    tokens = mask.sum().clamp(min=1)
    means = torch.stack([(value.detach() * mask).sum() / tokens for value in values.values()])
    return dict(zip(values, means.tolist(), strict=True))


def _positive(name: str, value: Number) -> Number:
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0")
    return value


def _same_shape(mask: Tensor, **tensors: Tensor | None) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask has dtype {mask.dtype}; masks are boolean, True = counts")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, its mask {tuple(mask.shape)}; they must be equal"
            )
