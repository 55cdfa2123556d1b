"""Profiles, arms and variants of a recipe, composed by name. No torch.

A recipe may hold three mappings from names to settings: `profiles:` (its scale), `arms:` (what is compared) and
`variants:` (building blocks that are neither). Each entry is a mapping of dotted keys, or a list whose elements are
such mappings or the names of other entries. A list is read from left to right; each element is applied to the result
of those before it. Nothing here depends on the order in which a YAML library yields or merges mappings.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from earwise.config.overrides import general_first
from earwise.errors import ConfigError

Settings = Mapping[str, Any]
"""Dotted keys and their values, as `overrides.lay_over` takes them."""

Definitions = dict[str, dict[str, list[Any]]]
"""Kind (`variants`, `arms`, `profiles`) -> name -> elements: names of other entries, or settings."""

SINGULAR = {"variants": "variant", "arms": "arm", "profiles": "profile"}


def take_definitions(raw: dict[str, Any], source: str) -> Definitions:
    """Take `variants:`, `arms:` and `profiles:` out of a recipe as read from its file.

    Args:
        raw: The recipe; the three keys are removed from it.
        source: Path of the recipe, for messages.
    Returns:
        The entries of each kind in the order of the file, every entry as a list of elements.
    Raises:
        ConfigError: if an entry is neither a mapping nor a list of names and mappings, or if a variant has the name of
            an arm or profile, so that it would be unclear which of them a list means.
    """
    definitions: Definitions = {}
    for kind in SINGULAR:
        entries = raw.pop(kind, None) or {}
        if not isinstance(entries, Mapping):
            raise ConfigError(f"{source}: {kind}: is not a mapping from names to settings")
        definitions[kind] = {str(name): _elements(entry, f"{kind}.{name}", source) for name, entry in entries.items()}
    for kind in ("arms", "profiles"):
        for name in definitions[kind]:
            if name in definitions["variants"]:
                raise ConfigError(f"{source}: {name!r} is under variants: and under {kind}:; rename one of the two")
    return definitions


def compose(definitions: Definitions, kind: str, name: str, source: str) -> list[Settings]:
    """The settings of a profile or arm, with every name replaced by the settings of that entry.

    Args:
        definitions: From `take_definitions`.
        kind: `profiles` or `arms`. An entry may name others of its kind, and variants.
        name: The entry that is wanted.
        source: Path of the recipe, for messages.
    Returns:
        Settings in the order in which they are to be laid over the recipe.
    Raises:
        ConfigError: if a name is unknown (the nearest is suggested), or an entry names itself, directly or through
            others.
    """
    if name not in definitions[kind]:
        names = ", ".join(definitions[kind]) or "(none)"
        hint = _suggestion(name, definitions[kind])
        raise ConfigError(f"{source}: {SINGULAR[kind]} {name!r} is none of {names}{hint}")
    return _expand(definitions, kind, (name,), source)


def change_definitions(definitions: Definitions, parts: list[Settings], source: str) -> list[Settings]:
    """Let a profile change arms and variants at its scale (`arms.NAME.stages.0.max_steps`, `variants.NAME: {...}`).

    Settings are applied after those of the entry, a list replaces the entry, and null removes it. An entry that names a
    changed one inherits the change.

    Args:
        definitions: From `take_definitions`; changed in place.
        parts: Settings of the profile, from `compose`.
        source: Path of the recipe, for messages.
    Returns:
        The settings that change the recipe itself.
    Raises:
        ConfigError: if a dotted key goes into an arm or variant that does not exist.
    """
    remaining: list[Settings] = []
    for settings in parts:
        recipe_settings: dict[str, Any] = {}
        for key in general_first(settings):
            kind, _, inner_key = key.partition(".")
            if kind not in ("arms", "variants"):
                recipe_settings[key] = settings[key]
                continue
            changes = {inner_key: settings[key]} if inner_key else settings[key] or {}
            if not isinstance(changes, Mapping):
                raise ConfigError(f"{source}: {kind}: is not a mapping from names to settings")
            for path, change in changes.items():
                _change(definitions[kind], kind, str(path), change, source)
        remaining.append(recipe_settings)
    return remaining


def _change(entries: dict[str, list[Any]], kind: str, path: str, change: object, source: str) -> None:
    """Change one entry, or one setting of it (`NAME.stages.0.max_steps`); see `change_definitions`."""
    name, _, setting = path.partition(".")
    if setting:
        if name not in entries:
            raise ConfigError(f"{source}: {kind}.{path}: no {SINGULAR[kind]} {name!r}{_suggestion(name, entries)}")
        entries[name].append({setting: change})
    elif change is None:
        entries.pop(name, None)
    elif isinstance(change, Mapping):
        entries.setdefault(name, []).append(change)
    else:
        entries[name] = _elements(change, path, source)


def _expand(definitions: Definitions, kind: str, trail: tuple[str, ...], source: str) -> list[Settings]:
    """The settings of the last entry of `trail`, whose entries each name the next."""
    entries = definitions["variants"] | definitions[kind]
    parts: list[Settings] = []
    for element in entries[trail[-1]]:
        if isinstance(element, Mapping):
            parts.append({str(key): value for key, value in element.items()})
        elif element in trail:
            cycle = " -> ".join([*trail[trail.index(element) :], element])
            raise ConfigError(f"{source}: {kind}.{trail[0]} names itself ({cycle}); take one of these names out")
        elif element not in entries:
            raise ConfigError(
                f"{source}: {element!r}, named by {trail[-1]!r}, is no {SINGULAR[kind]} and no variant"
                + _suggestion(element, entries)
            )
        else:
            parts += _expand(definitions, kind, (*trail, element), source)
    return parts


def _elements(entry: object, place: str, source: str) -> list[Any]:
    """An entry as a list of names and settings."""
    elements = list(entry) if isinstance(entry, list) else [] if entry is None else [entry]
    names_allowed = isinstance(entry, list)
    for element in elements:
        if not isinstance(element, Mapping) and not (names_allowed and isinstance(element, str)):
            raise ConfigError(
                f"{source}: {place}: {element!r} is no mapping of settings; write {{key: value}}, "
                "or a list of names and such mappings"
            )
    return elements


def _suggestion(name: str, names: Mapping[str, object]) -> str:
    """The nearest of some names, or all of them, as the end of a message."""
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names) or '(none)'}"
