"""The factor for completions that older weights sampled: by hand, at its cap, and in the gradient."""

import pytest
import torch

from earwise.algorithms.policy_loss import grpo_loss

MASK = torch.tensor([[True, True], [True, False]])
ADVANTAGES = torch.tensor([1.0, -1.0])
POLICY = torch.tensor([[0.5, 0.25], [0.5, 0.5]]).log()


def test_each_token_is_weighted_by_the_ratio_of_policy_and_sampler() -> None:
    sampler = torch.tensor([[0.25, 0.5], [0.5, 0.1]]).log()  # ratios 2 and 0.5; 1 (and a masked token)
    out = grpo_loss(POLICY, None, None, ADVANTAGES, MASK, loss_type="dapo", sampling_logprobs=sampler)
    assert out.loss.item() == pytest.approx(-(2 + 0.5 - 1) / 3)
    assert out.metrics["sampling_ratio"] == pytest.approx((2 + 0.5 + 1) / 3)
    assert out.metrics["sampling_capped"] == 0 and out.metrics["ratio_mean"] == 1


def test_the_ratio_is_capped_and_counted() -> None:
    sampler = torch.tensor([[0.1, 0.5], [0.5, 0.5]]).log()  # ratio 5 above the cap of 3
    out = grpo_loss(
        POLICY, None, None, ADVANTAGES, MASK, loss_type="dapo", sampling_logprobs=sampler, importance_sampling_cap=3.0
    )
    assert out.loss.item() == pytest.approx(-(3 + 0.5 - 1) / 3)
    assert out.metrics["sampling_capped"] == pytest.approx(1 / 3)


def test_the_gradient_of_a_token_has_the_same_factor() -> None:
    sampler = torch.tensor([[0.25, 0.5], [0.5, 0.5]]).log()
    gradients = []
    for sampling_logprobs in (None, sampler):
        policy = POLICY.clone().requires_grad_()
        grpo_loss(
            policy, None, None, ADVANTAGES, MASK, loss_type="dapo", sampling_logprobs=sampling_logprobs
        ).loss.backward()
        gradients.append(policy.grad)
    plain, weighted = gradients
    assert plain is not None and weighted is not None
    assert torch.allclose(weighted, plain * torch.tensor([[2.0, 0.5], [1.0, 1.0]]))


def test_the_divergence_from_the_reference_is_not_weighted() -> None:
    reference, sampler = POLICY - 0.3, POLICY - 1.0
    flat = torch.zeros(2)
    plain = grpo_loss(POLICY, None, reference, flat, MASK, beta=0.1)
    weighted = grpo_loss(POLICY, None, reference, flat, MASK, beta=0.1, sampling_logprobs=sampler)
    assert weighted.loss.item() == pytest.approx(plain.loss.item()) and plain.loss.item() > 0


def test_a_sampler_with_the_same_weights_changes_nothing() -> None:
    plain = grpo_loss(POLICY, None, None, ADVANTAGES, MASK)
    same = grpo_loss(POLICY, None, None, ADVANTAGES, MASK, sampling_logprobs=POLICY)
    assert torch.equal(plain.loss, same.loss)
