"""Reads WebDataset shards of other programs: tar files whose members share a name up to the first dot.

`a/0001.flac`, `a/0001.json`, `a/0001.txt` are one sample. A `.json` object gives the columns, a `.txt` or `.cls` member
the column `text` or `label`, and audio members the clips, in the order of the archive. Names in the archive decide
nothing but suffixes. Sizes are bounded; links and devices are refused.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from earwise.audio import AUDIO_SUFFIXES
from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.foreign_row import Clip, DatasetLocation, ForeignRow
from earwise.data.sources.example_builder import split_from_name
from earwise.errors import DataError

MAX_TEXT_BYTES = 16 << 20
TEXT_COLUMNS = {"txt": "text", "text": "text", "cls": "label", "caption": "text", "transcript": "transcript"}


def tar_files(path: Path) -> list[Path]:
    """The shards of a folder, or the file itself."""
    return [path] if path.is_file() else sorted((*path.glob("*.tar"), *path.glob("*.tar.gz"), *path.glob("*.tgz")))


def read(location: DatasetLocation, store: ClipStore) -> Iterator[ForeignRow]:
    """One row per sample.

    Raises:
        DataError: for a damaged shard, a member that is no plain file, an oversized text, or a sample without audio.
    """
    for shard in tar_files(location.path):
        split = None if location.split is None else split_from_name(shard)
        if location.split is not None and split != location.split:
            continue
        yield from _read_shard(shard, store)


@dataclass(slots=True)
class _Sample:
    """The members of a shard that share a key, as far as they were read."""

    key: str
    clips: list[Clip] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


def _read_shard(shard: Path, store: ClipStore) -> Iterator[ForeignRow]:
    sample: _Sample | None = None
    try:
        with tarfile.open(shard, "r|*") as tar:
            for member in tar:
                if member.isdir() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if not member.isreg():
                    raise DataError(f"{shard}: {member.name!r:.60} is a link or a device; only plain files are read")
                key, extension = _split_name(member.name)
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield _row(shard, sample)
                    sample = _Sample(key)
                content = tar.extractfile(member) or io.BytesIO()
                _add_member(sample, content, member, extension, f"{shard}: {member.name}", store)
            if sample is not None:
                yield _row(shard, sample)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: is not a complete tar file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror or error}); fetch it again") from error


def _split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, as WebDataset divides them: at the first dot of the last part of its path.

    >>> _split_name("a.b/0001.seg.FLAC")
    ('a.b/0001', 'seg.flac')
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _add_member(
    sample: _Sample, content: IO[bytes], member: tarfile.TarInfo, extension: str, location: str, store: ClipStore
) -> None:
    """Put a member of a shard into its sample; members of other kinds (images, arrays) are passed over."""
    suffix = f".{extension.rpartition('.')[2]}"
    if suffix in AUDIO_SUFFIXES:
        sample.clips.append(Clip(store.add_stream(content, member.name, location)))
    elif suffix == ".json" or extension in TEXT_COLUMNS:
        if member.size > MAX_TEXT_BYTES:
            raise DataError(f"{location}: {member.size} bytes of text; a sample may have 16 MiB")
        try:
            text = content.read().decode("utf-8-sig")
            columns = json.loads(text) if suffix == ".json" else {TEXT_COLUMNS[extension]: text.strip()}
        except ValueError as error:
            raise DataError(f"{location}: is not readable ({error}); write it again") from error
        if not isinstance(columns, dict):
            raise DataError(f"{location}: holds a JSON {type(columns).__name__} where an object is expected")
        sample.columns |= columns


def _row(shard: Path, sample: _Sample) -> ForeignRow:
    """The sample as a row; its key is its id unless it has one. Its clips replace a path that its columns give."""
    if not sample.clips:
        raise DataError(
            f"{shard}: sample {sample.key!r:.60} holds no audio; a sample is audio and a .json or .txt of one name"
        )
    return ForeignRow(
        f"{shard}: sample {sample.key}", {"id": sample.key} | sample.columns | {"audio": sample.clips}, shard.parent
    )
