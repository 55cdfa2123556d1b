"""How a process that a test starts finds the tests and the package under test, wherever the package lies."""

import os
from pathlib import Path

import earwise

TESTS = Path(__file__).parent


def python_path(*folders: Path) -> str:
    """`PYTHONPATH` of a started process: the folders, the tests, and the package that this process has imported (which
    need not be the installed one)."""
    return os.pathsep.join(map(str, (*folders, TESTS, Path(earwise.__file__).parents[1])))
