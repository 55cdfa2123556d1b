"""The benchmarks, one file each: a loader turns a benchmark's own format into Examples and writes predictions back in
it.

Between the data on disk and `evaluate.run`. `TASKS` is the explicit table (lazy strings); a task of your own is
`module:function` with the same signature as the loaders here: `load(path, audio_root) -> list[Example]`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from earwise.config.resolve import entry
from earwise.types import Example

TASKS = {
    "manifest": "earwise.evaluate.tasks.manifest:load",
    "mmau": "earwise.evaluate.tasks.mmau:load",
    "mmar": "earwise.evaluate.tasks.mmar:load",
}

Loader = Callable[[Path, Path | None], list[Example]]


def loader(task: str) -> Loader:
    """The loader of a task in `TASKS`, or of a user's own `module:function`.

    Raises:
        ConfigError: if there is no such task, module or function.
    """
    return cast(Loader, entry(TASKS, task, "task"))


def load(task: str, path: Path, audio_root: Path | None = None) -> list[Example]:
    """The examples of `task` at `path`; relative audio starts from `audio_root`, or else from the folder of `path`.

    Raises:
        ConfigError: if there is no such task.
        DataError: if the file is not what the task expects.
    """
    return loader(task)(path, audio_root)
