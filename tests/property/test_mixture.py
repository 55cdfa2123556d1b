"""A resumed mixture continues the uninterrupted stream, and the shards of all ranks make up the whole stream."""

import json
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from earwise.data.mixture import Mixture
from earwise.types import Example

SOURCES = st.lists(st.tuples(st.integers(1, 12), st.floats(0.1, 10)), min_size=1, max_size=4)


def build(shape, seed, rank=0, world_size=1):
    sources = [
        ([Example(f"{number}:{index}", ()) for index in range(size)], weight)
        for number, (size, weight) in enumerate(shape)
    ]
    return Mixture(sources, seed, rank, world_size)


def ids(mixture, count):
    return [example.id for example in islice(mixture, count)]


@settings(max_examples=50, deadline=None)
@given(SOURCES, st.integers(0, 99), st.integers(0, 60), st.integers(1, 60), st.integers(1, 3), st.data())
def test_a_resumed_stream_equals_an_uninterrupted_one(shape, seed, before, after, world_size, data):
    rank = data.draw(st.integers(0, world_size - 1))
    uninterrupted = ids(build(shape, seed, rank, world_size), before + after)
    first = build(shape, seed, rank, world_size)
    start = ids(first, before)
    second = build(shape, seed, rank, world_size)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert start + ids(second, after) == uninterrupted


@settings(max_examples=50, deadline=None)
@given(SOURCES, st.integers(0, 99), st.integers(1, 4), st.integers(1, 20))
def test_shards_interleave_to_the_whole(shape, seed, world_size, count):
    shards = [ids(build(shape, seed, rank, world_size), count) for rank in range(world_size)]
    assert [name for step in zip(*shards, strict=True) for name in step] == ids(build(shape, seed), count * world_size)


@settings(max_examples=50, deadline=None)
@given(SOURCES, st.integers(0, 99), st.integers(1, 100))
def test_epochs_hold_every_example_once(shape, seed, count):
    stream = ids(build(shape, seed), count)
    for number, (size, _) in enumerate(shape):
        source_ids = [name for name in stream if name.startswith(f"{number}:")]
        for start in range(0, len(source_ids), size):
            assert len(set(source_ids[start : start + size])) == len(source_ids[start : start + size])
