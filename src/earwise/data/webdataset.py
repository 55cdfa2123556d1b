"""Packs a manifest and its audio files into WebDataset shards, and unpacks them again, byte for byte.

For training that streams its data from elsewhere. The shards `000000.tar`, `000001.tar` ... hold one sample after the
other: `KEY.json` (the manifest row), `KEY.ogg` (its audio file), `KEY.1.ogg` (its second audio file); KEY is the row's
number. Every sample carries its own audio files, so each shard can be read alone. `shards.json` lists the shards and
their numbers of rows; until it is complete it says so.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO, cast

from earwise.data import manifest
from earwise.data.portable_rows import PortableRow, audio_parts, check_name, portable_rows, read_row, write_audio
from earwise.errors import DataError
from earwise.files import atomic_write, remove_abandoned, write_json
from earwise.types import Example

SHARD_BYTES = 500 << 20
SHARD_LIST = "shards.json"
UNFINISHED = "unfinished"
"""Key of the shard list while shards are being written: whoever unpacks what a killed process left is told."""
MAX_ROW_BYTES = 64 << 20
"""A row is held in memory; a larger one is no row."""
MAX_MEMBERS = 256
"""Files of one sample: a row and its clips."""
SPOOLED_BYTES = 32 << 20
"""A larger audio file is kept on the disk while its row is unpacked."""
END_MARK_BYTES = 1024
"""A tar file ends with so many zero bytes (POSIX, ustar format)."""


def to_webdataset(path: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> list[dict[str, Any]]:
    """Pack a manifest into tar shards.

    Args:
        path: Manifest.
        out: Folder to write the shards to.
        shard_bytes: A shard ends with the sample that reaches this many bytes of audio files.
    Returns:
        `name`, `rows` and `bytes` (of audio files) of each shard, in order.
    Raises:
        DataError: for an invalid row, a missing audio file, or a shard that cannot be written.
    """
    write_json(out / SHARD_LIST, {"shards": [], UNFINISHED: True})
    remove_abandoned(out)
    shards = []
    for number, members in groupby(_with_shard_numbers(portable_rows(path), shard_bytes), key=lambda pair: pair[0]):
        name, rows, size = f"{number:06d}.tar", 0, 0
        with (
            atomic_write(out / name, "wb") as handle,
            tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for _, row in members:
                _add_row(tar, row)
                rows, size = rows + 1, size + row.size
        shards.append({"name": name, "rows": rows, "bytes": size})
    if not shards:
        raise DataError(f"{path}: holds no rows; write at least one")
    write_json(out / SHARD_LIST, {"shards": shards})
    return shards


def from_webdataset(folder: Path, out: Path) -> int:
    """Unpack shards into a manifest, with its audio files beside it.

    Args:
        folder: Shards that `to_webdataset` wrote.
        out: Manifest to write; audio files go into its folder.
    Returns:
        Number of rows.
    Raises:
        DataError: for a missing or truncated shard, a sample without row or audio file, or a path that leads out of the
            folder.
    """
    names = sorted(path.name for path in folder.glob("*.tar"))
    if not names:
        raise DataError(f"{folder}: holds no .tar shards; name their folder")
    expected_rows = _expected_rows(folder)
    if expected_rows and (unlisted := sorted(set(names) - expected_rows.keys())):
        raise DataError(f"{folder}: {SHARD_LIST} does not list {unlisted[0]}; delete the one or the other")
    if missing := sorted(expected_rows.keys() - set(names)):
        raise DataError(
            f"{folder}: shard {missing[0]} is missing ({len(missing)} of {len(expected_rows)}); fetch it again"
        )
    rows = (row for name in names for row in _unpack(folder / name, out.parent, expected_rows.get(name)))
    return manifest.write(out, rows)


def _expected_rows(folder: Path) -> dict[str, int]:
    """Name of a shard -> its number of rows, from the shard list; empty if there is no list."""
    path = folder / SHARD_LIST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get(UNFINISHED):
            raise DataError(f"{folder}: is unfinished, its writing was interrupted; delete it and pack again")
        shards = content["shards"]
        return {shard["name"]: int(shard["rows"]) for shard in shards}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no list of shards ({error}); fetch it again, or delete it") from error


def _with_shard_numbers(rows: Iterable[PortableRow], shard_bytes: int) -> Iterator[tuple[int, PortableRow]]:
    """Each row with the number of the shard that it belongs to."""
    shard, size = 0, 0
    for row in rows:
        yield shard, row
        size += row.size
        if size >= shard_bytes:
            shard, size = shard + 1, 0


def _add_row(tar: tarfile.TarFile, row: PortableRow) -> None:
    """Append the JSON of a row and its audio files to a shard."""
    key = f"{row.number:09d}"
    data = json.dumps(manifest.to_row(row.example), ensure_ascii=False, allow_nan=False).encode()
    _add_member(tar, f"{key}.json", io.BytesIO(data), len(data))
    for number, file in enumerate(row.files):
        with file.open("rb") as handle:
            size = handle.seek(0, io.SEEK_END)
            handle.seek(0)
            _add_member(tar, _member_name(key, number, file.suffix), handle, size)


def _member_name(key: str, number: int, suffix: str) -> str:
    """Name in the shard of a row's audio file with this number, counted from 0."""
    return f"{key}{f'.{number}' if number else ''}{suffix.lower() or '.audio'}"


def _add_member(tar: tarfile.TarFile, name: str, handle: Any, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, handle)


def _unpack(shard: Path, root: Path, expected_rows: int | None) -> Iterator[Example]:
    """Write the audio files of a shard to `root` and yield its rows.

    Args:
        shard: Tar file.
        root: Folder that is unpacked into.
        expected_rows: Number of rows that the shard must have; None if it is not known.
    """
    count = 0
    _check_end(shard)
    try:
        with tarfile.open(shard, "r|") as tar:
            files = ((member.name, _content(tar, member, shard)) for member in tar)
            for key, members in groupby(files, key=lambda pair: pair[0].partition(".")[0]):
                with ExitStack() as stack:
                    contents = {
                        name: stack.enter_context(content) for name, content in islice(members, MAX_MEMBERS + 1)
                    }
                    yield _unpack_sample(key, contents, root, f"{shard}: sample {key}")
                count += 1
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: is not a complete tar file ({error}); fetch it again") from error
    if expected_rows is not None and count != expected_rows:
        raise DataError(f"{shard}: holds {count} of {expected_rows} rows; fetch it again")


def _unpack_sample(key: str, contents: Mapping[str, IO[bytes]], root: Path, location: str) -> Example:
    """Write the audio files of a sample; returns its row."""
    if len(contents) > MAX_MEMBERS:
        raise DataError(f"{location} has {len(contents)} files; at most {MAX_MEMBERS} are unpacked")
    if f"{key}.json" not in contents:
        raise DataError(f"{location} has no {key}.json; only shards that hold manifest rows can be unpacked")
    example = read_row(contents[f"{key}.json"].read(), root, location)
    for number, part in enumerate(audio_parts(example)):
        check_name(root, part.path, location)
        name = _member_name(key, number, PurePosixPath(part.path).suffix)
        if name not in contents:
            raise DataError(f"{location} has no {name}; pack it again")
        contents[name].seek(0)
        write_audio(root, part.path, cast(BinaryIO, contents[name]), location)
    return example


def _check_end(shard: Path) -> None:
    """Refuse a tar file without its end mark: one that was cut between two members looks whole otherwise."""
    with shard.open("rb") as handle:
        size = handle.seek(0, io.SEEK_END)
        handle.seek(max(0, size - END_MARK_BYTES))
        if size < END_MARK_BYTES or any(handle.read()):
            raise DataError(f"{shard}: is not a complete tar file (its end mark is missing); fetch it again")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> IO[bytes]:
    """The content of a member of a shard, in memory where it is small, else in a temporary file."""
    handle = tar.extractfile(member) if member.isreg() else None
    if handle is None:
        raise DataError(f"{shard}: {member.name!r} is no file; only shards of plain files can be unpacked")
    if member.name.endswith(".json") and member.size > MAX_ROW_BYTES:
        raise DataError(f"{shard}: {member.name!r} has {member.size:,} bytes, which is no row; do not unpack this")
    content = SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115 (closed with the other files of its sample)
    shutil.copyfileobj(handle, content, 1 << 20)
    content.seek(0)
    return content
