"""Our distillation loss and its gradients equal those of TRL's GKDTrainer, also when the completions are a tree."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from earwise.algorithms.distillation import generalized_jsd, gkd_loss
from earwise.forest import TokenPath, build_tree, pack
from earwise.training.distillation.divergence import CHUNK, TeacherTargets, match_forests, token_divergences

pytest.importorskip("trl")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL warns of everything in its experimental part
    from trl.experimental.gkd import GKDTrainer

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
VOCAB = 31


def random_logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_loss_and_gradient_equal_those_of_trl(beta: float, temperature: float) -> None:
    student, teacher = random_logits(0, 4, 7).requires_grad_(), random_logits(1, 4, 7)
    mask = torch.arange(7)[None, :] < torch.tensor([7, 1, 4, 0])[:, None]
    labels = torch.where(mask, 5, -100)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=temperature)
    (their_gradient,) = torch.autograd.grad(theirs, student)
    divergences = generalized_jsd(
        student.flatten(0, 1), teacher.flatten(0, 1), beta=beta, temperature=temperature
    ).reshape(4, 7)
    ours = gkd_loss(divergences, mask)
    (our_gradient,) = torch.autograd.grad(ours.loss, student)
    torch.testing.assert_close(ours.loss, theirs, **TOLERANCE)
    torch.testing.assert_close(our_gradient, their_gradient, **TOLERANCE)
    assert float(ours.loss.detach()) > 0 and math.isclose(
        ours.metrics["divergence"], float(theirs.detach()), rel_tol=1e-5
    )


def test_micro_batches_add_up_to_trl_with_its_count_of_items() -> None:
    student, teacher = random_logits(2, 3, 5), random_logits(3, 3, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, torch.where(mask, 1, -100), num_items_in_batch=9)
    ours = sum(
        float(gkd_loss(generalized_jsd(student[row], teacher[row])[None], mask[row : row + 1], num_items=9).loss)
        for row in range(3)
    )
    assert ours == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("length", [6, 2 * CHUNK], ids=["one-chunk", "several-chunks"])
def test_completions_in_a_tree_equal_trl_on_the_sequences_one_by_one(length: int) -> None:
    """Six completions that begin alike, behind a prompt of the student and a longer one of the teacher; states are made
    of the tokens before each position, so that equal beginnings have equal states, as in a decoder."""
    generator = torch.Generator().manual_seed(4)
    completions = torch.randint(0, 3, (6, length), generator=generator).tolist()
    completions[1], completions[2] = completions[0], completions[0][: length // 2]
    heads = torch.randn(2, VOCAB, 8, generator=generator)
    prompts = ((7, 8), (9, 9, 9))

    def path(prompt: tuple[int, ...], ids: list[int]) -> TokenPath:
        size = len(prompt) + len(ids)
        trained = (False,) * len(prompt) + (True,) * len(ids)
        return TokenPath((*prompt, *ids), trained, (-1,) * size)

    def states(ids: list[int]) -> Tensor:
        steps = torch.tensor([[math.sin(token + 0.1 * dim + 1) for dim in range(8)] for token in ids])
        return torch.cumsum(steps, 0) / (1 + torch.arange(len(ids)))[:, None]

    paths = [[path(prompt, ids) for ids in completions] for prompt in prompts]
    forests = [pack([build_tree(part)]) for part in paths]
    hidden = []
    for forest, part in zip(forests, paths, strict=True):
        packed = torch.zeros(len(forest), 8)
        for number, whole in enumerate(part):
            row_sources = forest.source_indices[forest.target_sources[forest.branch_targets[number]]]
            count = int(forest.loss_mask[number].sum())
            first = len(whole.ids) - count
            packed[row_sources[:count]] = states(list(whole.ids))[first - 1 : -1]
        hidden.append(packed.requires_grad_())
    student_head, teacher_head = (lambda rows, head=head: rows @ head.T for head in heads)
    student_sources, teacher_sources, comparisons = match_forests(*forests)
    assert len(student_sources) < sum(map(len, completions)), "equal beginnings are compared once"
    targets = TeacherTargets(hidden[1].detach()[teacher_sources], student_sources, comparisons, teacher_head, 0.3, 1.0)
    divergences = token_divergences(hidden[0], forests[0], targets, student_head)
    ours = gkd_loss(divergences, forests[0].loss_mask).loss

    total, items = torch.tensor(0.0), 0
    for ids in completions:
        logits = [
            states([*prompt, *ids])[len(prompt) - 1 : -1] @ head.T for prompt, head in zip(prompts, heads, strict=True)
        ]
        total = total + GKDTrainer.generalized_jsd_loss(logits[0][None], logits[1][None], beta=0.3, reduction="sum")
        items += len(ids)
    torch.testing.assert_close(ours, total / items, **TOLERANCE)
    (gradient,) = torch.autograd.grad(ours, hidden[0])
    assert gradient.isfinite().all() and float(gradient.abs().sum()) > 0
