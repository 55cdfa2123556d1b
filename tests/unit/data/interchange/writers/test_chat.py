"""Rows of other chat programs, written from manifests and read back.

The third-party loaders themselves (LLaMA-Factory's converters, ms-swift's preprocessors) are not dependencies; the
expected rows below are what they take, and docs/reference/row-formats.md says with which versions that was tried.
"""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from earwise.cli import run
from earwise.commands.build.convert import CHAT_FORMS
from earwise.data import manifest
from earwise.data.interchange.writers.chat.exporting import ChatExport
from earwise.data.interchange.writers.chat.forms import FORMS
from earwise.errors import DataError

pytestmark = pytest.mark.usefixtures("own_home")
RATE = 8000


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three clips of two seconds in `in/`."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, name in enumerate(("a.wav", "b c.flac", "d.ogg"), 1):
        tone = 0.3 * np.sin(2 * np.pi * 200 * number * np.arange(2 * RATE) / RATE)
        soundfile.write(f"in/{name}", tone, RATE)
    return tmp_path


def audio(name: str, **times: float) -> dict[str, Any]:
    """An audio part."""
    return {"type": "audio", "audio": name, **times}


def text(value: str) -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": value}


def write(*rows: dict[str, Any]) -> str:
    """Write a manifest with these rows, and return its name."""
    Path("in/m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "in/m.jsonl"


def convert(form: str, *options: str) -> list[dict[str, Any]]:
    """The rows that the command writes in a form."""
    Path("out").mkdir(exist_ok=True)
    out = Path(f"out/{form}.jsonl")
    out.unlink(missing_ok=True)
    assert run(["build", "convert", "in/m.jsonl", "--to", form, "--out", str(out), *options]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def heard(path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest, with the bytes of the files instead of their paths."""
    rows = []
    for example in manifest.read(path):
        row = manifest.to_row(example)
        files = iter(example.audio_paths)
        for message in row["messages"]:
            if isinstance(message["content"], list):
                for part in message["content"]:
                    if part["type"] == "audio":
                        part["audio"] = next(files).read_bytes()
        rows.append(row)
    return rows


CONVERSATION = {
    "id": "talk-1",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("First: "), audio("a.wav"), text("\nthen "), audio("b c.flac"), text("?")]},
        {"role": "assistant", "content": "Two tones, <b>rising</b>."},
        {"role": "user", "content": [text("And this one? "), audio("d.ogg")]},
    ],
    "answer": "Higher.", "reasoning": "600 Hz.", "task": "tones", "category": "sound", "split": "val", "group": "g 1",
    "licence": "CC0", "language": "de", "difficulty": "easy", "speaker": {"name": "Zoë", "age": 3},
}  # fmt: skip
CHOICE = {
    "id": 7, "messages": [{"role": "user", "content": [audio("a.wav"), text("Which is it?")]}],
    "choices": ["a dog", "a cat"], "answer": "a cat",
}  # fmt: skip
SEVERAL_ANSWERS = {
    "id": "free", "messages": [{"role": "user", "content": [audio("a.wav"), text("Name it.")]}], "answer": ["x", "y"],
}  # fmt: skip
UNLABELLED = {"id": "open", "messages": [{"role": "user", "content": [audio("a.wav"), text("\nWhat?\n")]}]}
SILENT = {"id": "text", "messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2", "text_only": True}
ROWS = {"conversation": CONVERSATION, "choice": CHOICE, "answers": SEVERAL_ANSWERS, "unlabelled": UNLABELLED,
        "text": SILENT}  # fmt: skip
CANNOT = {
    ("question", "conversation"): "4 turns",
    ("prompt", "unlabelled"): "has no answer",
    ("audio-flamingo", "text"): "has no clip",
}


def test_the_command_lists_all_forms() -> None:
    assert tuple(FORMS) == CHAT_FORMS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ROWS)
def test_there_and_back(form: str, name: str, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(ROWS[name])
    if reason := CANNOT.get((form, name)):
        assert run(["build", "convert", "in/m.jsonl", "--to", form, "--out", "x.jsonl"]) == 2
        assert reason in capsys.readouterr().err
        assert not Path("x.jsonl").exists()
        return
    convert(form)
    assert run(["build", "convert", f"out/{form}.jsonl", "--out", "back/again.jsonl"]) == 0
    assert heard(Path("back/again.jsonl")) == heard(Path("in/m.jsonl"))


def test_the_rows_of_each_form(clips: Path) -> None:
    write({**CONVERSATION, "reasoning": None, "speaker": None, "messages": CONVERSATION["messages"][1:]})
    b, d = "in/b c.flac", "in/d.ogg"
    path = {name: str(clips / name) for name in ("in/a.wav", b, d)}
    tagged = "First: <audio>\n\nthen <audio>?"
    (swift,) = convert("swift")
    assert swift["messages"] == [
        {"role": "user", "content": tagged},
        {"role": "assistant", "content": "Two tones, <b>rising</b>."},
        {"role": "user", "content": "And this one? <audio>"},
        {"role": "assistant", "content": "Higher."},
    ]
    assert swift["audios"] == [path["in/a.wav"], path[b], path[d]]
    assert (swift["id"], swift["split"], "choices" in swift) == ("talk-1", "val", False)
    (sharegpt,) = convert("sharegpt")
    assert [message["from"] for message in sharegpt["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert sharegpt["conversations"][0]["value"] == tagged
    assert sharegpt["audios"] == ["../in/a.wav", "../in/b c.flac", "../in/d.ogg"]
    (query,) = convert("query")
    assert (query["query"], query["response"]) == ("And this one? <audio>", "Higher.")
    assert query["history"] == [[tagged, "Two tones, <b>rising</b>."]]
    (alpaca,) = convert("alpaca")
    assert (alpaca["instruction"], alpaca["input"], alpaca["output"]) == ("And this one? <audio>", "", "Higher.")
    (flamingo,) = convert("audio-flamingo")
    assert flamingo["conversations"][2]["value"] == "And this one? <sound-3>"
    (messages,) = convert("messages")
    assert messages["messages"][2]["content"] == [text("And this one? "), {"type": "audio", "path": path[d]}]
    assert messages["messages"][3]["content"] == [text("Higher.")]
    (prompt,) = convert("prompt")
    assert prompt["prompt"][2]["content"] == [text("And this one? "), {"type": "audio"}]
    assert prompt["completion"] == [{"role": "assistant", "content": [text("Higher.")]}]
    (url,) = convert("audio-url")
    assert url["messages"][0]["content"][3]["audio_url"]["url"] == (clips / b).as_uri()
    assert "%20" in (clips / b).as_uri()
    (openai,) = convert("openai")
    part = openai["messages"][0]["content"][3]["input_audio"]
    assert part["format"] == "flac"
    assert base64.b64decode(part["data"]) == Path(b).read_bytes()


def test_a_style_words_question_options_and_replies(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(CHOICE)
    convert("swift")
    assert "1 rows keep their options in `choices`" in capsys.readouterr().err
    (row,) = convert("swift", "--style", "answer")
    assert "choices" not in row
    assert row["messages"][0]["content"] == (
        "<audio>Which is it? Please choose the answer from the following options: ['a dog', 'a cat']. "
        "Output the final answer in <answer> </answer>."
    )
    assert row["messages"][1]["content"] == "<answer>a cat</answer>"
    assert "options" not in capsys.readouterr().err
    assert run(["build", "convert", "in/m.jsonl", "--to", "csv", "--style", "answer", "--out", "x.csv"]) == 2
    assert "--style words rows of conversations" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["swift", "sharegpt", "query", "alpaca", "prompt"])
def test_preferences_there_and_back(form: str, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {**CHOICE, "id": "p", "choices": [], "answer": None, "chosen": ["A cat."], "rejected": ["A dog."]}
    write(whole)
    (row,) = convert(form)
    assert json.dumps(row).count("A cat.") == 1
    assert run(["build", "convert", f"out/{form}.jsonl", "--out", "back/again.jsonl"]) == 0
    (again,) = manifest.read(Path("back/again.jsonl"))
    assert (again.chosen, again.rejected, again.answer) == (("A cat.",), ("A dog.",), ("A cat.",))
    bare = {**CHOICE, "id": "p", "rejected": ["a dog"]}
    write(bare)
    assert run(["build", "convert", "in/m.jsonl", "--to", form, "--out", "x.jsonl"]) == 2
    assert "say how they are worded with --style" in capsys.readouterr().err
    convert(form, "--style", "answer")
    assert run(["build", "convert", f"out/{form}.jsonl", "--out", "back/worded.jsonl"]) == 0
    (again,) = manifest.read(Path("back/worded.jsonl"))
    assert (again.chosen, again.rejected) == (("<answer>a cat</answer>",), ("<answer>a dog</answer>",))


@pytest.mark.parametrize("form", FORMS)
def test_segments_become_files_of_their_own(form: str, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        {**CHOICE, "messages": [{"role": "user", "content": [audio("b c.flac", start=0.5, end=1.25), text("What?")]}]},
        {**CHOICE, "id": "8", "messages": [{"role": "user", "content": [audio("b c.flac", start=0.5, end=1.25),
                                                                        text("Loud?")]}]},
    )  # fmt: skip
    convert(form)
    assert "1 segments were written as files of their own" in capsys.readouterr().err
    assert run(["build", "convert", f"out/{form}.jsonl", "--out", "back/again.jsonl"]) == 0
    first, second = manifest.read(Path("back/again.jsonl"))
    assert first.audio_parts == second.audio_parts
    assert first.audio_parts[0].start is None
    samples, rate = soundfile.read(first.audio_paths[0], dtype="float32")
    original, _ = soundfile.read("in/b c.flac", dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(samples, original[4000:10000])


@pytest.mark.parametrize(
    ("form", "meta", "reason"),
    [
        pytest.param("swift", {"system": "Bark."}, "would be read back", id="system"),
        pytest.param("swift", {"rejected_response": "x"}, "chosen too", id="rejected"),
        pytest.param("query", {"history": [["a", "b"]]}, "would be read back", id="history"),
        pytest.param("question", {"options": ["a", "b"]}, "none of the choices", id="options"),
        pytest.param("sharegpt", {"sound": "in/d.ogg"}, "name different clips", id="sound"),
    ],
)
def test_a_field_that_means_something_else_there_is_refused(
    form: str, meta: dict[str, Any], reason: str, clips: Path
) -> None:
    write({"id": "1", "messages": [{"role": "user", "content": [audio("a.wav"), text("What?")]}], "answer": "x"})
    (example,) = manifest.read(Path("in/m.jsonl"))
    export = ChatExport(FORMS[form], Path("out.jsonl"))
    export.row(example, None)
    with pytest.raises(DataError, match=reason) as error:
        export.row(replace(example, meta=meta), None)
    assert "rename the field" in str(error.value)


def test_a_tag_in_a_text_is_refused_where_tags_are_read(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write({**SILENT, "messages": [{"role": "user", "content": "What does <audio> mean in HTML?"}]})
    for form in ("swift", "sharegpt", "query", "alpaca", "question"):
        assert run(["build", "convert", "in/m.jsonl", "--to", form, "--out", "x.jsonl"]) == 2
        assert "its text holds '<audio>'" in capsys.readouterr().err
    convert("messages")


def test_openai_and_its_own_two_formats(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(CONVERSATION)
    convert("openai")
    assert "1 flac, 1 ogg: OpenAI's own service takes wav and mp3 only" in capsys.readouterr().err
