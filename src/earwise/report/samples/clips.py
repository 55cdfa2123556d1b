"""The clips of a page: embedded until a budget of bytes is spent, the others linked by their path.

Part of `earwise.report`. A clip that several questions share is embedded once.
"""

import base64
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from earwise.audio import decode, encode_ogg
from earwise.errors import AudioError
from earwise.files import relative_path
from earwise.types import AudioClip

EMBED_AS_IS = 200_000
"""Size in bytes from which a file is encoded again, as mono Ogg Vorbis."""
PLAYER_RATE = 24_000
"""Sample rate in Hz of clips that are encoded again."""
MAX_CLIP_S = 30.0
MIME_TYPES = {".wav": "audio/wav", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".flac": "audio/flac"}


def data_url(clip: AudioClip) -> str:
    """A clip as a `data:` URL; large files and segments are mixed down to mono, cut to `MAX_CLIP_S` and encoded again.

    Raises:
        AudioError: if the file cannot be read.
    """
    mime, path = MIME_TYPES.get(clip.path.suffix.lower()), clip.path
    if mime is not None and not clip.is_segment and path.is_file() and path.stat().st_size <= EMBED_AS_IS:
        data = path.read_bytes()
    else:
        waveform = decode(clip, PLAYER_RATE, long_audio="truncate", max_s=MAX_CLIP_S)
        mime, data = "audio/ogg", encode_ogg(waveform, PLAYER_RATE)
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def players(clips: Sequence[AudioClip], budget: int) -> tuple[str, int]:
    """A player for each clip.

    Args:
        clips: The files, or segments of them.
        budget: Number of bytes that the clips may take; a clip that does not fit, or cannot be read, is named instead.
    Returns:
        The players (HTML), and the number of bytes that they take.
    """
    elements, bytes_used = [], 0
    for clip in clips:
        name = escape(clip.path.name, quote=True)
        try:
            url = data_url(clip)
        except AudioError:
            elements.append(f'<p class="noclip">{name} cannot be read here</p>')
            continue
        if bytes_used + len(url) > budget:
            elements.append('<p class="noclip">clip left out to keep the page small</p>')
            continue
        bytes_used += len(url)
        elements.append(f'<audio controls preload="metadata" aria-label="{name}" src="{url}"></audio>')
    return "".join(elements), bytes_used


def page_clips(clips: Iterable[AudioClip], folder: Path, budget: int) -> dict[AudioClip, dict[str, Any]]:
    """What the page knows of each clip.

    Args:
        clips: The clips in the order in which the budget is spent; repeated ones count once.
        folder: Folder of the page, from which links start.
        budget: Number of bytes that embedded clips may take, as base64.
    Returns:
        For each clip its `name`, and `url` if it is embedded, `href` if it is linked (with the `start` and `end` of a
        segment in seconds), or neither if there is no such file.
    """
    entries: dict[AudioClip, dict[str, Any]] = {}
    for clip in dict.fromkeys(clips):
        entry: dict[str, Any] = {"name": clip.path.name}
        if not clip.path.is_file():
            entries[clip] = entry
            continue
        url = _embedded(clip, budget)
        if url is not None:
            budget -= len(url)
            entry["url"] = url
        else:
            entry |= {"href": _link(clip.path, folder), "start": clip.start, "end": clip.end}
        entries[clip] = entry
    return entries


def _embedded(clip: AudioClip, budget: int) -> str | None:
    """The clip as a `data:` URL; None if it does not fit the budget or cannot be read."""
    if budget <= 0:
        return None
    try:
        url = data_url(clip)
    except AudioError:
        return None
    return url if len(url) <= budget else None


def _link(path: Path, folder: Path) -> str:
    """The URL of a file relative to a folder. It begins with a dot or a slash, so that no file name is read as a
    scheme."""
    relative = relative_path(path, folder).replace(os.sep, "/")
    prefix = "" if relative.startswith(("/", "../")) else "./"
    return prefix + quote(relative, safe="/")
