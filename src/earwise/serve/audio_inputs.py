"""Turns the audio of a request into waveforms: base64 and data URLs always, http(s) and files only where allowed.

The second step of answering a request. A server that fetches whatever strangers name can be made to read its own
network and disk. Hosts and one folder are therefore allowed explicitly when the server is started, redirects are not
followed, and symbolic links cannot leave the folder. Addresses are fetched in the event loop; everything else runs in a
thread beside it.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from earwise.audio import Channel, decode_bytes
from earwise.serve.chat_request import AudioSource
from earwise.serve.errors import ApiError
from earwise.serve.http.limits import AudioAccess
from earwise.types import Waveform

FETCH_TIMEOUT_S = 20.0
SEND_SHORTER = "send a shorter clip, or parts of it in several requests"
"""What a client can do about a clip that is too long."""
MAX_PERCENT_BYTES = 256 * 2**10
"""Largest data URL without base64: percent-encoding takes a hundred times its size in memory to decode."""
BASE64_PIECE = 2**20
"""Characters of base64 that are decoded at a time; a multiple of four."""
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_WHITESPACE = b" \t\r\n\f\v"


def is_remote(source: AudioSource) -> bool:
    """Whether the audio is at an http(s) address."""
    return (source.url or "").partition(":")[0].lower() in ("http", "https")


async def fetch_remote(sources: Sequence[AudioSource], access: AudioAccess) -> dict[int, bytes]:
    """Fetch the files at http(s) addresses, one after the other.

    Returns:
        For the number of each such source, its file.
    Raises:
        ApiError: if one is not allowed, cannot be fetched, or they are too large together.
    """
    files: dict[int, bytes] = {}
    remaining = access.max_bytes
    for number, source in enumerate(sources):
        if is_remote(source):
            files[number] = await _download(source.url or "", source.place, access, remaining)
            remaining -= len(files[number])
    return files


def decode_inputs(
    sources: Sequence[AudioSource], fetched: Mapping[int, bytes], access: AudioAccess, *,
    sample_rate: int, max_clip_s: float, max_total_s: float, channel: Channel = "mean",
) -> list[Waveform]:  # fmt: skip
    """Decode the audio of a request, one clip after the other.

    Args:
        sources: Where the clips are.
        fetched: Files from `fetch_remote`, by the number of their source.
        access: Files that requests may refer to.
        sample_rate: Sample rate of the waveforms, in Hz.
        max_clip_s: Longest clip, in seconds.
        max_total_s: Longest audio of the request, all clips together, in seconds.
        channel: What the channels of a clip become: their `mean`, or the `first`.
    Raises:
        AudioError: if a file is not audio, is damaged, or is too long.
        ApiError: if a file cannot be read or is not allowed, or the clips are too long together.
    """
    waveforms: list[Waveform] = []
    total_s = 0.0
    for number, source in enumerate(sources):
        data = fetched[number] if number in fetched else _read(source, access)
        waveforms.append(
            decode_bytes(
                data, source.place, sample_rate, max_s=max_clip_s, channel=channel, long_audio_remedy=SEND_SHORTER
            )
        )
        total_s += len(waveforms[-1]) / sample_rate
        if total_s > max_total_s:
            raise ApiError(
                f"{source.place}: the clips up to here last {total_s:.1f} s, a request may hold {max_total_s:g} s; "
                "send fewer, or start the server with a larger --max-audio-s", param="messages",
            )  # fmt: skip
    return waveforms


def _read(source: AudioSource, access: AudioAccess) -> bytes:
    """The file of an audio part that is in the request or on this machine.

    Raises:
        ApiError: if it is not valid base64, cannot be read, or is not allowed.
    """
    if source.data is not None:
        return _from_base64(source.data, source.place)
    url = source.url or ""
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        head, comma, data = url.partition(",")
        if not comma:
            raise ApiError(f"{source.place}: a data URL without a comma; write data:audio/wav;base64,...")
        if head.lower().endswith(";base64"):
            return _from_base64(data, source.place)
        if len(data) > MAX_PERCENT_BYTES:
            raise ApiError(f"{source.place}: a large data URL without base64; write data:audio/wav;base64,...")
        return unquote_to_bytes(data)
    if scheme == "file":
        return _read_file(url, source.place, access)
    raise ApiError(f"{source.place}: {url[:40]!r} is not a data:, http(s): or file: address")


def _from_base64(data: str, place: str) -> bytes:
    """Decode base64 with either alphabet, with or without padding; line breaks are skipped.

    It is done piece by piece, because no other thread runs while a piece is decoded.
    """
    compact, decoded = bytearray(), bytearray()
    try:
        for start in range(0, len(data), BASE64_PIECE):
            piece = data[start : start + BASE64_PIECE].encode("ascii")
            compact += piece.translate(_STANDARD_ALPHABET, _WHITESPACE)
        compact = compact.rstrip(b"=")
        if b"=" in compact:
            raise ValueError("padding in the middle")
        compact += b"=" * (-len(compact) % 4)
        for start in range(0, len(compact), BASE64_PIECE):
            decoded += base64.b64decode(compact[start : start + BASE64_PIECE], validate=True)
        return bytes(decoded)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{place}: is not valid base64 ({str(error)[:80]})", param="messages") from error


def _read_file(url: str, place: str, access: AudioAccess) -> bytes:
    """Read a file:// address below the allowed folder, symbolic links resolved."""
    if access.folder is None:
        raise ApiError(
            f"{place}: files of the server may not be read; send the audio itself, or start with --allow-files"
        )
    refusal = ApiError(f"{place}: {url[:80]!r} is not a file in the folder that may be read (--allow-files)")
    try:
        real_path = Path(unquote(urlsplit(url).path)).resolve()
        if not real_path.is_relative_to(access.folder.resolve()) or not real_path.is_file():
            raise refusal
        if real_path.stat().st_size > access.max_bytes:
            raise ApiError(f"{place}: {url[:80]!r} is larger than {access.max_bytes / 2**20:g} MB", 413)
        return real_path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name that is too long, links in a circle
        raise refusal from error


async def _download(url: str, place: str, access: AudioAccess, max_bytes: int) -> bytes:
    """Download an http(s) address of an allowed host, up to a size in bytes, without following redirects."""
    import httpx

    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # raises ValueError if the port is none
    except ValueError:
        host = None
    if host not in access.hosts:
        raise ApiError(
            f"{place}: nothing may be fetched from {str(host)[:80]!r}; send the audio itself, or start with "
            "--allow-host"
        )
    data = bytearray()
    try:
        async with httpx.AsyncClient(timeout=FETCH_TIMEOUT_S) as client, client.stream("GET", url) as response:
            if response.status_code != 200:
                raise ApiError(f"{place}: {host} answers with status {response.status_code} instead of 200")
            async for block in response.aiter_bytes():
                data += block
                if len(data) > max_bytes:
                    raise ApiError(
                        f"{place}: the files of the request are larger than {access.max_bytes / 2**20:g} MB", 413
                    )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, OverflowError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:120]
        raise ApiError(f"{place}: cannot be fetched ({reason})") from error
    return bytes(data)
