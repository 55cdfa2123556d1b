"""Look up a name in a table of lazy entries, or load a user's own `module:function`. No torch.

Models, rewards, tasks, stages and data sources are explicit dictionaries from names to `module:function` strings; the
module is imported when the entry is used. A user's own is a module that Python finds, also in the working folder, or a
file: `my_rewards:mine`, `my_rewards.py:mine`, `code/my_rewards.py:mine`. Whatever is wrong with it is the user's input,
told in one line.
"""

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from earwise.errors import ConfigError, EarwiseError, location_in_module

OWN_MARK = "__earwise_own__"
"""Name that is set in every user's module that is loaded here, so that its faults can be told from ours."""


def resolve_entry(table: Mapping[str, str], name: str, kind: str) -> Any:
    """Import the object that `name` stands for in `table`, or that a user's `module:function` names.

    Args:
        table: Name -> `module:function`.
        name: The name as the user wrote it: a key of the table, `module:function` or `file.py:function`.
        kind: Kind of the table's entries ("task", "model"), for messages.
    Returns:
        The function or class.
    Raises:
        ConfigError: if there is no such name, module, file or function, or a user's module raises while it is imported.
    """
    module_name, colon, function = table.get(name, name).rpartition(":")
    if not colon:
        near = get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name one of them or your own as file.py:function"
        raise ConfigError(f"{kind} {name!r} is none of {', '.join(table)}; {hint}")
    if name in table:
        try:
            return vars(import_module(module_name))[function]
        except ImportError as error:
            raise ConfigError(f"{kind} {name!r} cannot be loaded ({error}); install what it needs") from error
    content = vars(_import_users_module(module_name, f"{kind} {name!r}"))
    content[OWN_MARK] = True
    if function not in content:
        near = get_close_matches(function, [key for key in content if not key.startswith("_")], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the name"
        raise ConfigError(f"{kind} {name!r} cannot be loaded: no {function!r} in {module_name!r}; {hint}")
    return content[function]


def own_code_location(error: BaseException) -> tuple[str, bool]:
    """Where an exception passed through a user's module that was loaded here.

    Args:
        error: The exception, with its traceback.
    Returns:
        The last such place as `FILE:LINE`, or "" if there is none; and whether it was raised there, or in what the
        module called outside earwise, so that the fault is the module's.
    """
    location, is_theirs = "", False
    traceback = error.__traceback__
    while traceback is not None:
        content = traceback.tb_frame.f_globals
        if OWN_MARK in content:
            location, is_theirs = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}", True
        elif str(content.get("__name__")).partition(".")[0] == "earwise":
            is_theirs = False
        traceback = traceback.tb_next
    return location, is_theirs


def check_parameters(function: Any, parameters: Sequence[str], name: str, kind: str) -> None:
    """Check that a user's function can be called with the arguments that earwise passes by position.

    Args:
        function: The function.
        parameters: What is passed, for the message.
        name: The name as the user wrote it.
        kind: What it shall be ("reward").
    Raises:
        ConfigError: if it is not a function, or takes other arguments.
    """
    needed = f"({', '.join(parameters)})"
    if not callable(function):
        raise ConfigError(f"{kind} {name!r} is a {type(function).__name__}, not a function of {needed}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # builtins have none
        return
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise ConfigError(f"{kind} {name!r} takes {signature}, but is called with {needed} ({error})") from error


def _import_users_module(module: str, described: str) -> ModuleType:
    """Import a user's module or file; whatever it raises is reported with its place, as the user's to repair.

    Args:
        module: Dotted name of the module, or path of a file that ends in `.py`.
        described: What is loaded, for messages.
    """
    is_file = module.endswith(".py")
    if not is_file and not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(
            f"{described} cannot be loaded: {module!r} is neither a module nor a file; name file.py:function"
        )
    file = _find_file(Path(module).expanduser(), described) if is_file else None
    try:
        return _import_beside(module) if file is None else _import_file(file)
    except EarwiseError:  # its message says what is wrong
        raise
    except (Exception, SystemExit) as error:
        packages = [module.rsplit(".", dots)[0] for dots in range(module.count(".") + 1)]
        if isinstance(error, ModuleNotFoundError) and error.name in packages:
            raise ConfigError(
                f"{described} cannot be loaded: there is no module {module!r}; check the name, and that it lies in "
                "the working folder or on the Python path, or name its file as file.py:function"
            ) from error
        place = location_in_module(error, module if file is None else _file_module_name(file)) or module
        message = " ".join(str(error).split())
        raise ConfigError(
            f"{place}: {type(error).__name__}: {message}; raised for {described} while the module was imported"
        ) from error


def _import_beside(module: str) -> ModuleType:
    """Import a module that may lie in the working folder; installed packages of the same name come first."""
    _add_to_path(Path.cwd())
    return import_module(module)


def find_own_code_in(folder: Path) -> None:
    """Let a user's own files and modules be found in a folder too, after the working folder and all others."""
    _add_to_path(folder)


def _add_to_path(folder: Path) -> None:
    """Let modules of a folder be found, after all others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _find_file(path: Path, described: str) -> Path:
    """The file in the working folder, or else in a folder of the Python path."""
    for folder in (Path(), *map(Path, sys.path)):
        if (folder / path).is_file():
            return folder / path
    raise ConfigError(
        f"{described} cannot be loaded: there is no file {path}; check the path, which starts from the working folder"
    )


def _import_file(path: Path) -> ModuleType:
    """Import a file once; modules beside it can be imported by it."""
    name = _file_module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = module_from_spec(spec)
    _add_to_path(path.resolve().parent)
    _add_to_path(Path.cwd())
    sys.modules[name] = module  # dataclasses of the module look it up while it is imported
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _file_module_name(path: Path) -> str:
    """Name under which a file is imported: its own, with a hash of its place."""
    return f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


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
