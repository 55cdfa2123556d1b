"""Writes clips that are stored inside a data set (Parquet, tar, Arrow) to files, each named by the hash of its bytes.

The name that a data set gives a clip is used for its suffix only, so no archive can choose where it is written. The
same bytes are written once. A clip is read in pieces and its size is bounded.
"""

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from earwise.audio import AUDIO_SUFFIXES
from earwise.errors import DataError

MAX_CLIP_BYTES = 1 << 30  # an hour and a half of 48 kHz stereo in 16 bits; larger members are no clips
_PIECE_BYTES = 1 << 20
_MAGIC = (
    (b"RIFF", ".wav"), (b"RF64", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"),
    (b"\xff\xfb", ".mp3"), (b"\xff\xf3", ".mp3"), (b"\xff\xf2", ".mp3"), (b"\xff\xf1", ".aac"),
    (b"\xff\xf9", ".aac"), (b"FORM", ".aiff"), (b"\x1aE\xdf\xa3", ".webm"), (b"#!AMR", ".amr"), (b"caff", ".caf"),
    (b".snd", ".au"), (b"0&\xb2u", ".wma"),
)  # fmt: skip


class ClipStore:
    """The folder that clips are written to.

    Args:
        folder: Folder of the files; created with the first clip.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, data: bytes, name: str, location: str) -> Path:
        """Write a clip that is held in memory; see `add_stream`."""
        return self.add_stream(io.BytesIO(data), name, location)

    def add_stream(self, stream: IO[bytes], name: str, location: str) -> Path:
        """Write a clip.

        Args:
            stream: Content of the file.
            name: Name that the data set gives the clip; only its suffix is used.
            location: Prefix of error messages.
        Returns:
            The file, `FOLDER/HASH.SUFFIX`.
        Raises:
            DataError: for an empty clip, one above `MAX_CLIP_BYTES`, or a disk that refuses.
        """
        digest, size = hashlib.sha256(), 0
        head = stream.read(_PIECE_BYTES)
        if not head:
            raise DataError(
                f"{location}: the clip {name!r:.60} is empty; take the row out, or fetch the data set again"
            )
        temporary = self.folder / f".{os.getpid()}-{os.urandom(6).hex()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as handle:
                piece = head
                while piece:
                    size += len(piece)
                    if size > MAX_CLIP_BYTES:
                        raise DataError(f"{location}: the clip {name!r:.60} is larger than 1 GiB; cut it")
                    digest.update(piece)
                    handle.write(piece)
                    piece = stream.read(_PIECE_BYTES)
            path = self.folder / f"{digest.hexdigest()[:32]}{clip_suffix(name, head)}"
            temporary.replace(path)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror or error}); free some space, or choose another "
                "folder"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return path


def clip_suffix(name: str, head: bytes) -> str:
    """Suffix of an audio file: the one of its name if it is an audio suffix, otherwise the one that its bytes show.

    >>> clip_suffix("a/b.FLAC", b""), clip_suffix("", b"RIFF...."), clip_suffix("run.sh", b"#!/bin/sh")
    ('.flac', '.wav', '.audio')
    """
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix in AUDIO_SUFFIXES:
        return suffix
    if head[4:8] == b"ftyp":
        return ".m4a"
    return next((suffix for magic, suffix in _MAGIC if head.startswith(magic)), ".audio")
