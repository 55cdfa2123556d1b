"""Collects the options that click parsed into one frozen dataclass per command.

A click callback takes every option as a parameter of its own. With a dozen options the callback therefore takes them as
`**values` and calls `collect_options`, after which the rest of the command works with one typed, immutable object.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, TypeVar

import click

from earwise.config.deprecated import warn_on_stderr

Options = TypeVar("Options")
Command = TypeVar("Command", bound=Callable[..., Any])
OLD_NAME_PREFIX = "old_name_of_"


def collect_options(options_type: type[Options], values: Mapping[str, object]) -> Options:
    """Build a command's options dataclass from the values that click parsed.

    A field whose type is itself a dataclass (an option group that several commands share) is built from the same
    values. Such a field must be annotated with the class itself, not with its name in quotes.

    Args:
        options_type: Frozen dataclass with one field per option, named like the option's Python name.
        values: Option name -> parsed value, as click passes them to a callback.
    Returns:
        An instance of `options_type`.
    Raises:
        TypeError: if a value belongs to no field, or a field without a default has no value. Either is a mistake in
            the command's source code, not in the user's input.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class PageOptions:
        ...     title: str
        ...     width: int = 80
        >>> collect_options(PageOptions, {"title": "Checks"})
        PageOptions(title='Checks', width=80)
    """
    values = _with_old_names(values)
    if unused := set(values) - _option_names(options_type):
        raise TypeError(f"{options_type.__name__} has no field for the option {sorted(unused)[0]!r}; add the field")
    return _build(options_type, values)


def old_option(old_name: str, new_name: str, field: str, **settings: Any) -> Callable[[Command], Command]:
    """The former name of an option: hidden, works for one more release, and warns in one line.

    Args:
        old_name: Former name, for example `--choices`.
        new_name: Name of the option today.
        field: Field of the options dataclass that the option fills.
        settings: Further arguments of `click.option`, such as `type`.
    """

    def warn(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value is not None and value != ():
            warn_on_stderr(
                f"command line: {old_name} is now called {new_name}; the old name works for one more release"
            )
        return value

    return click.option(
        old_name, f"{OLD_NAME_PREFIX}{field}", hidden=True, callback=warn, help=f"Old name of {new_name}.", **settings
    )


def _with_old_names(values: Mapping[str, object]) -> dict[str, object]:
    """The values with those of old options moved to the fields of the new ones."""
    new = {name: value for name, value in values.items() if not name.startswith(OLD_NAME_PREFIX)}
    for name, value in values.items():
        if name.startswith(OLD_NAME_PREFIX) and value is not None and value != ():
            new[name.removeprefix(OLD_NAME_PREFIX)] = value
    return new


def _build(options_type: type[Options], values: Mapping[str, object]) -> Options:
    """Instance of `options_type` from those of `values` that it has fields for."""
    arguments: dict[str, Any] = {}
    for field in _fields(options_type):
        if (group := _option_group(field)) is not None:
            arguments[field.name] = _build(group, values)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    return options_type(**arguments)


def _option_names(options_type: type) -> set[str]:
    """Names of all options that `options_type` and the option groups in it hold."""
    names: set[str] = set()
    for field in _fields(options_type):
        group = _option_group(field)
        names |= {field.name} if group is None else _option_names(group)
    return names


def _option_group(field: Field[Any]) -> type | None:
    """The dataclass of a field that holds an option group; None for a field that holds a single option."""
    return field.type if isinstance(field.type, type) and is_dataclass(field.type) else None


def _fields(options_type: Any) -> tuple[Field[Any], ...]:
    """The dataclass fields of `options_type`."""
    return fields(options_type)
