"""The XS-CoT builder: what is refused, spoken, checked, kept; nothing lost on failures; bundled phrases; readers."""

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
from earwise.datasets.xs_cot import builder, instructions, speakable_text
from earwise.datasets.xs_cot.instructions import Item, Words
from earwise.errors import ConfigError, DataError, EngineError
from earwise.types import Waveform


@dataclass
class Tones:
    """A voice whose tone tells the text apart; counts what it says, fails where it is told to."""

    name: str = "tones"
    fails: str = "\0"
    said: list[str] = field(default_factory=list)

    def wants_reading(self, language: str) -> bool:
        return language == "ja"

    def speak(self, text: str, language: str) -> Waveform:
        if self.fails in text:
            raise EngineError(f"cannot say {text}")
        self.said.append(text)
        return tone(0.3 + 0.01 * len(text), 200 + 20 * len(text))


@dataclass
class Prompter:
    """A recogniser that writes down what it is given, in order."""

    lines: list[str]
    name: str = "prompter"

    def transcribe(self, wave: Waveform, language: str) -> str:
        assert wave.dtype == np.float32 and len(wave) > 3000
        return self.lines.pop(0)


def item(name: str, german: str = "Nenne die vier Jahreszeiten.", **more: Words) -> Item:
    english = Words("Name the four seasons.", "Spring, summer, autumn and winter.")
    return Item(name, {"en": english, "de": Words(german, "Frühling, Sommer, Herbst und Winter.")} | more)


def test_from_phrases_to_rows(tmp_path: Path) -> None:
    kana = Words("四季を言ってください。", "春夏秋冬です。", "しきを いってください。")
    items = [item("a", ja=kana), item("b", "Was ist ein Wal?"), item("c", "Woher kommt der Wind heute?")]
    voice = Tones()
    voices = {"de": voice, "ja": voice}
    listener = Prompter(["四季を言ってくさい", "Nenne die vier Jahreszeiten", "Was ist ein Wahl?", "kommt der Wind"])
    jobs = builder.plan(items, ("ja", "de"), voices, listener)
    summary = builder.run(jobs, tmp_path, voices, listener)
    assert (summary.jobs, summary.spoken, summary.refused) == (6, 4, Counter({"no translation": 2}))
    assert voice.said[0] == "しきを いってください。"  # the reading is spoken, the text is compared
    report = builder.write(jobs, tmp_path, max_error=0.3)
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


def test_failures_are_kept_and_tried_again(tmp_path: Path) -> None:
    items = [item("a"), item("b", "Was ist ein Wal?"), item("c", "Was ist ein Hund?")]
    voice, listener = Tones(fails="Wal"), Prompter(["Nenne die vier Jahreszeiten", "Was ist ein Hund"])
    jobs = builder.plan(items, ("de",), {"de": voice}, listener)
    summary = builder.run(jobs, tmp_path, {"de": voice}, listener)
    assert summary.spoken == 2 and summary.failed == Counter({"speech": 1})
    assert builder.write(jobs, tmp_path)["languages"]["de"]["reasons"] == {"speech failed": 1}

    again, listener = Tones(), Prompter(["Was ist ein Wal"])
    summary = builder.run(jobs, tmp_path, {"de": again}, listener)
    assert (summary.already, summary.spoken, again.said) == (2, 1, ["Was ist ein Wal?"])
    assert builder.write(jobs, tmp_path)["rows"] == 3


def test_a_machine_that_cannot_speak_stops_the_run(tmp_path: Path) -> None:
    items = [item(str(number), f"Sag etwas Nummer {number}.") for number in range(30)]
    voice = Tones(fails="Sag")
    jobs = builder.plan(items, ("de",), {"de": voice}, Prompter([]))
    with pytest.raises(EngineError, match="20 clips in a row failed"):
        builder.run(jobs, tmp_path, {"de": voice}, Prompter([]))
    assert len((tmp_path / "log" / "rows.jsonl").read_text().splitlines()) == 20


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    items = [item("a"), item("b", "Was ist ein Wal?")]
    voice, listener = Tones(), Prompter(["Nenne die vier Jahreszeiten", "Was ist ein Wal"])
    jobs = builder.plan(items, ("de",), {"de": voice}, listener)
    builder.run(jobs[:1], tmp_path, {"de": voice}, listener)
    target = tmp_path / f"clips/de/{jobs[1].key[:20]}.ogg"
    target.mkdir()  # a folder where the clip should be: the disk refuses, whoever runs the test
    with pytest.raises(DataError, match="cannot be written"):
        builder.run(jobs[1:], tmp_path, {"de": voice}, listener)
    target.rmdir()
    summary = builder.run(jobs, tmp_path, {"de": voice}, listener)
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
def test_refusals(german: str, answer: str, reason: str) -> None:
    english = Words("Name the four seasons.", "Spring.")
    assert builder.refusal(Item("a", {"en": english, "de": Words(german, answer)}), "de") == reason


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
def test_speakable(text: str, reason: str | None) -> None:
    assert speakable_text.refusal(text) == reason


def test_plan_refuses_what_cannot_work() -> None:
    voices = {"de": Tones()}
    with pytest.raises(ConfigError, match="name others than en"):
        builder.plan([item("a")], ("en",), voices, Prompter([]))
    with pytest.raises(ConfigError, match="'fr' has no voice"):
        builder.plan([item("a")], ("de", "fr"), voices, Prompter([]))
    with pytest.raises(DataError, match="'a' occurs twice"):
        builder.plan([item("a"), item("a")], ("de",), voices, Prompter([]))
    parts = [
        builder.plan([item(str(n)) for n in range(20)], ("de",), voices, Prompter([]), shard=(i, 3)) for i in (1, 2, 3)
    ]
    assert sorted(int(job.item.id) for part in parts for job in part) == list(range(20))


def test_the_bundled_phrases_are_all_speakable() -> None:
    bad: list[str] = []
    items = list(instructions.read(instructions.BUNDLED, bad.append))
    assert len(items) == 30 and not bad
    voices = {code: Tones() for code in ("ja", "de", "fr")}
    assert all(job.refusal is None for job in builder.plan(items, ("ja", "de", "fr"), voices, Prompter([])))
    for each in items:
        assert set(each.words) == {"en", "ja", "de", "fr"}
        reading = each.words["ja"].reading
        assert all("\u3041" <= letter <= "\u309f" or letter in " 。、ー" for letter in reading), reading
    questions = [each.words[code].instruction for each in items for code in each.words]
    assert len(set(questions)) == len(questions)


def test_alpaca_and_given_translations(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    rows = [
        {"instruction": "Say hello.", "input": "to a dog", "output": "Hello, dog."},
        {"instruction": "", "output": "x"},
    ]
    path.write_text(json.dumps(rows))
    bad: list[str] = []
    (one,) = instructions.read_alpaca(path, bad.append)
    assert one.words["en"] == Words("Say hello. to a dog", "Hello, dog.") and len(bad) == 1
    given = tmp_path / "de.jsonl"
    given.write_text(
        json.dumps({"id": one.id, "language": "de", "instruction": "Sag hallo.", "response": "Hallo."}) + "\n{\n"
    )
    (joined,) = instructions.joined([one], instructions.read_translations(given, bad.append))
    assert joined.words["de"] == Words("Sag hallo.", "Hallo.") and len(bad) == 2


def test_requests_only_for_what_is_missing() -> None:
    asked = list(instructions.requests([item("a")], ("de", "ja")))
    assert [(each.id, code, request.language) for each, code, request in asked] == [("a", "ja", "ja")]
    assert "Japanese" in asked[0][2].messages[0]["content"]


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "7", "wav": "7.wav", "instr_n": "Was?", "instr_c": "What?", "resp_c": "That.", "resp_n": "Das."}',
        "7.wav\tWas?\tWhat?\tThat.\tDas.",
        "7\t7.wav\tWas?\tWhat?\tThat.\tDas.",
    ],
)
def test_published_lists(tmp_path: Path, line: str) -> None:
    path = tmp_path / "de.list"
    path.write_text(line + "\n8.wav\tonly\n")
    bad: list[str] = []
    (row,) = sources.load("multilingual-alpaca-speech", path, bad.append)
    assert row.language == "de" and row.answer == ("Das.",) and len(bad) == 1 and "row 2" in bad[0]
    assert prompts.target_text(row, "xs-cot") == "[de] Was?\n[en] What?\n[en-response] That.\n[de-response] Das."
    with pytest.raises(DataError, match="row 1: none of the first two fields"):
        (tmp_path / "fr.list").write_text("what\tis\tthis\n")
        list(sources.load("multilingual-alpaca-speech", tmp_path / "fr.list", bad.append))


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
    """Speaks a tone; writes down the text it spoke last, but for what it is told to mishear. Cannot say "vier"."""

    last = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/audio/transcriptions"):
            heard = "ganz etwas anderes" if "Wal" in Echo.last else Echo.last.upper()
            return self.reply(200, json.dumps({"text": heard}).encode())
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


def test_the_command_with_a_server_that_speaks_and_one_that_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No espeak-ng and no Whisper: the whole command against real HTTP, with a text that fails and one misheard."""
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
    at = f"http://127.0.0.1:{host.server_port}/v1"
    voices = ["--voice", f"{at}?model=tts", "--recogniser", f"{at}?model=asr", "--languages", "de"]
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
    assert [(one["id"], one["reason"]) for one in rejected] == [("0-de", "speech failed"), ("1-de", "misheard")]
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
