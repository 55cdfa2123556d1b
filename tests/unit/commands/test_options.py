"""Parsed options are collected into dataclasses; a mistake in the declaration fails at once."""

from dataclasses import dataclass

import pytest

from earwise.commands.options import collect_options


@dataclass(frozen=True)
class PaceOptions:
    concurrency: int
    requests_per_minute: float | None


@dataclass(frozen=True)
class BuildOptions:
    out: str
    pace: PaceOptions
    seed: int = 0


def test_an_option_group_is_built_from_the_same_values() -> None:
    values = {"out": "rows.jsonl", "concurrency": 4, "requests_per_minute": None}
    assert collect_options(BuildOptions, values) == BuildOptions("rows.jsonl", PaceOptions(4, None), seed=0)


def test_a_value_without_a_field_and_a_field_without_a_value_are_refused() -> None:
    values = {"out": "rows.jsonl", "concurrency": 4, "requests_per_minute": None}
    with pytest.raises(TypeError, match="BuildOptions has no field for the option 'workers'"):
        collect_options(BuildOptions, values | {"workers": 2})
    with pytest.raises(TypeError, match="requests_per_minute"):
        collect_options(BuildOptions, {"out": "rows.jsonl", "concurrency": 4})
