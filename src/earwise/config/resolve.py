"""Look up a name in a table of lazy entries, or load a user's own `module:function`. No torch.

Models, rewards, tasks and data sources are explicit dictionaries from names to `module:function` strings; the module is
imported when the entry is used.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from earwise.errors import ConfigError, EarwiseError, location_in_module


def resolve_entry(table: Mapping[str, str], name: str, kind: str) -> Any:
    """Import the object that `name` stands for in `table`, or that a user's `module:function` names.

    Args:
        table: Name -> `module:function`.
        name: The name as the user wrote it.
        kind: Kind of the table's entries ("task", "model"), for messages.
    Returns:
        The function or class.
    Raises:
        ConfigError: if there is no such name, module or function, or a user's module raises while it is imported.
    """
    module, colon, function = table.get(name, name).partition(":")
    if not colon:
        near = get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name one of them or your own as module:function"
        raise ConfigError(f"{kind} {name!r} is none of {', '.join(table)}; {hint}")
    try:
        return vars(_import(module, is_users=name not in table))[function]
    except (ImportError, KeyError) as error:
        raise ConfigError(
            f"{kind} {name!r} cannot be loaded: no {function!r} in {module!r} ({error}); check both names, and "
            "that the module is on the Python path"
        ) from error


def _import(module: str, is_users: bool) -> ModuleType:
    """Import a module; what a user's own raises at this is reported with its place, as the user's to repair."""
    try:
        return import_module(module)
    except (ImportError, EarwiseError):  # these messages say what is wrong
        raise
    except Exception as error:
        if not is_users:
            raise
        place = location_in_module(error, module) or module
        message = " ".join(str(error).split())
        raise ConfigError(
            f"{place}: {type(error).__name__}: {message}; raised while the module was imported"
        ) from error


def require(module: str, extra: str, needed_by: str) -> None:
    """Check that an optional package is installed, before work starts that would fail without it.

    Args:
        module: Name of the package's module.
        extra: Extra of earwise that installs the package.
        needed_by: The things that need it, in the plural ("stages"), for the message.
    Raises:
        ConfigError: if it is not installed; the message has the command that installs it.
    """
    if find_spec(module) is None:
        raise ConfigError(f"{needed_by} need {module}, which is not installed: pip install 'earwise[{extra}]'")
