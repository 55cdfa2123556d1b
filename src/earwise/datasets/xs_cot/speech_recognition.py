"""Speech recognition behind one protocol, and the error rates that compare a transcript with what should be said.

Used to check synthetic speech (`synthesis.py`) and by the server's transcriptions. `open_recogniser` takes `whisper`
(Whisper base in this process; its encoder is that of the embedded model, its decoder is fetched on first use) or the
address of a server that has `/audio/transcriptions`.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from earwise.audio import encode_wav
from earwise.config.resolve import require
from earwise.datasets.xs_cot import speech_http
from earwise.datasets.xs_cot.speech_http import SpeechServer
from earwise.errors import AudioError, ConfigError, EngineError
from earwise.types import Waveform

if TYPE_CHECKING:
    from earwise.models.parts.whisper_asr import WhisperRecogniser

SAMPLE_RATE = 16000
UNSPACED_LANGUAGES = frozenset(("ja", "zh", "yue", "th", "lo", "km", "my"))
"""Languages written without blanks between words; their errors are counted in characters."""
_KATAKANA_TO_HIRAGANA = {katakana: katakana - 0x60 for katakana in range(0x30A1, 0x30F7)}
ErrorUnit = Literal["word", "character"]


class Recogniser(Protocol):
    """Anything that transcribes speech."""

    @property
    def name(self) -> str:
        """Name of the recogniser, for rows."""
        ...

    def transcribe(self, waveform: Waveform, language: str) -> str:
        """Transcribe speech.

        Args:
            waveform: Mono waveform at 16 kHz, `(samples,)`.
            language: Code of the language that is spoken.
        Raises:
            EngineError: if this clip cannot be transcribed; others may be.
        """
        ...


def open_recogniser(
    name: str, api_key: str | None = None, notify: Callable[[str], None] = lambda line: None
) -> Recogniser:
    """Open a recogniser.

    Args:
        name: `whisper`, or `http://HOST/v1?model=M`.
        api_key: Bearer token for a server.
        notify: Called with lines about the download of weights.
    Raises:
        ConfigError: if there is no recogniser of that name.
    """
    if name.startswith(("http://", "https://")):
        return RemoteRecogniser(speech_http.parse_server(name, api_key))
    if name != "whisper":
        raise ConfigError(f"recogniser {name!r} is neither whisper nor http://HOST/v1?model=M")
    return LocalWhisper(notify)


class LocalWhisper:
    """Whisper base in this process; it is fetched and loaded when it transcribes for the first time.

    Args:
        notify: Called with lines about the download of weights.
    """

    name = "whisper-base"

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._module: WhisperRecogniser | None = None

    def transcribe(self, waveform: Waveform, language: str) -> str:
        """Transcribe speech, see `Recogniser`.

        Raises:
            ModelError: if the weights cannot be fetched.
        """
        if self._module is None:
            from earwise.models.embedded import base_weights
            from earwise.models.parts import whisper_asr

            self._module = whisper_asr.load(base_weights.recogniser_folder(self._notify))
        try:
            return self._module.transcribe([waveform], language)[0]
        except AudioError as error:
            raise EngineError(f"{self.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class RemoteRecogniser:
    """A server with OpenAI's `/audio/transcriptions`."""

    server: SpeechServer

    @property
    def name(self) -> str:
        """Name of the server's model."""
        return self.server.name

    def transcribe(self, waveform: Waveform, language: str) -> str:
        """Transcribe speech, see `Recogniser`."""
        form = {"model": "whisper-1"} | dict(self.server.options) | {"language": language, "response_format": "json"}
        files = {"file": ("said.wav", encode_wav(waveform, SAMPLE_RATE), "audio/wav")}
        response = speech_http.post(self.server, "/audio/transcriptions", data=form, files=files)
        try:
            return str(response.json()["text"]).strip()
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self.server.url}: the answer holds no text ({response.text[:80]!r})") from error


def error_unit(language: str) -> ErrorUnit:
    """Unit in which the errors of a language are counted.

    Example:
        >>> error_unit("ja"), error_unit("de")
        ('character', 'word')
    """
    return "character" if language in UNSPACED_LANGUAGES else "word"


def normalise_transcript(text: str, language: str) -> str:
    """Reduce a text to what an error rate should compare.

    Compatibility forms are joined, case is folded and punctuation removed. Where a language has no blanks between
    words, blanks are removed too. All kana become hiragana, since which kana is written says nothing about the sound.

    Example:
        >>> normalise_transcript("L'air, est-il FROID ?", "fr"), normalise_transcript("フランス の首都は？", "ja")
        ('l air est il froid', 'ふらんすの首都は')
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_KATAKANA_TO_HIRAGANA)
    letters = "".join(" " if unicodedata.category(letter)[0] in "PSZC" else letter for letter in folded)
    return ("" if error_unit(language) == "character" else " ").join(letters.split())


def error_rate(reference: str, transcript: str, language: str) -> float:
    """Word error rate of a transcript, or character error rate in languages without blanks between words.

    Args:
        reference: The text that should have been spoken.
        transcript: The text that was recognised.
        language: Code of the language.
    Returns:
        Number of errors by number of words (characters) of the reference: 0 is perfect, and it can exceed 1.
    Raises:
        ConfigError: if jiwer is not installed.

    Example:
        >>> error_rate("Was ist das?", "was ist da", "de") == 1 / 3, error_rate("犬です。", "犬でした", "ja") == 2 / 3
        (True, True)
    """
    require("jiwer", "data", "error rates")
    import jiwer

    normalised_reference = normalise_transcript(reference, language)
    normalised_transcript = normalise_transcript(transcript, language)
    if not normalised_reference:
        return 0.0 if not normalised_transcript else 1.0
    rate = jiwer.cer if error_unit(language) == "character" else jiwer.wer
    return float(rate(normalised_reference, normalised_transcript))
