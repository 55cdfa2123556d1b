"""The keys and tags by which rows of any origin name sound.

A row that names sound in a way that is not understood must be refused, never read as text: a model that is trained or
measured on such rows hears nothing, and nothing in the numbers shows it. `messages.py` puts clips in the place of tags,
`data/example_rows.py` refuses rows in which a tag or a key is left over.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from earwise.audio import AUDIO_SUFFIXES

CLIP_KEYS = (
    "audios", "audio", "sounds", "sound", "audio_path", "audio_paths", "audio_file", "audio_files", "audio_filepath",
    "audio_filepaths", "audio_url", "audio_urls", "wav", "wavs", "wav_path", "sound_path", "speech_path",
)  # fmt: skip
"""Keys of a row, in any case, whose value is a clip or a list of clips."""
OTHER_SOUND_KEYS = (
    "audio_id", "audio_name", "audio_bytes", "audio_array", "audio_filename", "file_name", "filename", "file", "files",
    "filepath", "file_path", "path", "paths", "wav_file", "wav_files", "wav_paths", "sound_file", "sound_files",
    "speech", "speeches", "speech_file", "clip", "clips", "clip_path", "recording", "recordings", "voice_path", "mp3",
    "flac", "ogg", "media", "media_path", "input_audio", "video", "videos",
)  # fmt: skip
"""Keys that often name sound, but not by one agreed form: a row without clips that has one of them is refused."""
TAG = re.compile(
    r"(?:Audio \d+: )?(?:"
    r"<audio>(?P<path>[^<>\n]+)</audio>"  # Qwen-Audio: the path inside the tag
    r"|<\|audio_bos\|>(?:<\|AUDIO\|>)+<\|audio_eos\|>"  # Qwen2-Audio
    r"|<\|audio_start\|>(?:<\|audio_pad\|>)+<\|audio_end\|>"  # Qwen3-Omni
    r"|<Speech><SpeechHere></Speech>"  # SALMONN
    r"|<(?:audio|sound|speech)(?:[-_ ]?(?P<number>\d+))?>"  # ms-swift, LLaMA-Factory, Audio Flamingo
    r"|<\|audio_(?P<placeholder>\d+)\|>"  # Phi-4
    r"|<\|AUDIO\|>|<\|audio\|>|<audio_soft_token>|<SpeechHere>"  # Qwen2-Audio, Granite, Gemma 3n, SALMONN
    r")"
)
"""A place for a clip inside a text. `Audio 1: ` belongs to Qwen's templates, which write it themselves."""


_ESCAPED_TAG = re.compile(r"(?:<|&lt;)\|?(?:audio|sound|speech)(?:[-_ ]?\d+)?\|?(?:>|&gt;)", re.IGNORECASE)
"""A tag of which a web page or an export has escaped one bracket or both: `<audio&gt;`."""


def find_escaped_tag(text: str) -> str | None:
    """The first tag with an escaped bracket in a text; None if there is none.

    >>> find_escaped_tag("<audio&gt;What?"), find_escaped_tag("&lt;audio&gt;"), find_escaped_tag("a &lt; b")
    ('<audio&gt;', '&lt;audio&gt;', None)
    """
    if "&" not in text:
        return None
    return next((match[0] for match in _ESCAPED_TAG.finditer(text) if "&" in match[0]), None)


def find_tag(text: str) -> str | None:
    """The first tag in a text that stands for a clip; None if there is none.

    >>> find_tag("<audio>What?"), find_tag("First <sound-1>"), find_tag("2 < 3")
    ('<audio>', '<sound-1>', None)
    """
    if "<" not in text:
        return None
    match = TAG.search(text)
    return match[0] if match else None


def clip_keys(row: Mapping[str, Any]) -> list[str]:
    """The keys of a row whose value is a clip or a list of clips, without those that are empty.

    >>> clip_keys({"audios": ["a.wav"], "audio": None, "query": "What?"})
    ['audios']
    """
    return [key for key in row if key.lower() in _CLIP_KEY_SET and not _is_empty(row[key])]


def unread_sound(row: Mapping[str, Any]) -> str | None:
    """The first key of a row that names sound, by its name or by the file that is its value; None if no key does.

    >>> unread_sound({"clip": "a"}), unread_sound({"where": "x/a.WAV"}), unread_sound({"speaker": "p1"})
    ('clip', 'where', None)
    """
    for key, value in row.items():
        if _is_empty(value):
            continue
        if key.lower() in _SOUND_KEY_SET or any(text.lower().endswith(_SUFFIXES) for text in _texts(value)):
            return key
    return None


_CLIP_KEY_SET = frozenset(CLIP_KEYS)
_SUFFIXES = tuple(AUDIO_SUFFIXES)
_SOUND_KEY_SET = frozenset((*CLIP_KEYS, *OTHER_SOUND_KEYS))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | Sequence | Mapping) and len(value) == 0)


def _texts(value: Any) -> Iterator[str]:
    """A value that is a text, and the texts of a list."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, str))
