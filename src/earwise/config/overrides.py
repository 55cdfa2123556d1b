"""Dotted keys into nested mappings and lists: how profiles, arms and the command line change a recipe. No torch."""

from typing import Any

from earwise.errors import ConfigError


def assign(raw: Any, key: str, value: object, where: str) -> None:
    """Set a dotted key in nested mappings and lists; `*` stands for every element, a stage may be called by
    its name, a mapping is merged key by key.

    Null takes out what was there: `styles: {answer: null, think: 1.0}` keeps one style, `stages.2: null` drops a stage.
    """
    head, _, rest = key.partition(".")
    if isinstance(raw, list):
        if head == "*":
            for element in raw:
                assign(element, rest, value, where) if rest else None
            return
        named = [number for number, one in enumerate(raw) if isinstance(one, dict) and one.get("name") == head]
        at = named[0] if named else int(head) if head.isdigit() else len(raw)
        if at >= len(raw):
            raise ConfigError(
                f"{where}: {key!r}: the list has {len(raw)} elements; use an index from 0, a stage's name, or *"
            )
        if rest:
            assign(raw[at], rest, value, where)
        elif isinstance(value, dict) and isinstance(raw[at], dict):
            for inner, one in value.items():
                assign(raw[at], inner, one, where)
        elif value is None:
            del raw[at]
        else:
            raw[at] = value
        return
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: {key!r} goes into a value that is not a mapping")
    if rest:
        assign(raw.setdefault(head, {}), rest, value, where)
    elif isinstance(value, dict) and isinstance(raw.get(head), dict | list):
        for inner, one in value.items():
            assign(raw[head], str(inner), one, where)
    elif value is None and head in raw:
        del raw[head]
    else:
        raw[head] = value
