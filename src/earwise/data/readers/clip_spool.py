"""Audio that stands inside a row, kept as a file under the hash of its bytes.

Rows of OpenAI's format hold their audio in base64, and rows of packed data sets as bytes, while everything behind a
manifest works with paths. The bytes are written once, however often a row is read and however many rows hold them, to
`EARWISE_HOME/clips`; equal audio has one path, so questions about one clip still share it.
"""

import base64
import binascii
import hashlib
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from earwise.audio.suffixes import UNKNOWN_SUFFIX
from earwise.errors import DataError
from earwise.files import atomic_write, cache_dir

SIGNATURES = (
    (re.compile(rb"RIFF....WAVE|RF64....WAVE", re.DOTALL), ".wav"),
    (re.compile(rb"fLaC"), ".flac"),
    (re.compile(rb"OggS"), ".ogg"),
    (re.compile(rb"ID3|\xff[\xe2-\xff]"), ".mp3"),
    (re.compile(rb"....ftyp", re.DOTALL), ".m4a"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), ".webm"),
    (re.compile(rb"FORM....AIF", re.DOTALL), ".aiff"),
    (re.compile(rb"#!AMR"), ".amr"),
    (re.compile(rb"caff"), ".caf"),
    (re.compile(rb"\.snd"), ".au"),
)
"""First bytes of a file -> the suffix that its name gets."""


def save(data: bytes) -> Path:
    """Keep the bytes of an audio file.

    Args:
        data: Content of the file.
    Returns:
        Absolute path of the file, `EARWISE_HOME/clips/XX/SHA256.SUFFIX`; it is not written if it is there already.
    Raises:
        DataError: if the folder cannot be written.
    """
    digest = hashlib.sha256(data).hexdigest()
    suffix = next((suffix for pattern, suffix in SIGNATURES if pattern.match(data)), UNKNOWN_SUFFIX)
    path = (cache_dir() / "clips" / digest[:2] / f"{digest}{suffix}").absolute()
    if not path.is_file() or path.stat().st_size != len(data):
        with atomic_write(path, "wb") as handle:
            handle.write(data)
    return path


def data_url_bytes(url: str, location: str) -> bytes:
    """The bytes of a `data:` URL; base64 may lack its padding, contain line breaks, or use the alphabet for URLs.

    Args:
        url: `data:audio/wav;base64,...`, or with `%XX` escapes and without `;base64`.
        location: Prefix of error messages.
    Raises:
        DataError: if it holds no bytes, or is not base64.
    """
    header, comma, body = url.partition(",")
    if not comma:
        raise DataError(f"{location}: {url[:40]!r} is no data: URL; write data:audio/wav;base64,...")
    try:
        data = _decode_base64(body) if header.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{location}: the audio is not base64 ({error}); encode the file's bytes again") from error
    if not data:
        raise DataError(f"{location}: the audio is empty; encode the file's bytes again")
    return data


def _decode_base64(body: str) -> bytes:
    compact = re.sub(r"\s+", "", unquote_to_bytes(body).decode("ascii") if "%" in body else body)
    compact = compact.replace("-", "+").replace("_", "/").rstrip("=")
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
