"""One fixture: every family of `FAMILIES` in turn, built once a session.

A family whose file is not there yet is skipped with the reason; one whose file is there and breaks, fails.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache

import pytest

from earwise.models import registry
from families.tiny import FAMILIES, Tiny


def _build(name: str) -> Callable[..., Tiny]:
    module, _, function = FAMILIES[name].partition(":")
    for needed in (registry.get(name).loader.partition(":")[0], module):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{name}: no module {needed} yet")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


@cache
def _built(name: str) -> Tiny:
    return _build(name)()


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Tiny:
    """A family at test size, shared by all tests of the session: leave its weights alone."""
    _build(request.param)
    return _built(request.param)


@pytest.fixture(params=list(FAMILIES))
def fresh(request: pytest.FixtureRequest) -> Tiny:
    """A family at test size that the test may change."""
    return _build(request.param)()
