"""Shapes in annotations are checked while tests run; test helpers (`builders`, `scripted_engine`) can be imported by
their own names in any import mode of pytest.
"""

import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
install_import_hook(
    [
        "earwise.forest",
        "earwise.algorithms.losses",
        "earwise.algorithms.policy_loss",
        "earwise.models.parts",
        "earwise.models.embedded.ridge_init",
    ],
    "beartype.beartype",
)


LONG_FOLDERS = ("e2e", "unit/training", "upstream", "families", "unit/models", "unit/benchmarks")
"""Folders whose files take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that none begins while all other processes are done (with pytest-xdist's option
    `--no-loadscope-reorder`, which keeps this order)."""
    items.sort(key=lambda item: not any(item.path.is_relative_to(HERE / folder) for folder in LONG_FOLDERS))


@pytest.fixture(autouse=True)
def no_proxy_for_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of these tests listen on the loopback address, whatever proxy this machine has."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty EARWISE_HOME, and no key or address of a server in the environment."""
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))
    for name in ("EARWISE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
