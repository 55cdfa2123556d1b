"""The language and size of the source code: names say what they hold, functions fit a screen, docstrings are sentences.

The limits are those that the code keeps today, so that it does not grow worse unnoticed. A name on the list below says
nothing about its value (`given`, `found`, `rest`); write what it is instead (`arguments`, `match`, `suffix`).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "earwise"
FILES = sorted(SOURCE.rglob("*.py"))

VAGUE_NAMES = {
    "said", "told", "asked", "heard", "found", "given", "one", "some", "own", "made", "kept", "where", "known", "other",
    "rest", "seen", "shown", "wanted", "there", "at", "left", "state", "bad",
}  # fmt: skip
MAX_VAGUE_SHARE = 0.01
MAX_FUNCTION_LINES = 60
MAX_LONG_FUNCTIONS = 10
MAX_PARAMETERS = 8
MAX_FUNCTIONS_WITH_MANY_PARAMETERS = 8
MAX_FILE_LINES = 400
MAX_FOLDER_MODULES = 12
FOLDERS_OF_ALIKE_MODULES = {"data/sources", "evaluation/tasks", "models/families"}
"""Folders with one module for each entry of a table, which may have any number."""
FRAGMENT = re.compile(r"^\s*(?:\w+: |\"\"\")Of ", re.MULTILINE)
"""A docstring, or the description of a parameter, that begins with "Of": a fragment, where a noun phrase belongs."""
MISSING_CITATION = re.compile(r"\bpapers/[\w-]+\.md")
"""The repository has no folder `papers`; cite the arXiv number and section, or the released repository and file."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    """Path of a file relative to the package, for messages."""
    return str(path.relative_to(SOURCE))


def bindings(tree: ast.AST) -> Iterator[str]:
    """Every name that a module binds: variables, parameters, functions, classes, attributes, renamed imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def functions() -> Iterator[tuple[str, Function]]:
    """Every function of the package, with the place to name in a message."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{name(path)}:{node.lineno} {node.name}", node


def test_the_words_of_this_test_are_found() -> None:
    tree = ast.parse("def told(given, *, rest=1):\n    self.kept = [x for found in given]\n    import os as other")
    assert set(bindings(tree)) == {"told", "given", "rest", "kept", "found", "other"}
    assert FRAGMENT.search('    """Of the draw."""') and FRAGMENT.search("        seed: Of the draw.\n")
    assert not FRAGMENT.search("        seed: Seed of the random draw.\n")


def test_names_say_what_they_hold() -> None:
    names = [(bound, path) for path in FILES for bound in bindings(ast.parse(path.read_text(encoding="utf-8")))]
    vague = [f"{name(path)}: {bound}" for bound, path in names if bound.strip("_").lower() in VAGUE_NAMES]
    assert len(vague) < MAX_VAGUE_SHARE * len(names), "\n".join(vague)


def test_functions_fit_a_screen() -> None:
    long_functions = [
        place for place, node in functions() if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert len(long_functions) <= MAX_LONG_FUNCTIONS, "\n".join(long_functions)


def test_functions_take_few_parameters() -> None:
    crowded = []
    for place, node in functions():
        parameters = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if len([parameter for parameter in parameters if parameter not in ("self", "cls")]) > MAX_PARAMETERS:
            crowded.append(place)
    assert len(crowded) <= MAX_FUNCTIONS_WITH_MANY_PARAMETERS, "\n".join(crowded)


@pytest.mark.parametrize("pattern", [FRAGMENT, MISSING_CITATION], ids=["fragment", "citation"])
def test_docstrings_are_sentences_with_sources_that_exist(pattern: re.Pattern[str]) -> None:
    places = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not places, "\n".join(places)


def test_a_file_is_one_idea() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {path: length for path, length in lengths.items() if length > MAX_FILE_LINES}


def test_a_folder_has_a_dozen_modules() -> None:
    folders = {folder: list(folder.glob("*.py")) for folder in {path.parent for path in FILES}}
    full = {
        name(folder): len(files)
        for folder, files in folders.items()
        if len([path for path in files if path.name != "__init__.py"]) > MAX_FOLDER_MODULES
    }.keys() - FOLDERS_OF_ALIKE_MODULES
    assert not full, f"divide these folders by idea: {full}"
