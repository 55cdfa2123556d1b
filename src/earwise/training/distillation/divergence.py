"""The divergence of a student from a teacher at every trained token of a packed forest.

Both models run over a forest of their own: the same completions stand behind the student's prompt and behind the
teacher's, which may be longer or written in another chat template. A token is therefore identified by its branch and
its number, and compared where each forest predicts it, at its *source*. Tokens that share both sources, as those of
completions that begin alike, are compared once.

The teacher's hidden states are kept, not its scores: both output heads are applied to a few positions at a time, so
that the scores of a large vocabulary never exist for a whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from earwise.algorithms.distillation import generalized_jsd
from earwise.errors import DataError
from earwise.forest import Forest

CHUNK = 128
"""Positions whose scores over the vocabulary exist at the same time, for student and teacher."""


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """What a student is compared with in one forward pass.

    Attributes:
        hidden: The teacher's states, before its output head, at the position of each comparison.
        student_sources: Index of each comparison's position among the packed tokens of the student's forest.
        token_comparisons: For each branch and trained token the number of its comparison, padded with 0.
        logits: The teacher's output head.
        beta: See `generalized_jsd`.
        temperature: See `generalized_jsd`.
    """

    hidden: Float[Tensor, "comparisons teacher_dim"]
    student_sources: Int[Tensor, "*comparisons"]
    token_comparisons: Int[Tensor, "branches tokens"]
    logits: Callable[[Tensor], Tensor]
    beta: float
    temperature: float


def match_forests(
    student: Forest, teacher: Forest
) -> tuple[Int[Tensor, "*comparisons"], Int[Tensor, "*comparisons"], Int[Tensor, "branches tokens"]]:
    """Find where two forests predict the same trained tokens.

    Args:
        student: The student's packed trees.
        teacher: The teacher's, with the same branches in the same order.
    Returns:
        The distinct pairs of positions, as indices of packed tokens of the student's and of the teacher's forest, and
        for each branch and trained token the number of its pair, padded with 0.
    Raises:
        DataError: if the branches have other numbers of trained tokens.
    """
    mask = student.loss_mask
    if mask.shape != teacher.loss_mask.shape or not torch.equal(mask, teacher.loss_mask):
        raise DataError("student and teacher were given other completions: their branches differ in length")
    pairs = torch.stack([_token_sources(student)[mask], _token_sources(teacher)[mask]], 1)
    distinct, numbers = torch.unique(pairs, dim=0, return_inverse=True)
    token_pairs = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
    token_pairs[mask] = numbers
    return distinct[:, 0], distinct[:, 1], token_pairs


def _token_sources(forest: Forest) -> Int[Tensor, "branches tokens"]:
    """For each branch and trained token the packed index of the token that predicts it."""
    return forest.source_indices[forest.target_sources[forest.branch_targets]]


def token_divergences(
    hidden: Float[Tensor, "seq dim"], forest: Forest, targets: TeacherTargets, logits: Callable[[Tensor], Tensor]
) -> Float[Tensor, "branches tokens"]:
    """Divergence of the student from the teacher where each trained token was predicted, in nats.

    Where one model has more output scores than the other (padding of its embeddings, or tokens that only it knows), the
    scores of the tokens that both have are compared.

    Args:
        hidden: The student's states of the packed tokens, final norm applied.
        forest: The student's packed trees.
        targets: The teacher's side.
        logits: The student's output head.
    Returns:
        One row per branch, 0 at padding. Recomputed in the backward pass where there are several chunks.
    """
    student_states = hidden[targets.student_sources]

    def chunk_divergences(states: Tensor, teacher_states: Tensor) -> Tensor:
        student_scores = logits(states).float()
        with torch.no_grad():
            teacher_scores = targets.logits(teacher_states).float()
        width = min(student_scores.shape[-1], teacher_scores.shape[-1])
        return generalized_jsd(
            student_scores[:, :width], teacher_scores[:, :width], beta=targets.beta, temperature=targets.temperature
        )

    count = len(student_states)
    values = []
    for start in range(0, count, CHUNK):
        inputs = (student_states[start : start + CHUNK], targets.hidden[start : start + CHUNK])
        if count > CHUNK and torch.is_grad_enabled():
            values.append(checkpoint(chunk_divergences, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            values.append(chunk_divergences(*inputs))
    if not values:
        return hidden.new_zeros(forest.loss_mask.shape)
    return torch.cat(values)[targets.token_comparisons].masked_fill(~forest.loss_mask, 0.0)
