"""Distillation losses: how far a student's distribution over the next token is from a teacher's. Pure functions.

Generalised knowledge distillation compares whole distributions at the tokens that the student (or a data set) has
written, instead of raising the probability of these tokens. Names and values are those of TRL 1.16.

Source: GKD (arXiv:2306.13649), eq. 1 and algorithm 1.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from earwise.algorithms.losses import LossOutput, Number, require_positive, require_same_shape, zero_masked
from earwise.errors import ConfigError


def generalized_jsd(
    student_logits: Float[Tensor, "rows vocab"],
    teacher_logits: Float[Tensor, "rows vocab"],
    *,
    beta: Number = 0.5,
    temperature: Number = 1.0,
) -> Float[Tensor, "*rows"]:
    """Generalised Jensen-Shannon divergence of two distributions over the vocabulary, in nats.

    With the teacher's distribution p, the student's q and their mixture m = beta p + (1 - beta) q, it is
    beta KL(p || m) + (1 - beta) KL(q || m). At the ends it is what remains after division by beta or 1 - beta: KL(p ||
    q) at 0, which covers everything that the teacher may write, and KL(q || p) at 1, which keeps to what it prefers.

    Args:
        student_logits: Scores of the student; gradients flow through them.
        teacher_logits: Scores of the teacher.
        beta: Weight of the teacher in the mixture, in [0, 1].
        temperature: Both distributions are softmaxes of scores that are divided by it.
    Raises:
        ConfigError: if `beta` is not in [0, 1].
        ValueError: if `temperature` is not positive.

    >>> uniform, peaked = torch.zeros(1, 2), torch.tensor([[0.0, -30.0]])
    >>> [round(float(generalized_jsd(uniform, peaked, beta=beta)), 4) for beta in (0, 0.5)]
    [0.6931, 0.2158]

    Source: GKD (arXiv:2306.13649), eq. 1; the ends as in TRL 1.16.
    """
    if not 0 <= beta <= 1:
        raise ConfigError(f"beta {beta} is not between 0 (forward KL) and 1 (reverse KL)")
    require_positive("temperature", temperature)
    student = functional.log_softmax(student_logits / temperature, -1)
    teacher = functional.log_softmax(teacher_logits / temperature, -1)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    weights = torch.tensor([beta, 1 - beta], dtype=student.dtype, device=student.device).log()
    mixture = torch.logaddexp(teacher + weights[0], student + weights[1])
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(logprobs: Float[Tensor, "rows vocab"], other: Float[Tensor, "rows vocab"]) -> Float[Tensor, "*rows"]:
    """KL divergence of each row of `other` from the same row of `logprobs`."""
    return functional.kl_div(other, logprobs, reduction="none", log_target=True).sum(-1)


def gkd_loss(
    divergences: Float[Tensor, "batch seq"], loss_mask: Bool[Tensor, "batch seq"], *, num_items: Number | None = None
) -> LossOutput:
    """Mean divergence per trained token.

    Args:
        divergences: Divergence of student and teacher (nats) where each token was predicted.
        loss_mask: True where a token counts.
        num_items: Number of tokens in the whole batch, when this call sees a part of it. None: those of this call.
    Returns:
        Loss, and the metric `divergence` (mean over this call's own tokens, nats).
    Raises:
        ValueError: if shapes differ, or `num_items` is not positive.

    >>> gkd_loss(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])).loss.item()
    2.0
    """
    require_same_shape(loss_mask, divergences=divergences)
    total = zero_masked(divergences, loss_mask).sum()
    tokens = max(int(loss_mask.sum()), 1)
    loss = total / require_positive("num_items", tokens if num_items is None else num_items)
    return LossOutput(loss, {"divergence": float(total.detach()) / tokens})
