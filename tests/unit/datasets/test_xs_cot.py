"""XS-CoT's corpus: filters, speech, checks, failures and restarts, bundled phrases, file readers, the command."""

import json
import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from builders import tone
from earwise import cli, prompts
from earwise.audio import decode, encode_wav
from earwise.data import manifest, sources
from earwise.datasets.xs_cot import instructions
from earwise.datasets.xs_cot.corpus import write_corpus
from earwise.datasets.xs_cot.instructions import Instruction, InstructionPair
from earwise.datasets.xs_cot.jobs import plan_jobs, rejection_reason
from earwise.datasets.xs_cot.speakable_text import unspeakable_reason
from earwise.datasets.xs_cot.synthesis import speak_jobs
from earwise.datasets.xs_cot.translation import translation_requests
from earwise.errors import ConfigError, DataError, EngineError
from earwise.types import Waveform


@dataclass
class Tones:
    """A voice of tones that differ by text. It remembers the texts, and fails for those that contain `fails`."""

    name: str = "tones"
    fails: str = "\0"
    texts: list[str] = field(default_factory=list)

    def needs_reading(self, language: str) -> bool:
        return language == "ja"

    def speak(self, text: str, language: str) -> Waveform:
        if self.fails in text:
            raise EngineError(f"cannot say {text}")
        self.texts.append(text)
        return tone(0.3 + 0.01 * len(text), 200 + 20 * len(text))


@dataclass
class ScriptedRecogniser:
    """A recogniser that returns the given transcripts, in order."""

    lines: list[str]
    name: str = "scripted"

    def transcribe(self, waveform: Waveform, language: str) -> str:
        assert waveform.dtype == np.float32 and len(waveform) > 3000
        return self.lines.pop(0)


def instruction(name: str, german: str = "Nenne die vier Jahreszeiten.", **more: InstructionPair) -> Instruction:
    english = InstructionPair("Name the four seasons.", "Spring, summer, autumn and winter.")
    pairs = {"en": english, "de": InstructionPair(german, "Frühling, Sommer, Herbst und Winter.")}
    return Instruction(name, pairs | more)


def test_instructions_become_rows(tmp_path: Path) -> None:
    kana = InstructionPair("四季を言ってください。", "春夏秋冬です。", "しきを いってください。")
    items = [
        instruction("a", ja=kana),
        instruction("b", "Was ist ein Wal?"),
        instruction("c", "Woher kommt der Wind heute?"),
    ]
    voice = Tones()
    voices = {"de": voice, "ja": voice}
    recogniser = ScriptedRecogniser(
        ["四季を言ってくさい", "Nenne die vier Jahreszeiten", "Was ist ein Wahl?", "kommt der Wind"]
    )
    jobs = plan_jobs(items, ("ja", "de"), voices, recogniser)
    summary = speak_jobs(jobs, tmp_path, voices, recogniser)
    assert (summary.jobs, summary.spoken, summary.rejected) == (6, 4, Counter({"no translation": 2}))
    assert voice.texts[0] == "しきを いってください。"  # the reading is spoken, the text is compared
    report = write_corpus(jobs, tmp_path, max_error=0.3)
    assert report["rows"] == 3
    german = report["languages"]["de"]
    assert german["passed"] == 2 and german["reasons"] == {"misheard": 1}
    assert german["error_rate_mean"] == pytest.approx((0 + 1 / 4 + 2 / 5) / 3, abs=1e-4)
    assert report["languages"]["ja"]["error_rate_median"] == pytest.approx(1 / 10)

    rows = {example.id: example for example in manifest.read(tmp_path / "manifest.jsonl")}
    assert set(rows) == {"a-ja", "a-de", "b-de"}
    row = rows["a-ja"]
    assert row.reasoning == (
        "[ja] 四季を言ってください。\n[en] Name the four seasons.\n[en-response] Spring, summer, autumn and winter."
    )
    assert prompts.target_text(row, "xs-cot") == row.reasoning + "\n[ja-response] 春夏秋冬です。"
    assert prompts.prompt_turns(row, "xs-cot")[0].parts[1].text.startswith("Write down what is said, translate")  # type: ignore[union-attr]
    assert rows["a-ja"].group == rows["a-de"].group and rows["a-ja"].split == rows["a-de"].split
    assert len(decode(row.audio_paths[0])) == pytest.approx(
        16000 * (0.3 + 0.01 * len("しきを いってください。")), abs=2
    )
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {(row["id"], row["reason"]) for row in rejected} == {
        ("b-ja", "no translation"), ("c-ja", "no translation"), ("c-de", "misheard"),
    }  # fmt: skip


def test_failures_are_logged_and_tried_again(tmp_path: Path) -> None:
    items = [instruction("a"), instruction("b", "Was ist ein Wal?"), instruction("c", "Was ist ein Hund?")]
    voice, recogniser = Tones(fails="Wal"), ScriptedRecogniser(["Nenne die vier Jahreszeiten", "Was ist ein Hund"])
    jobs = plan_jobs(items, ("de",), {"de": voice}, recogniser)
    summary = speak_jobs(jobs, tmp_path, {"de": voice}, recogniser)
    assert summary.spoken == 2 and summary.failed == Counter({"speech": 1})
    assert write_corpus(jobs, tmp_path)["languages"]["de"]["reasons"] == {"speech failed": 1}

    again, recogniser = Tones(), ScriptedRecogniser(["Was ist ein Wal"])
    summary = speak_jobs(jobs, tmp_path, {"de": again}, recogniser)
    assert (summary.already, summary.spoken, again.texts) == (2, 1, ["Was ist ein Wal?"])
    assert write_corpus(jobs, tmp_path)["rows"] == 3


def test_many_failures_in_a_row_end_the_run(tmp_path: Path) -> None:
    items = [instruction(str(number), f"Sag etwas Nummer {number}.") for number in range(30)]
    voice = Tones(fails="Sag")
    jobs = plan_jobs(items, ("de",), {"de": voice}, ScriptedRecogniser([]))
    with pytest.raises(EngineError, match="20 clips in a row failed"):
        speak_jobs(jobs, tmp_path, {"de": voice}, ScriptedRecogniser([]))
    assert len((tmp_path / "log" / "rows.jsonl").read_text().splitlines()) == 20


def test_a_disk_error_loses_nothing(tmp_path: Path) -> None:
    items = [instruction("a"), instruction("b", "Was ist ein Wal?")]
    voice, recogniser = Tones(), ScriptedRecogniser(["Nenne die vier Jahreszeiten", "Was ist ein Wal"])
    jobs = plan_jobs(items, ("de",), {"de": voice}, recogniser)
    speak_jobs(jobs[:1], tmp_path, {"de": voice}, recogniser)
    target = tmp_path / f"clips/de/{jobs[1].key[:20]}.ogg"
    target.mkdir()  # a folder where the clip should be cannot be written, whoever runs the test
    with pytest.raises(DataError, match="cannot be written"):
        speak_jobs(jobs[1:], tmp_path, {"de": voice}, recogniser)
    target.rmdir()
    summary = speak_jobs(jobs, tmp_path, {"de": voice}, recogniser)
    assert (summary.already, summary.spoken) == (1, 1)


@pytest.mark.parametrize(
    ("german", "answer", "reason"),
    [
        ("", "Ja.", "empty translation"),
        ("Nenne es.", "", "empty translation"),
        ("Name the four seasons.", "Ja.", "not translated"),
        ("Quelle est la capitale de la France et des autres pays ?", "Ja.", "wrong language: fr"),
        ("四季を言ってください。", "Ja.", "wrong language: kana script"),
        ("Nenne `x`.", "Ja.", "translation: code"),
        ("Nenne sie.", "Gut.\n[de-response] Ja.", "holds a part marker"),
    ],
)
def test_rejection_reason(german: str, answer: str, reason: str) -> None:
    english = InstructionPair("Name the four seasons.", "Spring.")
    assert rejection_reason(Instruction("a", {"en": english, "de": InstructionPair(german, answer)}), "de") == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What is the capital of France?", None),
        ("Pourquoi l'air est-il froid ? « Oui ! »", None),
        ("一番大きい海はどこですか。", None),
        ("Open https://example.org now", "link"),
        ("Run print('x')", "code"),
        ("What is 3 + 4?", "formula"),
        ("Sort these:\n1. a\n2. b", "table"),
        ("Summarize the following paragraph.", "points at something written"),
        ("Fill in: I ___ a dog", "formula"),
        ("Call 123456", "digits"),
        ("Say ★", "symbols"),
        ("word " * 41, "too long"),
        ("?!", "no words"),
    ],
)
def test_unspeakable_reason(text: str, reason: str | None) -> None:
    assert unspeakable_reason(text) == reason


def test_plan_jobs_raises_for_impossible_plans() -> None:
    voices = {"de": Tones()}
    with pytest.raises(ConfigError, match="name others than en"):
        plan_jobs([instruction("a")], ("en",), voices, ScriptedRecogniser([]))
    with pytest.raises(ConfigError, match="'fr' has no voice"):
        plan_jobs([instruction("a")], ("de", "fr"), voices, ScriptedRecogniser([]))
    with pytest.raises(DataError, match="'a' occurs twice"):
        plan_jobs([instruction("a"), instruction("a")], ("de",), voices, ScriptedRecogniser([]))
    parts = [
        plan_jobs([instruction(str(n)) for n in range(20)], ("de",), voices, ScriptedRecogniser([]), shard=(i, 3))
        for i in (1, 2, 3)
    ]
    assert sorted(int(job.instruction.id) for part in parts for job in part) == list(range(20))


def test_all_bundled_phrases_are_speakable() -> None:
    skipped: list[str] = []
    items = list(instructions.read_phrases(instructions.BUNDLED, skipped.append))
    assert len(items) == 30 and not skipped
    voices = {code: Tones() for code in ("ja", "de", "fr")}
    assert all(job.rejection is None for job in plan_jobs(items, ("ja", "de", "fr"), voices, ScriptedRecogniser([])))
    for item in items:
        assert set(item.pairs) == {"en", "ja", "de", "fr"}
        reading = item.pairs["ja"].reading
        assert all("\u3041" <= letter <= "\u309f" or letter in " 。、ー" for letter in reading), reading
    texts = [item.pairs[code].instruction for item in items for code in item.pairs]
    assert len(set(texts)) == len(texts)


def test_alpaca_file_with_a_file_of_translations(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    rows = [
        {"instruction": "Say hello.", "input": "to a dog", "output": "Hello, dog."},
        {"instruction": "", "output": "x"},
    ]
    path.write_text(json.dumps(rows))
    skipped: list[str] = []
    (item,) = instructions.read_alpaca(path, skipped.append)
    assert item.pairs["en"] == InstructionPair("Say hello. to a dog", "Hello, dog.") and len(skipped) == 1
    translations = tmp_path / "de.jsonl"
    translations.write_text(
        json.dumps({"id": item.id, "language": "de", "instruction": "Sag hallo.", "response": "Hallo."}) + "\n{\n"
    )
    (translated,) = instructions.with_translations([item], instructions.read_translations(translations, skipped.append))
    assert translated.pairs["de"] == InstructionPair("Sag hallo.", "Hallo.") and len(skipped) == 2


def test_only_missing_translations_are_requested() -> None:
    requests = list(translation_requests([instruction("a")], ("de", "ja")))
    assert [(item.id, code, request.language) for item, code, request in requests] == [("a", "ja", "ja")]
    assert "Japanese" in requests[0][2].messages[0]["content"]


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "7", "wav": "7.wav", "instr_n": "Was?", "instr_c": "What?", "resp_c": "That.", "resp_n": "Das."}',
        "7.wav\tWas?\tWhat?\tThat.\tDas.",
        "7\t7.wav\tWas?\tWhat?\tThat.\tDas.",
    ],
)
def test_published_lists_are_read(tmp_path: Path, line: str) -> None:
    path = tmp_path / "de.list"
    path.write_text(line + "\n8.wav\tonly\n")
    skipped: list[str] = []
    (row,) = sources.load("multilingual-alpaca-speech", path, skipped.append)
    assert row.language == "de" and row.answer == ("Das.",) and len(skipped) == 1 and "row 2" in skipped[0]
    assert prompts.target_text(row, "xs-cot") == "[de] Was?\n[en] What?\n[en-response] That.\n[de-response] Das."
    with pytest.raises(DataError, match="row 1: neither of the first two fields"):
        (tmp_path / "fr.list").write_text("what\tis\tthis\n")
        list(sources.load("multilingual-alpaca-speech", tmp_path / "fr.list", skipped.append))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["build", "xs-cot", "--out", str(tmp_path / "x"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"jobs": 90, "refused": {}}
    assert cli.run(["build", "xs-cot", "--out", str(tmp_path / "x"), "--languages", "en"]) == 2
    assert cli.run(["build", "xs-cot", "--out", str(tmp_path / "x"), "--voice", "festival"]) == 2
    assert cli.run(["build", "xs-cot", "--out", str(tmp_path / "x"), "--voice", "ko=espeak"]) == 2
    errors = capsys.readouterr().err
    assert "name others than en" in errors and "none of espeak, kokoro" in errors and "not among --languages" in errors
    assert not (tmp_path / "x").exists()


class Echo(BaseHTTPRequestHandler):
    """Speaks a tone, and transcribes it as the last text in capitals. It mishears "Wal" and cannot speak "vier"."""

    last = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/audio/transcriptions"):
            transcript = "ganz etwas anderes" if "Wal" in Echo.last else Echo.last.upper()
            return self.reply(200, json.dumps({"text": transcript}).encode())
        Echo.last = json.loads(body)["input"]
        if "vier" in Echo.last:
            return self.reply(400, b"no such word")
        return self.reply(200, encode_wav(tone(0.3 + 0.01 * len(Echo.last)), 16000))

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


def test_command_with_a_speech_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command against a real HTTP server, with one text that fails and one that is misheard."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    german = ["Nenne die vier Jahreszeiten.", "Was ist ein Wal?", "Woher kommt der Wind heute?"]
    rows = [
        {"id": str(number), "en": {"instruction": "Say it.", "response": "It."},
         "de": {"instruction": text, "response": "Das ist es."}}
        for number, text in enumerate(german)
    ]  # fmt: skip
    (tmp_path / "phrases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    host = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{host.server_port}/v1"
    voices = ["--voice", f"{url}?model=tts", "--recogniser", f"{url}?model=asr", "--languages", "de"]
    command = ["build", "xs-cot", str(tmp_path / "phrases.jsonl"), *voices, "--source", "ours", "--licence", "CC0"]
    command += ["--out", str(tmp_path / "out"), "--json"]
    try:
        assert cli.run(command) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["rows"] == 1 and report["languages"]["de"]["reasons"] == {"speech failed": 1, "misheard": 1}
        assert cli.run(command) == 0
        assert json.loads(capsys.readouterr().out)["already"] == 2
    finally:
        host.shutdown()
        host.server_close()
    (row,) = manifest.read(tmp_path / "out" / "manifest.jsonl")
    assert (row.id, row.meta["voice"], row.meta["recogniser"], row.meta["error_rate"]) == ("2-de", "tts", "asr", 0.0)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in rejected] == [("0-de", "speech failed"), ("1-de", "misheard")]
    assert "no such word" in rejected[0]["error"] and rejected[1]["error_rate"] == 1.0


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_real_speech_and_a_real_recogniser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", "xs-cot", "--out", str(tmp_path), "--languages", "de", "--limit", "1", "--json"]
    assert cli.run(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["rows"] == 1 and first["languages"]["de"]["error_rate_mean"] <= 0.1 and first["already"] == 0
    assert cli.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["already"] == 1
