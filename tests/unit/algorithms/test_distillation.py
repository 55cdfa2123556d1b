"""Divergences by hand, and properties that hold for all distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earwise.algorithms.distillation import generalized_jsd, gkd_loss
from earwise.errors import ConfigError


def rows(*probabilities: tuple[float, ...]) -> torch.Tensor:
    """Scores whose softmax has the given probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)),
        (1.0, 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)),
        (
            0.25,
            0.25 * (0.8 * math.log(0.8 / 0.575) + 0.2 * math.log(0.2 / 0.425))
            + 0.75 * (0.5 * math.log(0.5 / 0.575) + 0.5 * math.log(0.5 / 0.425)),
        ),
    ],
    ids=["forward-kl", "reverse-kl", "quarter"],
)
def test_two_tokens_by_hand(beta: float, expected: float) -> None:
    """The student says 50:50, the teacher 80:20; the mixture at 0.25 is 57.5:42.5."""
    value = generalized_jsd(rows((0.5, 0.5)), rows((0.8, 0.2)), beta=beta)
    assert float(value) == pytest.approx(expected, rel=1e-9)


def test_temperature_flattens_both_distributions() -> None:
    """At temperature 2 the odds 16:1 and 1:4 become 4:1 and 1:2."""
    hot = generalized_jsd(rows((16 / 17, 1 / 17)), rows((0.2, 0.8)), temperature=2.0)
    assert float(hot) == pytest.approx(float(generalized_jsd(rows((0.8, 0.2)), rows((1 / 3, 2 / 3)))), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.lists(st.floats(-20, 20), min_size=4, max_size=4), min_size=2, max_size=2),
    beta=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99)),
)
def test_divergence_is_never_negative_and_symmetric_in_roles(scores: list[list[float]], beta: float) -> None:
    student, teacher = torch.tensor(scores, dtype=torch.float64)[:, None]
    value = float(generalized_jsd(student, teacher, beta=beta))
    assert value >= -1e-9 and math.isfinite(value)
    assert value == pytest.approx(float(generalized_jsd(teacher, student, beta=1 - beta)), abs=1e-8)
    assert float(generalized_jsd(student, student, beta=beta)) == pytest.approx(0, abs=1e-9)


def test_padding_of_any_value_adds_nothing() -> None:
    values = [[1.0, 3.0, math.inf], [5.0, math.nan, 0.0]]
    divergences = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    output = gkd_loss(divergences, mask, num_items=6)
    output.loss.backward()
    assert float(output.loss.detach()) == 1.5 and output.metrics["divergence"] == 3.0
    assert divergences.grad is not None and divergences.grad.tolist() == [[1 / 6, 1 / 6, 0], [1 / 6, 0, 0]]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"beta 1.5 is not between 0"):
        generalized_jsd(rows((0.5, 0.5)), rows((0.5, 0.5)), beta=1.5)
    with pytest.raises(ValueError, match="temperature is 0"):
        generalized_jsd(rows((0.5, 0.5)), rows((0.5, 0.5)), temperature=0)
    with pytest.raises(ValueError, match="num_items is 0"):
        gkd_loss(torch.ones(1, 1), torch.ones(1, 1).bool(), num_items=0)
