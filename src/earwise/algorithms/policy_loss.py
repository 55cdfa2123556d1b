"""Policy-gradient losses: group-relative advantages and the clipped GRPO loss with its later variants.

Pure tensor functions on the log-probabilities of completion tokens; see `losses.py` for masks and denominators.

Sources: R1-AQA (arXiv:2503.11197; released code xiaomi-research/r1-aqa@5d24f31); argument names and later variants as
in TRL 1.16. Deviations: 1. advantages are computed in float64, so that a group of equal rewards gives exactly 0 and not
rounding noise divided by 1e-4; 2. `cispo` has no default for `epsilon_high`, because the usual 0.2 would scale every
token down; 3. `loss_type="gspo"` is short for `grpo` with sequence-level ratios.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from earwise.algorithms.losses import LossOutput, Number, require_positive, require_same_shape, zero_masked
from earwise.errors import ConfigError

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"]
ScaleRewards = Literal["group", "batch", "none"]
ImportanceSamplingLevel = Literal["token", "sequence"]
KlEstimator = Literal["k1", "k2", "k3"]

STD_EPSILON = 1e-4
"""Added to the standard deviation of a group's rewards (R1-AQA's code and TRL)."""


def kl_estimate(
    logprobs: Float[Tensor, "batch seq"], ref_logprobs: Float[Tensor, "batch seq"], estimator: KlEstimator
) -> Float[Tensor, "batch seq"]:
    """Per-token estimate of KL(policy || reference) from sampled tokens, with d = reference - policy.

    | name | estimate | as a loss |
    |---|---|---|
    | k1 | -d | its gradient is 0 in expectation, so it only adds noise; to be logged |
    | k2 | d^2 / 2 | the gradient of the KL on tokens of the policy itself |
    | k3 | exp(d) - d - 1 | that of GRPO, TRL and R1-AQA |

    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    if estimator == "k1":
        return logprobs - ref_logprobs
    return 0.5 * (ref_logprobs - logprobs) ** 2 if estimator == "k2" else kl_k3(logprobs, ref_logprobs)


def kl_k3(logprobs: Float[Tensor, "batch seq"], ref_logprobs: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Per-token estimate of KL(policy || reference), the k3 estimator: exp(d) - d - 1 with d = ref - policy.

    Args:
        logprobs: Natural-log probability of each token under the policy.
        ref_logprobs: The same under the reference.
    Returns:
        Estimates in nats, never negative.
    Source: DeepSeekMath (arXiv:2402.03300), eq. 4.
    """
    difference = ref_logprobs - logprobs
    return torch.exp(difference) - difference - 1


def group_advantages(
    rewards: Float[Tensor, " batch"],  # type: ignore[name-defined]  # mypy reads one axis name as a forward reference
    group: int | Int[Tensor, " batch"],  # type: ignore[name-defined]
    *,
    scale_rewards: ScaleRewards = "group",
) -> Float[Tensor, " batch"]:  # type: ignore[name-defined]
    """Advantage of each completion: its reward minus the mean reward of its group, optionally scaled.

    Args:
        rewards: One reward per completion.
        group: Size of consecutive groups, or the group number of each completion (groups may then be interleaved).
        scale_rewards: What the difference is divided by: the standard deviation (n - 1, plus 1e-4) of the "group" or of
            the whole "batch", or nothing ("none").
    Returns:
        Advantages that sum to zero in each group, with the dtype and device of `rewards`. A group of one gets 0.
    Raises:
        ValueError: if the batch does not consist of whole groups, or a reward is not finite.
        ConfigError: if `scale_rewards` is unknown.

    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), 2, scale_rewards="none").tolist()
    [0.5, -0.5, 0.0, 0.0]

    Source: DeepSeekMath (arXiv:2402.03300), section 4.1.2; R1-AQA's released trainer; `scale_rewards` as in TRL.
    """
    if scale_rewards not in get_args(ScaleRewards):
        raise ConfigError(f"scale_rewards {scale_rewards!r} is none of {', '.join(get_args(ScaleRewards))}")
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
    if scale_rewards == "group":
        squares = torch.zeros_like(counts).index_add(0, index, advantages**2)
        advantages = advantages / ((squares / (counts - 1).clamp(min=1)).sqrt()[index] + STD_EPSILON)
    elif scale_rewards == "batch":
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
    kl_estimator: KlEstimator = "k3",
    epsilon: Number = 0.2,
    epsilon_high: Number | None = None,
    delta: Number | None = None,
    importance_sampling_level: ImportanceSamplingLevel = "token",
    max_completion_length: int | None = None,
    num_items: Number | None = None,
    num_sequences: Number | None = None,
    sampling_logprobs: Float[Tensor, "batch seq"] | None = None,
    importance_sampling_cap: Number = 2.0,
) -> LossOutput:
    """Clipped policy-gradient loss over completion tokens, plus the KL to the reference per token.

    The loss of a token is -min(ratio * A, clip(ratio) * A) + beta * KL, where A is the advantage of its completion. For
    `cispo` it is -min(ratio, epsilon_high) * A * logprob, without a gradient through the ratio. Tokens are then
    averaged according to `loss_type`:

    | loss_type | sum over | divided by |
    |---|---|---|
    | grpo, gspo | means of each sequence over its tokens | `num_sequences` (R1-AQA's published loss) |
    | bnpo | tokens of this call | tokens of this call, times this call's share of `num_sequences` |
    | dr_grpo | tokens | `num_sequences` * `max_completion_length` |
    | dapo, cispo | tokens | `num_items` |

    Args:
        logprobs: Natural-log probability of each sampled token under the current policy (nats).
        old_logprobs: Log-probability of the same tokens when they were sampled. None: the policy has not been updated
            since, so that the ratio is 1 and never clipped.
        ref_logprobs: Log-probability of the same tokens under the frozen reference; required unless `beta` is 0.
        advantages: One value per completion, centred in its group (`group_advantages`).
        loss_mask: True on sampled tokens that count. A row without any True (a truncated completion that is masked)
            adds nothing to the sum but still counts in `num_sequences`.
        loss_type: How tokens are averaged; the names are TRL's.
        beta: Weight of the KL.
        kl_estimator: How the KL of a token is estimated, see `kl_estimate`.
        epsilon: The ratio is clipped from below at 1 - epsilon.
        epsilon_high: The ratio is clipped from above at 1 + epsilon_high (default: epsilon). For `cispo` it is the
            largest ratio itself and required.
        delta: Upper bound of the unclipped ratio (two-sided clipping). None: no bound.
        importance_sampling_level: "token" for one ratio per token, "sequence" for one ratio per completion (GSPO),
            whose logarithm is the mean over the completion's tokens.
        max_completion_length: Constant length by which `dr_grpo` divides, in tokens.
        num_items: Counted tokens of the whole batch, when this call sees a part of it. None: those of this call.
        num_sequences: Completions of the whole batch, when this call sees a part of it. None: those of this call.
        sampling_logprobs: Log-probability of the same tokens under the older weights that sampled them, where these
            are not the policy's before the update. The policy term of each token is then multiplied by the probability
            under the policy before the update over that under those weights.
        importance_sampling_cap: Largest value of that factor.
    Returns:
        The loss, and the metrics `kl` (nats, with a reference only), `ratio_mean`, and `clip_low`, `clip_high`,
        `clip_frac` (shares of tokens whose ratio was clipped below, above, or either); with `sampling_logprobs` also
        `sampling_ratio` (mean of the factor before the cap) and `sampling_capped` (share of tokens above the cap).
    Raises:
        ValueError: if shapes differ, or `beta` is not 0 without a reference.
        ConfigError: if an option is unknown or missing.

    >>> half = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> grpo_loss(half, None, None, torch.tensor([1.0, -1.0]), mask).loss.item()
    0.0
    >>> round(grpo_loss(half, None, None, torch.tensor([1.0, -1.0]), mask, loss_type="dapo").loss.item(), 4)
    -0.3333

    Source: DeepSeekMath (arXiv:2402.03300) eq. 3, Dr. GRPO (arXiv:2503.20783), DAPO (arXiv:2503.14476), CISPO
    (arXiv:2506.13585), GSPO (arXiv:2507.18071). The factor for older weights: decoupled PPO (arXiv:2110.00641, used by
    AReaL, arXiv:2505.24298), truncated as in IMPALA (arXiv:1802.01561) and TRL.
    """
    _check_options(loss_type, importance_sampling_level, epsilon_high, max_completion_length)
    if kl_estimator not in get_args(KlEstimator):
        raise ConfigError(f"kl_estimator {kl_estimator!r} is none of {', '.join(get_args(KlEstimator))}")
    require_same_shape(
        loss_mask,
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        sampling_logprobs=sampling_logprobs,
    )
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)}, logprobs {tuple(logprobs.shape)}; give one per row"
        )
    if beta != 0.0 and ref_logprobs is None:
        raise ValueError(f"beta is {beta} but there are no ref_logprobs; compute them or set beta to 0")

    policy = zero_masked(logprobs, loss_mask)
    old = policy.detach() if old_logprobs is None else zero_masked(old_logprobs, loss_mask)
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
    if sampling_logprobs is not None:
        sampling_ratio = torch.exp(old - zero_masked(sampling_logprobs, loss_mask))
        per_token = per_token * sampling_ratio.clamp(max=importance_sampling_cap)
        metrics |= {"sampling_ratio": sampling_ratio, "sampling_capped": sampling_ratio > importance_sampling_cap}
    if ref_logprobs is not None:
        metrics["kl"] = kl_estimate(policy, zero_masked(ref_logprobs, loss_mask), kl_estimator)
        if beta != 0.0:
            per_token = per_token + beta * metrics["kl"]

    loss = _reduce(
        per_token * loss_mask,
        loss_mask,
        loss_type,
        max_completion_length,
        num_items=num_items,
        num_sequences=num_sequences,
    )
    return LossOutput(loss, _token_means(metrics, loss_mask))


def _check_options(
    loss_type: LossType,
    importance_sampling_level: ImportanceSamplingLevel,
    epsilon_high: Number | None,
    max_completion_length: int | None,
) -> None:
    """Raise a ConfigError for an unknown option, or for one that the loss type requires and that is missing."""
    if loss_type not in get_args(LossType):
        raise ConfigError(f"loss_type {loss_type!r} is none of {', '.join(get_args(LossType))}")
    if importance_sampling_level not in get_args(ImportanceSamplingLevel):
        levels = ", ".join(get_args(ImportanceSamplingLevel))
        raise ConfigError(f"importance_sampling_level {importance_sampling_level!r} is none of {levels}")
    if loss_type == "cispo" and epsilon_high is None:
        raise ConfigError("loss_type 'cispo' needs epsilon_high, the largest ratio it keeps (5.0 is usual)")
    if loss_type == "dr_grpo" and max_completion_length is None:
        raise ConfigError("loss_type 'dr_grpo' needs max_completion_length, its constant denominator")


def _surrogate(
    policy: Tensor, ratio: Tensor, advantages: Tensor, *, cispo: bool, low: float, high: float, delta: Number | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Policy term of each token (to minimise), and masks of the tokens that were clipped below and above."""
    if cispo:
        clipped_high = (ratio > high) & (advantages > 0)
        return -ratio.clamp(max=high).detach() * advantages * policy, torch.zeros_like(clipped_high), clipped_high
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    per_token = -torch.minimum(bounded * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    return per_token, (bounded < 1 - low) & (advantages < 0), (bounded > 1 + high) & (advantages > 0)


def _reduce(
    per_token: Tensor,
    loss_mask: Tensor,
    loss_type: LossType,
    max_completion_length: int | None,
    *,
    num_items: Number | None,
    num_sequences: Number | None,
) -> Tensor:
    """Average the masked per-token losses as `loss_type` says; see the table in `grpo_loss`."""
    rows = float(len(per_token))
    sequences = require_positive("num_sequences", rows if num_sequences is None else num_sequences)
    if loss_type in ("grpo", "gspo"):
        return (per_token.sum(dim=1) / loss_mask.sum(dim=1).clamp(min=1)).sum() / sequences
    if loss_type == "bnpo":
        return per_token.sum() / loss_mask.sum().clamp(min=1) * (rows / sequences)
    if loss_type == "dr_grpo":
        return per_token.sum() / (sequences * require_positive("max_completion_length", max_completion_length or 0))
    items = loss_mask.sum().clamp(min=1) if num_items is None else require_positive("num_items", num_items)
    return per_token.sum() / items


def _token_means(values: dict[str, Tensor], mask: Tensor) -> dict[str, float]:
    """Mean of each metric over the tokens in the mask, with one transfer from the device."""
    tokens = mask.sum().clamp(min=1)
    means = torch.stack([(value.detach() * mask).sum() / tokens for value in values.values()])
    return dict(zip(values, means.tolist(), strict=True))
