"""Dotted keys into nested mappings and lists: how profiles, arms and the command line change a recipe. No torch."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from earwise.errors import ConfigError

Removals = list[tuple[list[Any], int]]
"""Elements to be removed from lists: the list, and the element's place in it."""


def lay_over(raw: dict[str, Any], parts: Iterable[Mapping[str, Any]], source: str) -> None:
    """Change a recipe by a profile, an arm or the command line.

    Parts are applied in order. Within a part the general comes first, whatever the order of its keys: a whole list,
    then `stages.*`, then a single stage. List elements are removed last, so that a part may change a stage that another
    part removes, in either order, and numbers count the elements that were there before.

    Args:
        raw: The recipe, changed in place.
        parts: Dotted keys and their values; see `assign`.
        source: Where the settings stand, for messages.
    Raises:
        ConfigError: if a key leads nowhere.
    """
    removals: Removals = []
    for settings in parts:
        for key in general_first(settings):
            assign(raw, key, settings[key], source, removals)
    for elements, index in sorted(removals, key=lambda removal: -removal[1]):
        del elements[index]


def general_first(keys: Iterable[str]) -> list[str]:
    """Dotted keys, sorted so that each comes after those that set what it is a part of.

    >>> general_first(["stages.0.beta", "stages.*.beta", "stages"])
    ['stages', 'stages.*.beta', 'stages.0.beta']
    """
    return sorted(keys, key=lambda key: [part != "*" for part in key.split(".")])


def assign(raw: Any, key: str, value: object, source: str, removals: Removals) -> None:
    """Set a dotted key in nested mappings and lists.

    An element of a list is named by its number, a stage also by its name, and every element by `*`. A mapping is merged
    key by key. None removes what is there: `styles: {answer: null, think: 1.0}` keeps one style, `stages.2: null` drops
    a stage.

    Args:
        raw: Mapping or list, changed in place.
        key: Dotted key.
        value: New value; None removes the old one.
        source: Where the setting stands, for messages.
        removals: Gets the list elements to remove, which `lay_over` removes in the end.
    Raises:
        ConfigError: if the key leads nowhere.
    """
    first, _, inner_key = key.partition(".")
    if isinstance(raw, list):
        if first != "*":
            _assign_element(raw, _element_index(raw, first, key, source), inner_key, value, source, removals)
        elif inner_key:
            for element in raw:
                assign(element, inner_key, value, source, removals)
        return
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: {key!r} goes into a value that is not a mapping")
    if inner_key:
        assign(raw.setdefault(first, {}), inner_key, value, source, removals)
    elif isinstance(value, dict) and isinstance(raw.get(first), dict | list):
        _merge(raw[first], value, source, removals)
    elif value is None and first in raw:
        del raw[first]
    else:
        raw[first] = deepcopy(value)


def _element_index(raw: list[Any], name: str, key: str, source: str) -> int:
    """Index of the list element that has this name, or this number."""
    indices = [index for index, element in enumerate(raw) if isinstance(element, dict) and element.get("name") == name]
    index = indices[0] if indices else int(name) if name.isdigit() else len(raw)
    if index >= len(raw):
        raise ConfigError(
            f"{source}: {key!r}: the list has {len(raw)} elements; use an index from 0, a stage's name, or *"
        )
    return index


def _assign_element(raw: list[Any], index: int, inner_key: str, value: object, source: str, removals: Removals) -> None:
    """Set an element of a list, or a key in it; see `assign`."""
    if inner_key:
        assign(raw[index], inner_key, value, source, removals)
    elif isinstance(value, dict) and isinstance(raw[index], dict):
        _merge(raw[index], value, source, removals)
    elif value is None:
        if not any(elements is raw and removed == index for elements, removed in removals):
            removals.append((raw, index))
    else:
        raw[index] = deepcopy(value)


def _merge(raw: Any, settings: Mapping[Any, object], source: str, removals: Removals) -> None:
    """Set every key of a mapping; see `assign`."""
    values = {str(key): value for key, value in settings.items()}
    for key in general_first(values):
        assign(raw, key, values[key], source, removals)
