"""Rows as other programs write them become rows of our own: what stands where, and what is refused."""

import base64
import json
import shutil
from pathlib import Path

import pytest

from earwise.data import manifest
from earwise.data.formats.convert import FORMATS, OWN, recognise, standard_row
from earwise.data.manifest_path import STARTER
from earwise.errors import DataError
from earwise.types import Audio, Text, Turn

CLIP = next(path for path in sorted((STARTER / "clips").iterdir()) if path.suffix == ".ogg")


@pytest.fixture(autouse=True)
def temporary_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def user(*parts: str | Audio) -> Turn:
    return Turn("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def assistant(text: str) -> Turn:
    return Turn("assistant", (Text(text),))


A, B = Audio("a.wav"), Audio("b.wav")
WHAT = (user(A, "What?"),)
PARTS = [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "What?"}]
SWIFT = {"messages": [{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": "A dog."}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "<audio>What?"}, {"from": "gpt", "value": "A dog."}]}
REPLY = {"role": "assistant", "content": "A dog."}

ROWS = {
    "hugging face, path": ("Hugging Face messages", {"messages": [{"role": "user", "content": PARTS}, REPLY]}, WHAT),
    "hugging face, url": (
        "Hugging Face messages",
        {"messages": [{"role": "user", "content": [{"type": "audio", "url": "file:///x/a.wav"}]}, REPLY]},
        (user(Audio("/x/a.wav")),),
    ),
    "qwen's audio_url": (
        "Hugging Face messages",
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio_url": "a.wav"}, PARTS[1]]}, REPLY]},
        WHAT,
    ),
    "openai audio_url": (
        "OpenAI chat",
        {"messages": [
            {"role": "developer", "content": "Listen."},
            {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "a.wav"}}, PARTS[1]]},
            REPLY,
        ]},
        (Turn("system", (Text("Listen."),)), *WHAT),
    ),
    "ms-swift": ("ms-swift", SWIFT | {"audios": ["a.wav"]}, WHAT),
    "ms-swift, one clip as text": ("ms-swift", SWIFT | {"audios": "a.wav"}, WHAT),
    "ms-swift, no tag": (
        "ms-swift", {"messages": [{"role": "user", "content": "What?"}, REPLY], "audios": ["a.wav"]}, WHAT,
    ),
    "ms-swift, system": (
        "ms-swift", SWIFT | {"audios": ["a.wav"], "system": "Listen."}, (Turn("system", (Text("Listen."),)), *WHAT),
    ),
    "trl, empty part": (
        "ms-swift",
        {"messages": [{"role": "user", "content": [{"type": "audio"}, PARTS[1]]}, REPLY], "audio": "a.wav"},
        WHAT,
    ),
    "sharegpt": ("ShareGPT", SHAREGPT | {"audios": ["a.wav"]}, WHAT),
    "llama-factory, line break after the tag": (
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "<audio>\nWhat?"}, {"from": "gpt", "value": "A dog."}],
         "audios": ["a.wav"], "system": ""},
        WHAT,
    ),
    "audio flamingo": (
        "Audio Flamingo",
        {"sound": ["b.wav", "a.wav"], "conversations": [
            {"from": "human", "value": "Speaker A: <sound-2>\nSpeaker B: <sound-1>\nWho is angry?"},
            {"from": "gpt", "value": "A dog."}]},
        (user("Speaker A: ", A, "Speaker B: ", B, "Who is angry?"),),
    ),
    "audio flamingo, one sound": ("Audio Flamingo", {"sound": "a.wav", "conversations": [
        {"from": "human", "value": "<sound>\nWhat?"}, {"from": "gpt", "value": "A dog."}]}, WHAT),
    "query": ("query and response", {"query": "<audio>What?", "response": "A dog.", "audios": ["a.wav"]}, WHAT),
    "query with history": (
        "query and response",
        {"query": "And <audio>this?", "response": "A dog.", "audios": ["a.wav", "b.wav"], "system": "Hm",
         "history": [["<audio>What?", "A cat."]]},
        (Turn("system", (Text("Hm"),)), user(A, "What?"), assistant("A cat."), user("And ", B, "this?")),
    ),
    "qwen-audio, path in the tag": (
        "query and response", {"query": "Audio 1: <audio>a.wav</audio>\nWhat?", "response": "A dog."}, WHAT,
    ),
    "alpaca": ("Alpaca", {"instruction": "<audio>What", "input": "is it?", "output": "A dog.", "audios": ["a.wav"]},
               (user(A, "What\nis it?"),)),
    "trl, prompt and completion": (
        "prompt and completion", {"prompt": "<audio>What?", "completion": "A dog.", "audio": "a.wav"}, WHAT,
    ),
    "trl, conversational": (
        "prompt and completion", {"prompt": [{"role": "user", "content": PARTS}], "completion": [REPLY]}, WHAT,
    ),
    "question": ("question and answer", {"question": "What?", "answer": "A dog.", "audio_path": "a.wav"}, WHAT),
    "question, hugging face's audio": (
        "question and answer", {"question": "What?", "answer": "A dog.", "audio": {"path": "a.wav"}}, WHAT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_format(name: str) -> None:
    row_format, row, turns = ROWS[name]
    assert recognise(row) == row_format
    example = manifest.from_row(row)
    assert example.turns == turns
    assert example.answer == ("A dog.",) and example.meta == {} and example.id.startswith("row-")
    assert manifest.from_row(manifest.to_row(example)) == example
    assert manifest.from_row(row | {"id": 7, "task": "caption", "extra": [1]}).meta == {"extra": [1]}
    assert manifest.from_row(row | {"id": 7}).id == "7"


def test_every_format_has_a_row() -> None:
    assert {entry.name for entry in FORMATS} == {row_format for row_format, _, _ in ROWS.values()}


PREFERENCES = {
    "ms-swift": SWIFT | {"audios": ["a.wav"], "rejected_response": "A cat."},
    "ms-swift, messages": SWIFT | {
        "audios": ["a.wav"],
        "rejected_messages": [SWIFT["messages"][0], {"role": "assistant", "content": "A cat."}],
    },
    "llama-factory": {
        "conversations": SHAREGPT["conversations"][:1], "audios": ["a.wav"],
        "chosen": {"from": "gpt", "value": "A dog."}, "rejected": {"from": "gpt", "value": "A cat."},
    },
    "trl": {"prompt": "<audio>What?", "chosen": "A dog.", "rejected": "A cat.", "audios": ["a.wav"]},
    "trl, prompt in the replies": {
        "chosen": [SWIFT["messages"][0], REPLY], "audios": ["a.wav"],
        "rejected": [SWIFT["messages"][0], {"role": "assistant", "content": "A cat."}],
    },
    "alpaca": {
        "instruction": "<audio>What?", "input": "", "chosen": "A dog.", "rejected": "A cat.", "audios": ["a.wav"],
    },
    "query": {"query": "<audio>What?", "response": "A dog.", "rejected_response": "A cat.", "audios": ["a.wav"]},
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_of_each_format(name: str) -> None:
    example = manifest.from_row(PREFERENCES[name])
    assert example.turns == WHAT
    assert (example.chosen, example.rejected, example.answer) == (("A dog.",), ("A cat.",), ("A dog.",))


REFUSED = [
    (SWIFT | {"audios": []}, r"'<audio>' is a place for a clip and has no clip"),
    (SWIFT | {"audios": ["a.wav", "b.wav"]}, r"1 tags such as '<audio>' and 2 clips"),
    (SWIFT | {"audios": [3]}, r"audios, clip 1: 3 is no clip"),
    (SWIFT | {"audios": ["a.wav"], "audio": "b.wav"}, r"audios and audio name different clips"),
    (SWIFT | {"clip": "a.wav"}, r"'<audio>' is a place for a clip and has no clip"),
    ({"messages": [{"role": "user", "content": "What?"}, REPLY], "clip": "a"}, r"no clip, but the key 'clip' names"),
    ({"messages": [{"role": "user", "content": "What?"}, REPLY], "x": "deep/a.WAV"}, r"no clip, but the key 'x' names"),
    ({"id": "1", "messages": [{"role": "user", "content": "<|AUDIO|>What?"}], "answer": "x"}, r"'<\|AUDIO\|>', which"),
    ({"id": "1", "messages": [{"role": "user", "content": "What?"}], "file_name": "a"}, r"key 'file_name' names sound"),
    ({"messages": [{"role": "user", "content": [*PARTS, {"type": "text", "text": "<audio>"}]}]}, r"beside audio parts"),
    (
        {"id": "1", "answer": "x", "messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"},
         {"type": "text", "text": "<sound-2>?"}]}]},
        r"text holds '<sound-2>', which stands for a clip; remove it",
    ),
    (
        {"id": "1", "messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}],
         "choices": ["<audio>", "b"]},
        r"text holds '<audio>'",
    ),
    ({"sound": ["a.wav", "b.wav"], "conversations": [{"from": "human", "value": "<sound-1> <sound-1>"}]}, r"each of 2"),
    ({"sound": ["a.wav"], "conversations": [{"from": "tool", "value": "x"}]}, r"message 1: role 'tool' is none of"),
    (SWIFT | {"audios": ["a.wav"], "images": ["x.png"]}, r"images is .*only text and sound"),
    ({"query": "What?", "audios": ["https://example.org/a.wav"]}, r"is an address; download the file"),
    ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, r"message 1: unknown key 'weight'"),
    ({"wav": "a.wav", "label": "dog"}, r"the keys wav, label are of no known format; write messages"),
    ({"messages": [{"role": "user", "content": {"type": "input_audio", "input_audio": {"data": "!"}}}]}, "not base64"),
    ({"messages": [{"role": "user", "content": "Say."}, {"role": "assistant", "content": PARTS}]}, "replies are text"),
    ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a", "path": "b"}]}]}, "both name the clip"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_a_row_in_which_sound_is_meant_and_not_there_is_refused(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        manifest.from_row(row, location="m.jsonl:row 3")
    assert str(caught.value).startswith("m.jsonl:row 3: ") and "\n" not in str(caught.value)


def test_text_only_is_declared(tmp_path: Path) -> None:
    row = {"id": "1", "messages": [{"role": "user", "content": "What is <audio> in HTML?"}], "answer": "A tag."}
    example = manifest.from_row(row | {"text_only": True})
    assert example.text_only and example.question == "What is <audio> in HTML?"
    assert manifest.to_row(example)["text_only"] is True
    assert manifest.from_row(manifest.to_row(example)) == example
    foreign = {"query": "What is <audio>?", "response": "A tag.", "text_only": True}
    assert manifest.from_row(foreign).question == "What is <audio>?"
    with pytest.raises(DataError, match="text_only is true and the row has 'audios'"):
        manifest.from_row(foreign | {"audios": ["a.wav"]})
    plain = row | {"messages": [{"role": "user", "content": "What?"}]}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(plain) + "\n")
    with pytest.raises(DataError, match=r"m\.jsonl:row 1: no clip; .*text_only: true"):
        manifest.read(path)
    assert manifest.read(path, require_audio=False)[0].question == "What?"
    path.write_text(json.dumps(plain | {"text_only": True}) + "\n")
    assert manifest.read(path)[0].text_only


def test_rows_of_our_own_are_not_touched() -> None:
    rows = [json.loads(line) for line in (STARTER / "val.jsonl").read_text().splitlines()]
    assert {recognise(row) for row in rows} == {OWN}
    assert all(standard_row(row, "row") is row for row in rows)
    row = rows[0] | {"audio_path": "clips/x.ogg"}
    assert manifest.from_row(row).meta["audio_path"] == "clips/x.ogg"


def test_audio_inside_a_row_is_kept_once_under_its_hash(temporary_home: Path) -> None:
    data = base64.b64encode(CLIP.read_bytes()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/ogg;base64,{data.rstrip('=')}"}}
    row = {"messages": [{"role": "user", "content": [part, "First. ", url, "Same?"]}, REPLY]}
    example = manifest.from_row(row)
    first, second = example.audio_paths
    assert first == second and first.suffix == ".ogg" and first.read_bytes() == CLIP.read_bytes()
    assert temporary_home in first.parents
    stamp = first.stat().st_mtime_ns
    assert manifest.from_row(row) == example and first.stat().st_mtime_ns == stamp
    assert len([path for path in temporary_home.rglob("*") if path.is_file()]) == 1
    first.write_bytes(b"half")
    assert manifest.from_row(row).audio_paths[0].read_bytes() == CLIP.read_bytes()
    in_bytes = {"question": "Same?", "answer": "A dog.", "audio": {"path": None, "bytes": CLIP.read_bytes()}}
    assert manifest.from_row(in_bytes).audio_paths == (first,)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.gz"])
def test_files_of_rows_give_the_same_examples_through_reader_and_index(tmp_path: Path, suffix: str) -> None:
    import gzip

    from earwise.data.index import open_rows

    shutil.copy(CLIP, tmp_path / "a.wav")
    rows = [ROWS[name][1] for name in ("ms-swift", "sharegpt", "query", "hugging face, path", "ms-swift")]
    text = json.dumps(rows, indent=1) if suffix[:5] == ".json" and "jsonl" not in suffix else "".join(
        json.dumps(row) + "\n" for row in rows
    )  # fmt: skip
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    lines: list[str] = []
    examples = manifest.read(path, notify=lines.append)
    assert [example.turns for example in examples] == [WHAT] * 5 and examples[0].root == tmp_path
    assert [example.id for example in examples[4:]] == [f"{examples[0].id}-2"]
    expected = "1 of Hugging Face messages, 1 of ShareGPT, 2 of ms-swift, 1 of query and response"
    assert lines == [f"{path}: 5 rows, recognised by their keys: {expected}"]
    opened: list[str] = []
    indexed = open_rows(path, notify=opened.append)
    assert [row.turns for row in indexed] == [row.turns for row in examples] and opened == lines
    assert [row.audio_paths for row in indexed] == [row.audio_paths for row in examples]


def test_a_list_inside_an_object_and_a_broken_list(tmp_path: Path) -> None:
    shutil.copy(CLIP, tmp_path / "a.wav")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"info": {}, "data": [ROWS["query"][1]]}, indent=1))
    assert manifest.read(path)[0].turns == WHAT
    path.write_text(json.dumps({"a": 1}, indent=1))
    with pytest.raises(DataError, match="a JSON object with a; write one row a line, or a list of rows"):
        manifest.read(path)
    path.write_text(json.dumps([ROWS["query"][1]])[:-9])
    with pytest.raises(DataError, match=r"rows\.json:item 1: not JSON"):
        manifest.read(path)


def test_turns_of_nemo_hold_a_text_or_a_clip_each() -> None:
    row = {"id": "c2", "conversations": [
        {"from": "User", "type": "text", "value": "Who speaks?"},
        {"from": "User", "type": "audio", "value": "a.wav", "duration": 2.0, "offset": 1.0},
        {"from": "Assistant", "type": "text", "value": "A man."},
        {"from": "User", "type": "audio", "value": "b.wav", "duration": 1.5},
        {"from": "Assistant", "type": "text", "value": "A woman."},
    ]}  # fmt: skip
    example = manifest.from_row(row)
    assert [turn.role for turn in example.turns] == ["user", "assistant", "user"] and example.answer == ("A woman.",)
    assert example.turns[0].parts == (Text("Who speaks?"), Audio("a.wav", 1.0, 3.0))
    assert example.turns[2].parts == (Audio("b.wav"),)
    row["conversations"][0]["speaker"] = "s1"
    with pytest.raises(DataError, match="message 1: unknown key 'speaker'"):
        manifest.from_row(row)


@pytest.mark.parametrize("tag", ["<audio&gt;", "&lt;audio&gt;", "&lt;|audio_1|&gt;"])
def test_a_tag_with_escaped_brackets_is_refused(tag: str) -> None:
    with pytest.raises(DataError, match="a tag with escaped brackets; write it as <audio>"):
        manifest.from_row({"query": f"{tag}What?", "response": "A dog.", "audios": ["a.wav"]})
    manifest.from_row({"query": "<audio>Is 1 &lt; 2 &amp; 3 &gt; 2?", "response": "Yes.", "audios": ["a.wav"]})
