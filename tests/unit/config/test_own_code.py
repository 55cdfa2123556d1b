"""Code of one's own beside one: files and modules of the working folder, and every mistake told in one line."""

import sys
from pathlib import Path

import pytest

from earwise.algorithms.rewards import load_reward
from earwise.config.resolve import check_parameters, own_code_location, resolve_entry
from earwise.data.sources import loader
from earwise.errors import ConfigError
from earwise.evaluation.task_table import load_task
from earwise.types import Example

REWARD = "import helper_beside\n\n\ndef mine(example, completion):\n    return helper_beside.VALUE\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a user's code; what was imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))])
    before = set(sys.modules)
    (tmp_path / "helper_beside.py").write_text("VALUE = 0.5\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    load_reward.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        "own_rewards:mine",
        "own_rewards.py:mine",
        "./own_rewards.py:mine",
        "{folder}/own_rewards.py:mine",
        "sub/own_rewards.py:mine",
    ],
)
def test_files_and_modules_of_the_working_folder(folder: Path, name: str) -> None:
    (folder / "own_rewards.py").write_text(REWARD)
    (folder / "sub").mkdir()
    (folder / "sub/own_rewards.py").write_text(REWARD)
    reward = load_reward(name.format(folder=folder))
    assert reward(Example("e", ()), "x") == 0.5


def test_a_file_is_imported_once_and_files_of_one_name_are_kept_apart(folder: Path) -> None:
    (folder / "twice.py").write_text("def a(): ...\ndef b(): return a\n")
    (folder / "sub").mkdir()
    (folder / "sub/twice.py").write_text("def a(): ...\n")
    first = resolve_entry({}, "twice.py:a", "reward")
    assert resolve_entry({}, "./twice.py:b", "reward")() is first
    assert resolve_entry({}, "sub/twice.py:a", "reward") is not first


def test_a_dataclass_of_one_s_own_file(folder: Path) -> None:
    text = "from __future__ import annotations\nimport dataclasses\n"
    text += "@dataclasses.dataclass(slots=True)\nclass A:\n    x: int = 1\n"
    (folder / "own_class.py").write_text(text)
    assert resolve_entry({}, "own_class.py:A", "stage")().x == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing_here:mine", "", "there is no module 'nothing_here'; check the name, and that it lies in the working"),
        ("nothing_here.py:mine", "", "there is no file nothing_here.py"),
        ("./own:mine", "", "'./own' is neither a module nor a file; name file.py:function"),
        ("own:mein", "def mine(example, completion): ...", "no 'mein' in 'own'; did you mean 'mine'"),
        ("own.py:other", "def mine(example, completion): ...", "no 'other' in 'own.py'; check the name"),
        ("own:mine", "import not_installed_anywhere", "own.py:1: ModuleNotFoundError: No module named 'not_installed"),
        ("own.py:mine", "x = 1\n1 / 0", "own.py:2: ZeroDivisionError: division by zero; raised for reward"),
        ("own.py:mine", "def mine(:", "own.py:1: SyntaxError"),
        ("own:mine", "raise SystemExit(3)", "own.py:1: SystemExit: 3"),
        ("own:mine", "def mine(completion): ...", r"takes \(completion\), but is called with \(example, completion\)"),
        ("own.py:mine", "def mine(example, completion, extra): ...", "missing a required argument: 'extra'"),
        ("own:mine", "mine = 3", r"is a int, not a function of \(example, completion\)"),
    ],
)  # fmt: skip
def test_mistakes_are_the_user_s_input(folder: Path, name: str, content: str, message: str) -> None:
    (folder / "own.py").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_reward(name)
    assert "\n" not in str(caught.value)


def test_sources_and_tasks_of_one_s_own(folder: Path) -> None:
    (folder / "own.py").write_text(
        "def source(path, root, split, on_skip): yield\ndef load(path, audio_root=None): return []\n"
    )
    assert loader("own.py:source").__name__ == "source" and load_task("own.py:load").name == "own.py:load"
    with pytest.raises(ConfigError, match=r"source 'own\.py:load' takes"):
        loader("own.py:load")
    with pytest.raises(ConfigError, match=r"task 'own\.py:source' takes"):
        load_task("own.py:source")


def test_defaults_and_star_arguments_fit() -> None:
    check_parameters(lambda example, completion, scale=2: 0, ("example", "completion"), "x", "reward")
    check_parameters(lambda *values: 0, ("example", "completion"), "x", "reward")


FAULTS = """
import helper_beside
from earwise.answers import normalise


def own(): raise ValueError("mine")
def standard(): return int("x")
def helper(): return helper_beside.divide()
def package(): return normalise(3)
"""


@pytest.mark.parametrize(
    ("name", "line", "is_theirs"), [("own", 6, True), ("standard", 7, True), ("helper", 8, True), ("package", 9, False)]
)
@pytest.mark.parametrize("form", ["faults.py", "faults"])
def test_where_an_exception_passed_through_own_code(
    folder: Path, form: str, name: str, line: int, is_theirs: bool
) -> None:
    """Faults in what the file calls are the file's, except in the package, to which it may have given anything."""
    (folder / "helper_beside.py").write_text("def divide(): return 1 / 0\n")
    (folder / "faults.py").write_text(FAULTS)
    function = resolve_entry({}, f"{form}:{name}", "task")
    with pytest.raises(Exception) as caught:
        function()
    place, theirs = own_code_location(caught.value)
    assert place.endswith(f"faults.py:{line}") and theirs == is_theirs


def test_an_exception_of_the_package_has_no_place_in_own_code() -> None:
    with pytest.raises(ConfigError) as caught:
        load_task("mma")
    assert own_code_location(caught.value) == ("", False)
