"""What a name in a table stands for: tables are explicit dictionaries of lazy strings, a user's own entry is
`module:function`."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from earwise.errors import ConfigError


def entry(table: Mapping[str, str], name: str, what: str) -> Any:
    """The object that `name` stands for in `table`, or that a user's `module:function` names.

    Args:
        table: Name -> `module:function`.
        name: As the user wrote it.
        what: Of what the table is one ("task"), for the messages.
    Raises:
        ConfigError: if there is no such name, module or function.
    """
    module, colon, function = table.get(name, name).partition(":")
    if not colon:
        near = get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name one of them or your own as module:function"
        raise ConfigError(f"{what} {name!r} is none of {', '.join(table)}; {hint}")
    try:
        return vars(import_module(module))[function]
    except (ImportError, KeyError) as error:
        raise ConfigError(
            f"{what} {name!r} cannot be loaded: no {function!r} in {module!r} ({error}); check both names, and "
            "that the module is on the Python path"
        ) from error


def require(module: str, extra: str, what: str) -> None:
    """Refuse work that would end with a missing package, before it begins.

    Args:
        module: What will be imported.
        extra: Extra of this package that brings it.
        what: Of the work, what needs it.
    Raises:
        ConfigError: if it is not installed, with the command that installs it.
    """
    if find_spec(module) is None:
        raise ConfigError(f"{what} need {module}, which is not installed: pip install 'earwise[{extra}]'")
