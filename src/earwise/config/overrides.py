"""Dotted keys into nested mappings and lists: how profiles, arms and the command line change a recipe. No torch."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from earwise.errors import ConfigError

Removals = list[tuple[list[Any], int]]
"""Elements to be removed from lists: the list, and the element's place in it."""


def lay_over(raw: dict[str, Any], parts: Iterable[Mapping[str, Any]], where: str) -> None:
    """Change a recipe by a profile, an arm or the command line.

    Parts are applied in order. Within a part the general comes first, whatever the order of its keys: a whole list,
    then `stages.*`, then a single stage. List elements are removed last, so that a part may change a stage that another
    part removes, in either order, and numbers count the elements that were there before.

    Args:
        raw: The recipe, changed in place.
        parts: Dotted keys and their values; see `assign`.
        where: Where the settings stand, for messages.
    Raises:
        ConfigError: if a key leads nowhere.
    """
    removals: Removals = []
    for settings in parts:
        for key in general_first(settings):
            assign(raw, key, settings[key], where, removals)
    for elements, index in sorted(removals, key=lambda removal: -removal[1]):
        del elements[index]


def general_first(keys: Iterable[str]) -> list[str]:
    """Dotted keys, sorted so that each comes after those that set what it is a part of.

    >>> general_first(["stages.0.beta", "stages.*.beta", "stages"])
    ['stages', 'stages.*.beta', 'stages.0.beta']
    """
    return sorted(keys, key=lambda key: [part != "*" for part in key.split(".")])


def assign(raw: Any, key: str, value: object, where: str, removals: Removals) -> None:
    """Set a dotted key in nested mappings and lists; `*` stands for every element, a stage may be called by
    its name, a mapping is merged key by key.

    Null takes out what was there: `styles: {answer: null, think: 1.0}` keeps one style, `stages.2: null` drops a stage.
    An element of a list is only added to `removals`, for `lay_over` to remove in the end.
    """
    head, _, rest = key.partition(".")
    if isinstance(raw, list):
        if head == "*":
            for element in raw:
                assign(element, rest, value, where, removals) if rest else None
            return
        named = [
            number for number, element in enumerate(raw) if isinstance(element, dict) and element.get("name") == head
        ]
        at = named[0] if named else int(head) if head.isdigit() else len(raw)
        if at >= len(raw):
            raise ConfigError(
                f"{where}: {key!r}: the list has {len(raw)} elements; use an index from 0, a stage's name, or *"
            )
        if rest:
            assign(raw[at], rest, value, where, removals)
        elif isinstance(value, dict) and isinstance(raw[at], dict):
            _merge(raw[at], value, where, removals)
        elif value is None:
            if not any(elements is raw and index == at for elements, index in removals):
                removals.append((raw, at))
        else:
            raw[at] = deepcopy(value)
        return
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: {key!r} goes into a value that is not a mapping")
    if rest:
        assign(raw.setdefault(head, {}), rest, value, where, removals)
    elif isinstance(value, dict) and isinstance(raw.get(head), dict | list):
        _merge(raw[head], value, where, removals)
    elif value is None and head in raw:
        del raw[head]
    else:
        raw[head] = deepcopy(value)


def _merge(raw: Any, settings: Mapping[Any, object], where: str, removals: Removals) -> None:
    values = {str(key): value for key, value in settings.items()}
    for key in general_first(values):
        assign(raw, key, values[key], where, removals)
