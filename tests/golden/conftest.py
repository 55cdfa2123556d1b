"""Where golden files are looked for: EARWISE_GOLDEN_DIR, then tests/golden/data, then ../shared/golden.

The files under `benchmark-items/` hold questions of published benchmarks and are never in the repository; tests that
need one skip where it is absent.
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
    """The golden file of that name, or None."""
    named = os.environ.get("EARWISE_GOLDEN_DIR")
    folders = [Path(named)] if named else []
    if not name.startswith("benchmark-items/"):
        folders.append(HERE / "data")
    folders.append(ROOT.parent / "shared" / "golden")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


@pytest.fixture
def golden() -> Callable[[str], dict[str, Any]]:
    """Loads a golden file by name; skips the test where there is none."""

    def load(name: str) -> dict[str, Any]:
        path = golden_path(name)
        if path is None:
            pytest.skip(f"golden file {name} is not here; set EARWISE_GOLDEN_DIR")
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    return load
