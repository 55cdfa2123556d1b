"""The golden files are searched in EARWISE_GOLDEN_DIR, then in tests/golden/data, then in ../shared/golden.

The files under `benchmark-items/` hold questions of published benchmarks and are never in the repository; tests that
need one are skipped where it is absent.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def golden_path(name: str) -> Path | None:
    """Path of the golden file with this name, or None if there is none."""
    configured = os.environ.get("EARWISE_GOLDEN_DIR")
    folders = [Path(configured)] if configured else []
    if not name.startswith("benchmark-items/"):
        folders.append(HERE / "data")
    folders.append(ROOT.parent / "shared" / "golden")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    """A function that loads a golden file by name, and skips the test if there is none."""

    def load(name: str) -> dict[str, Any]:
        path = golden_path(name)
        if path is None:
            pytest.skip(f"golden file {name} is not here; set EARWISE_GOLDEN_DIR")
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    return load
