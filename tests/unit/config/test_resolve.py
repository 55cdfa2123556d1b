"""Names in tables, and packages that must be there before work begins."""

import re
from pathlib import Path

import pytest

from earwise.config.resolve import require, resolve_entry
from earwise.errors import ConfigError


def test_a_name_of_the_table_or_of_the_users_own() -> None:
    assert resolve_entry({"mine": "math:floor"}, "mine", "task")(1.5) == 1
    assert resolve_entry({}, "math:ceil", "task")(1.5) == 2
    with pytest.raises(ConfigError, match="task 'nine' is none of mine; did you mean 'mine'"):
        resolve_entry({"mine": "math:floor"}, "nine", "task")
    with pytest.raises(ConfigError, match="no 'flor' in 'math'"):
        resolve_entry({}, "math:flor", "task")
    with pytest.raises(ConfigError, match="there is no module 'nowhere'"):
        resolve_entry({}, "nowhere:x", "task")


@pytest.mark.parametrize(
    ("last_line", "message"),
    [
        ("dict(1, 2)", "TypeError: dict expected at most 1 argument, got 2"),
        ("undefined_name", "NameError: name 'undefined_name' is not defined"),
        ("{}['absent']", "KeyError: 'absent'"),
        ("def broken(:", "SyntaxError: invalid syntax"),
    ],
)
def test_what_a_users_module_raises_is_reported_with_its_place(
    last_line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text(f"import math\n\n{last_line}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pattern = re.escape(f"{tmp_path / 'broken_module.py'}:3: {message}")
    with pytest.raises(ConfigError, match=f"^{pattern}.*while the module was imported$"):
        resolve_entry({}, "broken_module:score", "task")
    if "def" not in last_line:  # in a module of ours it is our fault
        with pytest.raises((TypeError, NameError, KeyError, ConfigError)) as caught:
            resolve_entry({"ours": "broken_module:score"}, "ours", "task")
        assert "while the module was imported" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra() -> None:
    require("math", "data", "sums")
    with pytest.raises(
        ConfigError, match=r"error rates need jiwhere, which is not installed: pip install 'earwise\[data\]'"
    ):
        require("jiwhere", "data", "error rates")
