"""Names in tables, and packages that must be there before work begins."""

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
    with pytest.raises(ConfigError, match="no 'x' in 'nowhere'"):
        resolve_entry({}, "nowhere:x", "task")


def test_a_missing_package_is_named_with_its_extra() -> None:
    require("math", "data", "sums")
    with pytest.raises(
        ConfigError, match=r"error rates need jiwhere, which is not installed: pip install 'earwise\[data\]'"
    ):
        require("jiwhere", "data", "error rates")
