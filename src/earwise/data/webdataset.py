"""A manifest and its sounds as WebDataset shards, and back, bit for bit.

Between a folder of files and whoever streams data from elsewhere. `000000.tar` ... hold samples one after the other:
`KEY.json` (the manifest row), `KEY.ogg` (its sound), `KEY.1.ogg` (a second one); KEY is the row's number. Every sample
carries its own sounds, so each can be read alone. `shards.json`, written last, says how many there must be.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from earwise.data import manifest
from earwise.data.portable_rows import Sample, read_row, samples, sounds, write_sound
from earwise.errors import DataError
from earwise.files import atomic_write, write_json
from earwise.types import Example

SHARD_BYTES = 500 << 20
SHARDS = "shards.json"


def to_webdataset(path: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> list[dict[str, Any]]:
    """Pack a manifest into tar shards.

    Args:
        path: Manifest.
        out: Folder of the shards.
        shard_bytes: A shard ends with the sample that reaches this many bytes of sound.
    Returns:
        Name, rows and bytes of sound of each shard, in order.
    Raises:
        DataError: for a bad row, a missing sound, or a disk that refuses.
    """
    shards = []
    for number, members in groupby(_numbered(samples(path), shard_bytes), key=lambda pair: pair[0]):
        name, rows, size = f"{number:06d}.tar", 0, 0
        with (
            atomic_write(out / name, "wb") as handle,
            tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for _, sample in members:
                _put(tar, sample)
                rows, size = rows + 1, size + sample.size
        shards.append({"name": name, "rows": rows, "bytes": size})
    if not shards:
        raise DataError(f"{path}: holds no rows; write at least one")
    write_json(out / SHARDS, {"shards": shards})
    return shards


def from_webdataset(folder: Path, out: Path) -> int:
    """Unpack shards into a manifest and its sounds beside it.

    Args:
        folder: Shards as `to_webdataset` makes them.
        out: Manifest to write; sounds go into its folder.
    Returns:
        Number of rows.
    Raises:
        DataError: for a missing or torn shard, a sample without row or sound, or a path that leads out of the folder.
    """
    names = sorted(path.name for path in folder.glob("*.tar"))
    if not names:
        raise DataError(f"{folder}: holds no .tar shards; name their folder")
    stated = _stated(folder)
    if missing := sorted(stated.keys() - set(names)):
        raise DataError(f"{folder}: shard {missing[0]} is missing ({len(missing)} of {len(stated)}); fetch it again")
    rows = (row for name in names for row in _unpacked(folder / name, out.parent, stated.get(name)))
    return manifest.write(out, rows)


def _stated(folder: Path) -> dict[str, int]:
    """Rows that each shard must have, where that is written down."""
    at = folder / SHARDS
    try:
        return {one["name"]: int(one["rows"]) for one in json.loads(at.read_text(encoding="utf-8"))["shards"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{at}: is no list of shards ({error}); fetch it again, or delete it") from error


def _numbered(found: Iterable[Sample], shard_bytes: int) -> Iterator[tuple[int, Sample]]:
    shard, size = 0, 0
    for sample in found:
        yield shard, sample
        size += sample.size
        if size >= shard_bytes:
            shard, size = shard + 1, 0


def _put(tar: tarfile.TarFile, sample: Sample) -> None:
    key = f"{sample.number:09d}"
    row = json.dumps(manifest.to_row(sample.example), ensure_ascii=False, allow_nan=False).encode()
    _add(tar, f"{key}.json", io.BytesIO(row), len(row))
    for number, file in enumerate(sample.files):
        with file.open("rb") as handle:
            size = handle.seek(0, io.SEEK_END)
            handle.seek(0)
            _add(tar, _member(key, number, file.suffix), handle, size)


def _member(key: str, number: int, suffix: str) -> str:
    return f"{key}{f'.{number}' if number else ''}{suffix.lower() or '.audio'}"


def _add(tar: tarfile.TarFile, name: str, handle: Any, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, handle)


def _unpacked(shard: Path, root: Path, rows: int | None) -> Iterator[Example]:
    """The rows of a shard, their sounds written; `rows` is how many there must be, if that is known."""
    count = 0
    try:
        with tarfile.open(shard, "r|") as tar:
            files = ((member.name, _bytes(tar, member, shard)) for member in tar)
            for key, members in groupby(files, key=lambda pair: pair[0].partition(".")[0]):
                found = dict(members)
                where = f"{shard}: sample {key}"
                if f"{key}.json" not in found:
                    raise DataError(f"{where} has no {key}.json; only shards that hold manifest rows can be unpacked")
                example = read_row(found[f"{key}.json"], root, where)
                for number, part in enumerate(sounds(example)):
                    name = _member(key, number, PurePosixPath(part.path).suffix)
                    if name not in found:
                        raise DataError(f"{where} has no {name}; pack it again")
                    write_sound(root, part.path, found[name], where)
                count += 1
                yield example
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: is no whole tar file ({error}); fetch it again") from error
    if rows is not None and count != rows:
        raise DataError(f"{shard}: holds {count} of {rows} rows; fetch it again")


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> bytes:
    handle = tar.extractfile(member)
    if handle is None:
        raise DataError(f"{shard}: {member.name!r} is no file; only shards of plain files can be unpacked")
    return handle.read()
