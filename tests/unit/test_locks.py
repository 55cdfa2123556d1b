"""The locks: complete, hashed, in agreement with pyproject.toml and each other, and used wherever we install."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = ("base", "serve", "docs", "dev", "torch-cuda")


@pytest.fixture(scope="module")
def locks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("locks", ROOT / "scripts" / "locks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements(name: str) -> list[Requirement]:
    text = re.sub(r" *\\\n +--hash=\S+", "", (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8"))
    return [Requirement(line) for line in text.splitlines()]


def version_for(package: str, python: str, name: str) -> Version | None:
    """The locked version of a package for a Python on Linux."""
    environment = {
        "python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "os_name": "posix",
    }  # fmt: skip
    versions = [
        Version(str(requirement.specifier).removeprefix("=="))
        for requirement in requirements(name)
        if requirement.name == package and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]
    assert len(versions) <= 1, f"{package} twice for Python {python}"
    return versions[0] if versions else None


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_version_or_a_hash(name: str) -> None:
    for line in (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["base", "serve", "docs", "dev"])
def test_a_lock_holds_what_pyproject_names_within_its_ranges(name: str, python: str, locks: ModuleType) -> None:
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(line for extra in locks.EXTRAS[name] for line in extras[extra]), locks.BUILD]
    for requirement in map(Requirement, named):
        package = re.sub(r"[-_.]+", "-", requirement.name).lower()
        version = version_for(package, python, "torch-cuda" if package == "torch" else name)
        assert version is not None, f"{package} is not locked; run make lock"
        assert requirement.specifier.contains(version), f"{package} {version} is not {requirement}; run make lock"


@pytest.mark.parametrize("name", ["base", "serve"])
def test_smaller_locks_are_parts_of_the_largest(name: str, locks: ModuleType) -> None:
    largest = locks.locked("dev")
    assert {package: versions for package, versions in locks.locked(name).items() if versions - largest[package]} == {}


def test_torch_and_what_only_its_gpu_build_needs_stand_apart(locks: ModuleType) -> None:
    assert all(locks.OF_TORCH.match(f"{requirement.name}==") for requirement in requirements("torch-cuda"))
    for name in ("base", "serve", "docs", "dev"):
        assert not [each.name for each in requirements(name) if locks.OF_TORCH.match(f"{each.name}==")]


def test_all_that_installs_goes_by_the_locks() -> None:
    makefile, dockerfile = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "Dockerfile"))
    assert "LOCKED := --require-hashes --only-binary :all: --no-deps" in makefile
    for stamp, lock in (("ready-demo", "base"), ("ready-dev", "dev"), ("ready-torch", "torch-cuda")):
        recipe = re.search(rf"^\.venv/{stamp}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        assert recipe and f"$(LOCKED) -r locks/{lock}.txt" in recipe[1]
    for lock in ("torch-cuda", "serve"):
        assert f"--require-hashes --only-binary :all: --no-deps -r locks/{lock}.txt" in dockerfile


def test_lower_bounds_are_stated_for_everything() -> None:
    """`make test-oldest` tests lower bounds, so there is one for each package."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    assert [line for line in lines if ">=" not in line] == []


def test_blocks_keep_markers_and_hashes(locks: ModuleType) -> None:
    text = (
        "a-b==1 ; os_name == 'nt' \\\n    --hash=sha256:0 \\\n    --hash=sha256:1\ntorch==2 \\\n    --hash=sha256:2\n"
    )
    assert "".join(locks.blocks_of(text)) == text
    assert [bool(locks.OF_TORCH.match(block)) for block in locks.blocks_of(text)] == [False, True]


def test_differences_name_both_versions(locks: ModuleType) -> None:
    lock = {"peft": {"0.21.2"}, "numpy": {"2.4.6", "2.5.5"}, "trl": {"1.16.0"}}
    assert locks.differences({"peft": "0.22.0", "numpy": "2.5.5", "other": "1"}, lock) == ["peft 0.22.0, locked 0.21.2"]
    assert locks.differences({"numpy": "2.6.0"}, lock) == ["numpy 2.6.0, locked 2.4.6 or 2.5.5"]


def test_installed_versions_are_compared_without_their_build(locks: ModuleType) -> None:
    assert "torch" in locks.installed() and "types-pyyaml" in locks.installed()
    assert not [version for version in locks.installed().values() if "+" in version]
