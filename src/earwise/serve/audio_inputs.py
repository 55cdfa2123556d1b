"""Turns the audio of a request into waveforms: base64 and data URLs always, http(s) and files only where allowed.

The second step of answering a request. A server that fetches whatever strangers name can be made to read its own
network and disk. Hosts and one folder are therefore allowed explicitly when the server is started, redirects are not
followed, and symbolic links cannot leave the folder.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from earwise.audio import Channel, decode_bytes
from earwise.serve.chat_request import AudioSource
from earwise.serve.errors import ApiError
from earwise.types import Waveform

FETCH_TIMEOUT_S = 20.0
SEND_SHORTER = "send a shorter clip, or parts of it in several requests"
"""What a client can do about a clip that is too long."""


@dataclass(frozen=True, slots=True)
class AudioAccess:
    """Which audio requests may refer to.

    Attributes:
        hosts: Names of hosts whose http(s) addresses may be fetched.
        folder: Folder below which file:// addresses may be read; None allows no files.
        max_bytes: Largest size of one file.
    """

    hosts: tuple[str, ...] = ()
    folder: Path | None = None
    max_bytes: int = 32 * 2**20


async def fetch_audio(source: AudioSource, access: AudioAccess) -> bytes:
    """The file of an audio part.

    Raises:
        ApiError: if it is not valid base64, cannot be fetched, or is not allowed.
    """
    if source.data is not None:
        return _from_base64(source.data, source.place)
    url = source.url or ""
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        head, comma, data = url.partition(",")
        if not comma:
            raise ApiError(f"{source.place}: a data URL without a comma; write data:audio/wav;base64,...")
        is_base64 = head.lower().endswith(";base64")
        return _from_base64(data, source.place) if is_base64 else unquote_to_bytes(data)
    if scheme == "file":
        return _read_file(url, source.place, access)
    if scheme in ("http", "https"):
        return await _download(url, source.place, access)
    raise ApiError(f"{source.place}: {url[:40]!r} is not a data:, http(s): or file: address")


def decode_inputs(
    files: Sequence[bytes],
    sources: Sequence[AudioSource],
    sample_rate: int,
    max_clip_s: float,
    max_total_s: float,
    channel: Channel = "mean",
) -> list[Waveform]:
    """Decode the audio files of a request; each file's header is checked before it is decoded.

    Args:
        files: The files, from `fetch_audio`.
        sources: Their sources, for error messages.
        sample_rate: Sample rate of the waveforms, in Hz.
        max_clip_s: Longest clip, in seconds.
        max_total_s: Longest audio of the request, all clips together, in seconds.
        channel: What the channels of a clip become: their `mean`, or the `first`.
    Raises:
        AudioError: if a file is not audio, is damaged, or is too long.
        ApiError: if the clips are too long together.
    """
    waveforms: list[Waveform] = []
    for data, source in zip(files, sources, strict=True):
        waveforms.append(
            decode_bytes(
                data, source.place, sample_rate, max_s=max_clip_s, channel=channel, long_audio_remedy=SEND_SHORTER
            )
        )
        total_s = sum(len(waveform) for waveform in waveforms) / sample_rate
        if total_s > max_total_s:
            raise ApiError(
                f"{source.place}: the clips up to here last {total_s:.1f} s, a request may hold {max_total_s:g} s; "
                "send fewer, or start the server with a larger --max-audio-s", param="messages",
            )  # fmt: skip
    return waveforms


def _from_base64(data: str, place: str) -> bytes:
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{place}: is not valid base64 ({error})", param="messages") from error


def _read_file(url: str, place: str, access: AudioAccess) -> bytes:
    """Read a file:// address below the allowed folder, symbolic links resolved."""
    if access.folder is None:
        raise ApiError(
            f"{place}: files of the server may not be read; send the audio itself, or start with --allow-files"
        )
    path, folder = Path(unquote(urlsplit(url).path)), access.folder.resolve()
    real_path = path.resolve()
    if not real_path.is_relative_to(folder) or not real_path.is_file():
        raise ApiError(f"{place}: {path} is not a file in the folder that may be read (--allow-files)")
    if real_path.stat().st_size > access.max_bytes:
        raise ApiError(f"{place}: {path} is larger than {access.max_bytes / 2**20:g} MB", 413)
    return real_path.read_bytes()


async def _download(url: str, place: str, access: AudioAccess) -> bytes:
    """Download an http(s) address of an allowed host, up to the largest size, without following redirects."""
    import httpx

    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if host not in access.hosts:
        raise ApiError(
            f"{place}: nothing may be fetched from {host!r}; send the audio itself, or start with --allow-host"
        )
    data = bytearray()
    try:
        async with httpx.AsyncClient(timeout=FETCH_TIMEOUT_S) as client, client.stream("GET", url) as response:
            if response.status_code != 200:
                raise ApiError(f"{place}: {host} answers with status {response.status_code} instead of 200")
            async for block in response.aiter_bytes():
                data += block
                if len(data) > access.max_bytes:
                    raise ApiError(f"{place}: is larger than {access.max_bytes / 2**20:g} MB", 413)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiError(f"{place}: cannot be fetched ({error or type(error).__name__})") from error
    return bytes(data)
