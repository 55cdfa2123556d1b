"""Speech to text behind one protocol, to check that a voice said what it was told; word and character error rates.

Used by `build/xs_cot.py`. `open_recogniser` knows `whisper` (Whisper base on this machine, whose encoder the embedded
model hears with; its decoder is fetched on first use) or the URL of a server that has `/audio/transcriptions`.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from earwise.audio import encode_wav
from earwise.config.resolve import require
from earwise.datasets.xs_cot import speech_http as server
from earwise.errors import AudioError, ConfigError, EngineError
from earwise.types import Waveform

if TYPE_CHECKING:
    from earwise.models.parts.whisper_asr import WhisperRecogniser

SAMPLE_RATE = 16000
TOKENS_PER_S = 12
"""More than anyone says; ends a recogniser that repeats itself."""
UNSPACED = frozenset(("ja", "zh", "yue", "th", "lo", "km", "my"))
"""Languages that are written without blanks between words: errors are counted in characters."""
_HIRAGANA = {katakana: katakana - 0x60 for katakana in range(0x30A1, 0x30F7)}
Unit = Literal["word", "character"]


class Recogniser(Protocol):
    """Anything that writes down speech."""

    @property
    def name(self) -> str:
        """Who listens, for rows."""
        ...

    def transcribe(self, wave: Waveform, language: str) -> str:
        """What is said in a mono waveform at 16 kHz.

        Raises:
            EngineError: if this clip cannot be transcribed; another may be.
        """
        ...


def open_recogniser(name: str, api_key: str | None = None, say: Callable[[str], None] = lambda _: None) -> Recogniser:
    """The recogniser of a name: `whisper`, or `http://HOST/v1?model=M`.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name.startswith(("http://", "https://")):
        return RemoteRecogniser(server.parse(name, api_key))
    if name != "whisper":
        raise ConfigError(f"recogniser {name!r} is neither whisper nor http://HOST/v1?model=M")
    return LocalWhisper(say)


class LocalWhisper:
    """Whisper base on this machine; fetched and loaded when it first listens."""

    name = "whisper-base"

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._module: WhisperRecogniser | None = None

    def transcribe(self, wave: Waveform, language: str) -> str:
        """See `Recogniser`.

        Raises:
            ModelError: if the weights cannot be had.
        """
        if self._module is None:
            from earwise.models.embedded import base_weights
            from earwise.models.parts import whisper_asr

            self._module = whisper_asr.load(base_weights.recogniser_folder(self._say))
        try:
            most = 20 + TOKENS_PER_S * (len(wave) // SAMPLE_RATE + 1)
            return self._module.transcribe([wave], language, most)[0]
        except AudioError as error:
            raise EngineError(f"{self.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class RemoteRecogniser:
    """A server with OpenAI's `/audio/transcriptions`; its `model` stands in its name."""

    server: server.Server

    @property
    def name(self) -> str:
        """See `Recogniser`."""
        return self.server.name

    def transcribe(self, wave: Waveform, language: str) -> str:
        """See `Recogniser`."""
        form = {"model": "whisper-1"} | dict(self.server.options) | {"language": language, "response_format": "json"}
        files = {"file": ("said.wav", encode_wav(wave, SAMPLE_RATE), "audio/wav")}
        response = server.post(self.server, "/audio/transcriptions", data=form, files=files)
        try:
            return str(response.json()["text"]).strip()
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self.server.url}: the answer holds no text ({response.text[:80]!r})") from error


def unit_of(language: str) -> Unit:
    """What errors are counted in.

    >>> unit_of("ja"), unit_of("de")
    ('character', 'word')
    """
    return "character" if language in UNSPACED else "word"


def plain(text: str, language: str) -> str:
    """A text as it is compared: compatibility forms joined, one case, no punctuation; no blanks where there are no
    words, and all kana as hiragana (which of the two is written says nothing about the sound).

    >>> plain("L'air, est-il FROID ?", "fr"), plain("フランス の首都は？", "ja")
    ('l air est il froid', 'ふらんすの首都は')
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_HIRAGANA)
    kept = "".join(" " if unicodedata.category(letter)[0] in "PSZC" else letter for letter in folded)
    return ("" if unit_of(language) == "character" else " ").join(kept.split())


def error_rate(said: str, heard: str, language: str) -> float:
    """Word error rate (character error rate where there are no words) of what was heard, 0 is perfect; can exceed 1.

    Raises:
        ConfigError: if jiwer is not installed.

    >>> error_rate("Was ist das?", "was ist da", "de") == 1 / 3, error_rate("犬です。", "犬でした", "ja") == 2 / 3
    (True, True)
    """
    require("jiwer", "eval", "error rates")
    import jiwer

    reference, hypothesis = plain(said, language), plain(heard, language)
    if not reference:
        return 0.0 if not hypothesis else 1.0
    rate = jiwer.cer if unit_of(language) == "character" else jiwer.wer
    return float(rate(reference, hypothesis))
