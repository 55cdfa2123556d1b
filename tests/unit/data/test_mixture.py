"""Weights, epochs, shards and states of the mixture."""

from collections import Counter
from itertools import islice

import pytest

from earwise.data.mixture import Mixture
from earwise.errors import ConfigError, DataError
from earwise.types import Example


def source(name, size):
    return [Example(f"{name}{number}", ()) for number in range(size)]


def ids(mixture, count):
    return [example.id for example in islice(mixture, count)]


def test_weights_are_proportions():
    drawn = Counter(name[0] for name in ids(Mixture([(source("a", 5), 3.0), (source("b", 50), 1.0)], seed=0), 8000))
    assert abs(drawn["a"] / 8000 - 0.75) < 0.02


def shares(count=12000, **settings):
    """Share of the draws from each of three sources with 1, 4 and 16 examples and weights 1, 1 and 2."""
    mixture = Mixture([(source("a", 1), 1.0), (source("b", 4), 1.0), (source("c", 16), 2.0)], 5, **settings)
    drawn = Counter(name[0] for name in ids(mixture, count))
    return [drawn[name] / count for name in "abc"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1 / 4, 1 / 4, 2 / 4)),
        ({"weight_by_size": True}, (1 / 37, 4 / 37, 32 / 37)),  # 1 x 1, 1 x 4, 2 x 16
        ({"temperature": 0.5}, (1 / 6, 1 / 6, 4 / 6)),  # squares of the weights
        ({"weight_by_size": True, "temperature": 2.0}, (0.11540, 0.23079, 0.65281)),  # roots: 1, 2, 5.65685 of 8.65685
        ({"weight_by_size": True, "temperature": 1e9}, (1 / 3, 1 / 3, 1 / 3)),
        ({"weight_by_size": True, "temperature": 1e-3}, (0, 0, 1)),  # 32^1000 overflows a float
    ],
)
def test_temperature_and_weights_per_example(settings, expected):
    assert shares(**settings) == pytest.approx(expected, abs=0.015)


def test_default_temperature_keeps_the_stream_and_another_temperature_cannot_resume():
    sources = [(source("a", 7), 3.0), (source("b", 5), 1.0)]
    assert Mixture(sources, 0).state_dict()["weights"] == [3.0, 1.0]
    assert ids(Mixture(sources, 0), 50) == ids(Mixture(sources, 0, temperature=1.0), 50)
    with pytest.raises(DataError, match="saved with weights"):
        Mixture(sources, 0, temperature=2.0).load_state_dict(Mixture(sources, 0).state_dict())
    warm = Mixture(sources, 0, weight_by_size=True, temperature=3.0)
    first = ids(warm, 20)
    again = Mixture(sources, 0, weight_by_size=True, temperature=3.0)
    again.load_state_dict(warm.state_dict())
    assert first + ids(again, 20) == ids(Mixture(sources, 0, weight_by_size=True, temperature=3.0), 40)


def test_every_epoch_visits_each_example_once_in_another_order():
    stream = ids(Mixture([(source("a", 20), 1.0)], seed=0), 40)
    assert sorted(stream[:20]) == sorted(stream[20:]) == sorted(f"a{n}" for n in range(20))
    assert stream[:20] != stream[20:]
    assert stream != ids(Mixture([(source("a", 20), 1.0)], seed=1), 40)


def test_states_are_equal_on_all_ranks_and_another_world_size_can_resume():
    sources = [(source("a", 7), 1.0), (source("b", 5), 2.0)]
    whole = ids(Mixture(sources, 3), 60)
    ranks = [Mixture(sources, 3, rank, 2) for rank in range(2)]
    halves = [ids(mixture, 15) for mixture in ranks]
    assert halves[0] == whole[:30:2] and halves[1] == whole[1:30:2]
    assert ranks[0].state_dict() == ranks[1].state_dict()
    alone = Mixture(sources, 3)
    alone.load_state_dict(ranks[1].state_dict())
    assert ids(alone, 30) == whole[30:] and sum(alone.state_dict()["counts"]) == 60


def test_invalid_settings():
    with pytest.raises(DataError, match="no source"):
        Mixture([], 0)
    with pytest.raises(DataError, match="source 0 of the mixture has no examples"):
        Mixture([([], 1.0)], 0)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="weights must be positive"):
            Mixture([(source("a", 1), weight)], 0)
    with pytest.raises(ConfigError, match=r"rank 2 is outside 0\.\.1"):
        Mixture([(source("a", 1), 1.0)], 0, 2, 2)
    for temperature in (0.0, -2.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"temperature .* must be positive"):
            Mixture([(source("a", 1), 1.0)], 0, temperature=temperature)
    mixture = Mixture([(source("a", 4), 1.0)], 0)
    for changed in (
        Mixture([(source("a", 5), 1.0)], 0),
        Mixture([(source("a", 4), 2.0)], 0),
        Mixture([(source("a", 4), 1.0)], 1),
    ):
        with pytest.raises(DataError, match="data position was saved with"):
            mixture.load_state_dict(changed.state_dict())
    with pytest.raises(DataError, match="damaged"):
        mixture.load_state_dict(mixture.state_dict() | {"counts": None})
