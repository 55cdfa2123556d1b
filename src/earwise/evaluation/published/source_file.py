"""Published files that `data.sources` reads, as the examples of a task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from earwise.data import sources
from earwise.errors import DataError
from earwise.evaluation.published.choice_file import check_audio
from earwise.types import Example


def load_source(source: str, keep: Callable[[Example], bool] = lambda example: True) -> Callable[..., list[Example]]:
    """A loader of a task from the reader of a data set.

    A row that the reader cannot use stops it: a benchmark from which rows are left out is another benchmark.

    Args:
        source: A key of `data.sources.SOURCES`.
        keep: Which of the reader's examples belong to the task.
    """

    def load(path: Path, audio_root: Path | None = None) -> list[Example]:
        """Read the published file of the data set.

        Args:
            path: The file, or the folder where the data set is one.
            audio_root: Folder of the clips; None: the file's own folder.
        Raises:
            DataError: if a row cannot be used, or none of the clips exists.
        """

        def refuse(message: str) -> None:
            raise DataError(f"{message}; a benchmark is read whole or not at all")

        rows = sources.load(source, path, refuse, audio_root=audio_root, split="test")
        root = audio_root or (path if path.is_dir() else path.parent)
        examples = [anchored(example, root) for example in rows if keep(example)]
        if not examples:
            raise DataError(f"{path}: holds no item of this task; give the file that {source} publishes")
        check_audio(examples, path)
        return examples

    return load


def anchored(example: Example, root: Path) -> Example:
    """The example with the folder of its clips."""
    return replace(example, root=root)
