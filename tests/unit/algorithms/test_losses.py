"""losses.py: numbers worked out by hand; a wrong sign, mask, shift or denominator fails here."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earwise.algorithms.losses import LossOutput, completion_mask, dpo_loss, sft_loss
from earwise.algorithms.policy_loss import group_advantages, grpo_loss, kl_k3
from earwise.errors import ConfigError

LN2 = math.log(2)
TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo")
WRONG = (ValueError, TypeError)  # TypeError: from jaxtyping, where its import hook is on


def logs(rows: list[list[float]], *, grad: bool = True) -> Tensor:
    """Log-probabilities from probabilities, float64."""
    return torch.tensor(rows, dtype=torch.float64).log().requires_grad_(grad)


def gradient(output: LossOutput, *leaves: Tensor) -> list[list[list[float]]]:
    return [found.tolist() for found in torch.autograd.grad(output.loss, leaves)]


def near(rows: list[list[float]]) -> list[object]:
    return [pytest.approx(row, abs=1e-9) for row in rows]


PROBS = [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]
MASK = torch.tensor([[True, True, True], [True, False, False]])
ADVANTAGES = torch.tensor([1.0, -2.0], dtype=torch.float64)
ON_POLICY = {
    # d loss / d logprob = -A * ratio (here 1) / denominator on kept tokens
    "grpo": (-(1.0 - 2.0) / 2, [[-1 / 6] * 3, [1.0, 0, 0]]),
    "gspo": (0.5, [[-1 / 6] * 3, [1.0, 0, 0]]),
    "bnpo": (-(3 - 2) / 4, [[-1 / 4] * 3, [2 / 4, 0, 0]]),
    "dapo": (-1 / 4, [[-1 / 4] * 3, [2 / 4, 0, 0]]),
    "dr_grpo": (-1 / 20, [[-1 / 20] * 3, [2 / 20, 0, 0]]),
    "cispo": (-(1 * 3 * -LN2 + -2 * -2 * LN2) / 4, [[-1 / 4] * 3, [2 / 4, 0, 0]]),
}


@pytest.mark.parametrize("loss_type", TYPES)
def test_on_policy(loss_type: str) -> None:
    value, slopes = ON_POLICY[loss_type]
    for old in (None, logs(PROBS, grad=False)):
        policy = logs(PROBS)
        output = grpo_loss(
            policy, old, None, ADVANTAGES, MASK, loss_type=loss_type, epsilon_high=3.0, max_completion_length=10
        )
        assert output.loss.item() == pytest.approx(value)
        assert gradient(output, policy)[0] == near(slopes)
        assert output.metrics["ratio_mean"] == pytest.approx(1.0) and output.metrics["clip_frac"] == 0.0


def test_kl_is_k3_towards_the_reference() -> None:
    policy, reference = logs([[0.5, 0.25]]), logs([[0.25, 0.5]], grad=False)
    expected = [0.5 - math.log(0.5) - 1, 2 - math.log(2) - 1]
    assert kl_k3(policy, reference).tolist()[0] == pytest.approx(expected)
    both = torch.tensor([[True, True]])
    output = grpo_loss(policy, None, reference, torch.zeros(1, dtype=torch.float64), both, beta=0.1)
    assert output.loss.item() == pytest.approx(0.1 * sum(expected) / 2)
    assert output.metrics["kl"] == pytest.approx(sum(expected) / 2)
    # d/dp (exp(r - p) - (r - p) - 1) = 1 - exp(r - p): up where the policy is above the reference
    assert gradient(output, policy)[0] == near([[0.1 * (1 - 0.5) / 2, 0.1 * (1 - 2) / 2]])
    silent = grpo_loss(policy, None, reference, torch.zeros(1, dtype=torch.float64), both)
    assert silent.loss.item() == 0.0 and silent.metrics["kl"] == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize(
    ("advantage", "ratio", "value", "slope"),
    [
        (1.0, 1.1, -1.1, -1.1),
        (1.0, 1.5, -1.2, 0.0),
        (1.0, 0.5, -0.5, -0.5),
        (-1.0, 1.5, 1.5, 1.5),
        (-1.0, 0.5, 0.8, 0.0),
        (-1.0, 0.9, 0.9, 0.9),
    ],
)
def test_clipping(advantage: float, ratio: float, value: float, slope: float) -> None:
    policy, old = logs([[0.2 * ratio]]), logs([[0.2]], grad=False)
    output = grpo_loss(policy, old, None, torch.tensor([advantage], dtype=torch.float64), torch.tensor([[True]]))
    assert output.loss.item() == pytest.approx(value)
    assert gradient(output, policy)[0] == near([[slope]])
    assert output.metrics["clip_high"] == float(advantage > 0 and ratio > 1.2)
    assert output.metrics["clip_low"] == float(advantage < 0 and ratio < 0.8)
    assert output.metrics["clip_frac"] == float(slope == 0.0)


def test_clipping_above_and_delta() -> None:
    policy, old, one = logs([[0.3]]), logs([[0.1]], grad=False), torch.tensor([[True]])
    up, down = torch.tensor([1.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    assert grpo_loss(policy, old, None, up, one, epsilon_high=0.5).loss.item() == pytest.approx(-1.5)
    assert grpo_loss(policy, old, None, down, one, epsilon_high=0.5).loss.item() == pytest.approx(3.0)
    assert grpo_loss(policy, old, None, down, one, delta=2.0).loss.item() == pytest.approx(2.0)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    policy, old = logs([[0.3, 0.1]]), logs([[0.1, 0.1]], grad=False)
    up, both = torch.tensor([2.0], dtype=torch.float64), torch.tensor([[True, True]])
    output = grpo_loss(policy, old, None, up, both, loss_type="cispo", epsilon_high=1.5)
    assert output.loss.item() == pytest.approx(-(1.5 * 2 * math.log(0.3) + 2 * math.log(0.1)) / 2)
    assert gradient(output, policy)[0] == near([[-1.5, -1.0]])
    assert output.metrics["clip_frac"] == 0.5


def test_sequence_ratio_is_the_geometric_mean() -> None:
    policy, old = logs([[0.4, 0.1, 0.9]]), logs([[0.1, 0.1, 0.1]], grad=False)
    up, mask = torch.tensor([1.0], dtype=torch.float64), torch.tensor([[True, True, False]])
    for options in ({"loss_type": "gspo"}, {"importance_sampling_level": "sequence"}):
        output = grpo_loss(policy, old, None, up, mask, epsilon_high=5.0, **options)
        assert output.loss.item() == pytest.approx(-2.0)  # sqrt(4 * 1)
        assert gradient(output, policy)[0] == near([[-1.0, -1.0, 0.0]])
        assert output.metrics["ratio_mean"] == pytest.approx(2.0)


@pytest.mark.parametrize("loss_type", TYPES)
def test_padding_of_any_value_changes_nothing(loss_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    kept = [torch.rand(2, 3, generator=generator).log() for _ in range(3)]
    options = {"loss_type": loss_type, "beta": 0.1, "epsilon_high": 0.3, "max_completion_length": 8}

    def run(padding: float) -> tuple[float, Tensor]:
        wide = [torch.cat([values, torch.full((2, 2), padding)], dim=1) for values in kept]
        policy = wide[0].requires_grad_(True)
        mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
        output = grpo_loss(policy, wide[1], wide[2], torch.tensor([1.0, -1.0]), mask, **options)
        return output.loss.item(), torch.autograd.grad(output.loss, policy)[0]

    value, slopes = run(0.0)
    for padding in (-50.0, float("-inf"), float("nan")):
        other, other_slopes = run(padding)
        assert other == value and torch.equal(other_slopes, slopes)
    assert slopes[:, :3].abs().min() > 0 or loss_type != "cispo"
    assert not slopes[:, 3:].any()


@pytest.mark.parametrize("loss_type", TYPES)
def test_accumulation_equals_the_whole(loss_type: str) -> None:
    """Uneven parts with the whole's counts give the whole's loss and gradient (bnpo: equal lengths, by definition)."""
    generator = torch.Generator().manual_seed(1)
    policy, old, reference = (torch.rand(7, 5, generator=generator).double().log() for _ in range(3))
    policy.requires_grad_(True)
    lengths = torch.full((7,), 4) if loss_type == "bnpo" else torch.tensor([5, 1, 3, 2, 5, 4, 0])
    mask = torch.arange(5) < lengths[:, None]
    advantages = torch.randn(7, generator=generator).double()
    options = {"loss_type": loss_type, "beta": 0.1, "epsilon_high": 0.5, "max_completion_length": 6}
    whole = grpo_loss(policy, old, reference, advantages, mask, **options)
    parts = torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
        tensors = (policy[part], old[part], reference[part], advantages[part], mask[part])
        counts = {"num_items": float(mask.sum()), "num_sequences": 7.0}
        parts = parts + grpo_loss(*tensors, **options, **counts).loss
    assert parts.item() == pytest.approx(whole.loss.item(), abs=1e-12)
    expected, found = (torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (whole.loss, parts))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_masked_out_row_keeps_its_place() -> None:
    policy = logs([[0.5], [0.5]])
    mask = torch.tensor([[True], [False]])
    output = grpo_loss(policy, None, None, torch.tensor([3.0, 3.0], dtype=torch.float64), mask)
    assert output.loss.item() == pytest.approx(-1.5)
    nothing = grpo_loss(policy, None, None, ADVANTAGES, torch.zeros(2, 1, dtype=torch.bool), loss_type="dapo")
    assert nothing.loss.item() == 0.0


def test_grpo_refuses() -> None:
    policy, flat = logs(PROBS), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(WRONG, match=r"beta|type"):
        grpo_loss(policy, None, None, flat, MASK, beta=0.04)
    with pytest.raises((ConfigError, TypeError)):
        grpo_loss(policy, None, None, flat, MASK, loss_type="ppo")
    with pytest.raises((ConfigError, TypeError)):
        grpo_loss(policy, None, None, flat, MASK, importance_sampling_level="word")
    with pytest.raises(ConfigError, match="epsilon_high"):
        grpo_loss(policy, None, None, flat, MASK, loss_type="cispo")
    with pytest.raises(ConfigError, match="max_completion_length"):
        grpo_loss(policy, None, None, flat, MASK, loss_type="dr_grpo")
    with pytest.raises(WRONG):
        grpo_loss(policy, None, None, flat, MASK[:, :2])
    with pytest.raises(WRONG):
        grpo_loss(policy, policy[:, :2], None, flat, MASK)
    with pytest.raises(WRONG):
        grpo_loss(policy, None, None, flat, MASK.int())
    with pytest.raises(WRONG):
        grpo_loss(policy, None, None, flat[:1], MASK)
    with pytest.raises(ValueError, match="num_items is 0"):
        grpo_loss(policy, None, None, flat, MASK, loss_type="dapo", num_items=0.0)


def test_completion_mask() -> None:
    ids = torch.tensor([[1, 7, 7, 2], [7, 1, 1, 1], [1, 2, 3, 4], [1, 1, 1, 9]])
    assert completion_mask(ids, 7).int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert completion_mask(ids, [2, 7]).int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert completion_mask(ids, 7).dtype == torch.bool


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    grouped = group_advantages(rewards, 4)
    assert grouped.tolist() == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3 + [0.0] * 4)
    assert group_advantages(rewards, 4, scale_rewards="none").tolist() == pytest.approx(
        [0.75] + [-0.25] * 3 + [0.0] * 4
    )
    spread = rewards.std().item() + 1e-4
    assert group_advantages(rewards, 4, scale_rewards="batch").tolist() == pytest.approx(
        [0.75 / spread] + [-0.25 / spread] * 3 + [0.0] * 4
    )
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    numbers = torch.tensor([9, 3, 9, 3, 9, 3, 9, 3])
    assert group_advantages(rewards[order], numbers).tolist() == pytest.approx(grouped[order].tolist())


def test_flat_groups_are_exactly_zero_in_float32() -> None:
    rewards = torch.full((8,), 1.1)
    assert group_advantages(rewards, 8).abs().max() < 1e-9
    assert group_advantages(torch.tensor([0.3]), 1).tolist() == [0.0]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=1, max_size=5),
    scale=st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_sum_to_zero(values: list[list[float]], scale: str) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    advantages = group_advantages(rewards.flatten(), 3, scale_rewards=scale).view_as(rewards)
    assert advantages.sum(dim=1).abs().max() < 1e-9
    best, worst = rewards.argmax(dim=1), rewards.argmin(dim=1)
    assert bool((advantages.gather(1, best[:, None]) >= advantages.gather(1, worst[:, None])).all())


def test_advantages_refuse() -> None:
    with pytest.raises(ValueError, match="5 rewards are not whole groups of 4"):
        group_advantages(torch.zeros(5), 4)
    with pytest.raises(ValueError, match="not finite"):
        group_advantages(torch.tensor([1.0, math.nan]), 2)
    with pytest.raises(WRONG):
        group_advantages(torch.zeros(4), torch.zeros(3, dtype=torch.long))
    with pytest.raises((ConfigError, TypeError)):
        group_advantages(torch.zeros(4), 4, scale_rewards="all")


def test_sft() -> None:
    policy = logs([[0.5, 0.25, 0.9], [0.125, 0.9, 0.9]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    output = sft_loss(policy, mask)
    assert output.loss.item() == pytest.approx((1 + 2 + 3) * LN2 / 3)
    assert gradient(output, policy)[0] == near([[-1 / 3, -1 / 3, 0], [-1 / 3, 0, 0]])
    assert output.metrics == {"nll": pytest.approx(2 * LN2), "tokens": 3.0}
    part = sft_loss(policy[:1], mask[:1], denominator=3.0).loss + sft_loss(policy[1:], mask[1:], denominator=3.0).loss
    assert part.item() == pytest.approx(output.loss.item())
    assert sft_loss(policy, torch.zeros_like(mask), denominator=3.0).loss.item() == 0.0
    with pytest.raises(ValueError, match="no True"):
        sft_loss(policy, torch.zeros_like(mask))
    with pytest.raises(WRONG):
        sft_loss(policy, mask[:1])
    with pytest.raises(ValueError, match="denominator is 0"):
        sft_loss(policy, mask, denominator=0.0)


def dpo(
    policy: list[list[list[float]]], reference: list[list[list[float]]], **options: object
) -> tuple[LossOutput, list[Tensor]]:
    """Chosen and rejected probabilities; a probability of 1 is a masked place."""
    leaves = [logs(rows) for rows in policy]
    masks = [torch.tensor(rows) < 1 for rows in policy]
    return dpo_loss(*leaves, *(logs(rows, grad=False) for rows in reference), *masks, **options), leaves


def test_dpo() -> None:
    policy, reference = [[[0.5, 0.5]], [[0.25, 1.0, 1.0]]], [[[0.25, 0.25]], [[0.5, 0.3, 0.3]]]
    output, leaves = dpo(policy, reference, beta=0.5)  # log-ratios 2 ln2 and -ln2, margin 3 ln2
    sigmoid = 1 / (1 + math.exp(-0.5 * 3 * LN2))
    assert output.loss.item() == pytest.approx(-math.log(sigmoid))
    slope = 0.5 * (1 - sigmoid)
    up, down = gradient(output, *leaves)
    assert up == near([[-slope, -slope]]) and down == near([[slope, 0, 0]])
    assert output.metrics == {
        "margin": pytest.approx(3 * LN2),
        "chosen_reward": pytest.approx(LN2),
        "rejected_reward": pytest.approx(-0.5 * LN2),
        "accuracy": 1.0,
    }
    assert dpo(policy, reference, beta=0.5, num_pairs=4.0)[0].loss.item() == pytest.approx(-math.log(sigmoid) / 4)
    normalised = dpo(policy, reference, beta=0.5, length_normalised=True)[0]  # ln2 and -ln2
    assert normalised.loss.item() == pytest.approx(math.log1p(math.exp(-LN2)))
    ipo = dpo(policy, reference, beta=0.5, loss_type="ipo")[0]
    assert ipo.loss.item() == pytest.approx((3 * LN2 - 1) ** 2)
    swapped = dpo(policy[::-1], reference[::-1], beta=0.5)[0]
    assert swapped.loss.item() > output.loss.item() and swapped.metrics["accuracy"] == 0.0


def test_dpo_refuses() -> None:
    rows = [[[0.5]], [[0.5]]]
    with pytest.raises(ValueError, match="reply 0 of the batch"):
        dpo([[[1.0]], [[0.5]]], rows)
    with pytest.raises(ValueError, match="beta is 0"):
        dpo(rows, rows, beta=0.0)
    with pytest.raises((ConfigError, TypeError)):
        dpo(rows, rows, loss_type="hinge")
    with pytest.raises(WRONG):
        dpo([[[0.5], [0.5]], [[0.5]]], [[[0.5], [0.5]], [[0.5]]])
