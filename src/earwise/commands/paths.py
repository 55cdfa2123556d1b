"""Types of options that name files: in all of them a leading `~` is the user's home folder.

A shell expands `~` in a word of its own only, so not in `--audio-root=~/clips`, in quotes, or in a batch file.
"""

import os
from pathlib import Path
from typing import Any

import click

from earwise.files import expand_home


class UserPath(click.Path):
    """A file or folder, as a `Path`; takes the arguments of `click.Path`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, with `~` expanded; see `click.ParamType.convert`."""
        return super().convert(expand_home(os.fspath(value)), param, ctx)


class NameOrPath(click.ParamType):
    """A text that may be the path of a file or folder, or another name (`starter:val`, a model, an address)."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, with `~` at its beginning expanded; see `click.ParamType.convert`."""
        return expand_home(str(value))


FILE = UserPath()
NAME_OR_PATH = NameOrPath()
