"""From the sounds of a request to waveforms: base64 and data URLs always, http(s) and files only where it was allowed.

Second step of an answer. A server that fetches what strangers name can be made to look into its own network and disk:
so hosts and one folder are named at the start, redirects are not followed, and links out of the folder lead nowhere.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from earwise.audio import decode_bytes
from earwise.serve.chat_request import Sound
from earwise.serve.errors import Refusal
from earwise.types import Waveform

FETCH_S = 20.0


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may name.

    Attributes:
        hosts: Names of hosts whose http(s) addresses are fetched.
        folder: Files below it may be named by file:// addresses; None: no files.
        max_bytes: Of one sound.
    """

    hosts: tuple[str, ...] = ()
    folder: Path | None = None
    max_bytes: int = 32 * 2**20


async def fetch(sound: Sound, access: Access) -> bytes:
    """The file that a sound is in.

    Raises:
        Refusal: if it is no base64, not to be had, or not allowed.
    """
    if sound.data is not None:
        return _base64(sound.data, sound.where)
    url = sound.url or ""
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        head, comma, data = url.partition(",")
        if not comma:
            raise Refusal(f"{sound.where}: a data URL without a comma; write data:audio/wav;base64,...")
        return _base64(data, sound.where) if head.lower().endswith(";base64") else unquote_to_bytes(data)
    if scheme == "file":
        return _file(url, sound.where, access)
    if scheme in ("http", "https"):
        return await _download(url, sound.where, access)
    raise Refusal(f"{sound.where}: {url[:40]!r} is no data:, http(s): or file: address")


def decoded(files: Sequence[bytes], sounds: Sequence[Sound], rate: int, clip_s: float, all_s: float) -> list[Waveform]:
    """Waveforms at `rate` Hz; of each file the header is looked at before it is decoded.

    Args:
        files: As `fetch` gave them.
        sounds: Where they stood, for errors.
        rate: Hz.
        clip_s: Longest clip.
        all_s: Longest request, all its clips together.
    Raises:
        AudioError: if one is no audio, broken, or too long.
        Refusal: if they are too long together.
    """
    waves: list[Waveform] = []
    for data, sound in zip(files, sounds, strict=True):
        waves.append(decode_bytes(data, sound.where, rate, max_s=clip_s))
        heard = sum(len(wave) for wave in waves) / rate
        if heard > all_s:
            raise Refusal(
                f"{sound.where}: the sounds up to here last {heard:.1f} s, a request may hold {all_s:g} s; send fewer, "
                "or start the server with a larger --max-audio-s", param="messages",
            )  # fmt: skip
    return waves


def _base64(data: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(f"{where}: is no base64 ({error})", param="messages") from error


def _file(url: str, where: str, access: Access) -> bytes:
    if access.folder is None:
        raise Refusal(f"{where}: files of the server are not read; send the sound itself, or start with --allow-files")
    path, folder = Path(unquote(urlsplit(url).path)), access.folder.resolve()
    real = path.resolve()
    if not real.is_relative_to(folder) or not real.is_file():
        raise Refusal(f"{where}: {path} is no file in the folder that may be read (--allow-files)")
    if real.stat().st_size > access.max_bytes:
        raise Refusal(f"{where}: {path} is larger than {access.max_bytes / 2**20:g} MB", 413)
    return real.read_bytes()


async def _download(url: str, where: str, access: Access) -> bytes:
    import httpx

    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if host not in access.hosts:
        raise Refusal(f"{where}: nothing is fetched from {host!r}; send the sound itself, or start with --allow-host")
    data = bytearray()
    try:
        async with httpx.AsyncClient(timeout=FETCH_S) as client, client.stream("GET", url) as response:
            if response.status_code != 200:
                raise Refusal(f"{where}: {host} answers {response.status_code}, 200 is wanted")
            async for block in response.aiter_bytes():
                data += block
                if len(data) > access.max_bytes:
                    raise Refusal(f"{where}: is larger than {access.max_bytes / 2**20:g} MB", 413)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refusal(f"{where}: cannot be fetched ({error or type(error).__name__})") from error
    return bytes(data)
