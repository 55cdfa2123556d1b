"""Manifests are written and read without loss; invalid rows raise one-line errors that name file and row."""

import json
from pathlib import Path

import pytest

from earwise.data import manifest
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

ROW = {
    "id": "a-1",
    "messages": [
        {
            "role": "user",
            "content": [{"type": "audio", "audio": "clips/a.ogg"}, {"type": "text", "text": "Which sound is this?"}],
        }
    ],
    "choices": ["dog bark", "drilling"],
    "answer": "drilling",
    "reasoning": None,
    "task": "recognition",
    "category": "sound",
    "difficulty": None,
    "source": "S",
    "licence": "CC0",
    "group": "g",
    "split": "val",
    "language": "en",
}


def write_manifest(folder, *rows, name="m.jsonl"):
    """Write rows (objects, or lines as they are) and the audio file that ROW names."""
    (folder / "clips").mkdir(exist_ok=True)
    (folder / "clips" / "a.ogg").write_bytes(b"x")
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_complete_row(tmp_path):
    (example,) = manifest.read(write_manifest(tmp_path, ROW))
    assert example.answer == ("drilling",) and example.choices == ("dog bark", "drilling") and example.split == "val"
    assert example.turns == (Turn("user", (Audio("clips/a.ogg"), Text("Which sound is this?"))),)
    assert example.audio_paths == (tmp_path / "clips" / "a.ogg",)
    assert manifest.to_row(example) == ROW and list(manifest.to_row(example)) == list(ROW)


def test_unknown_fields_are_kept_and_written_back(tmp_path):
    row = ROW | {"emotion": "calm", "level": {"deep": [1, None]}}
    (example,) = manifest.read(write_manifest(tmp_path, row))
    assert example.meta == {"emotion": "calm", "level": {"deep": [1, None]}}
    manifest.write(tmp_path / "again.jsonl", [example])
    assert [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()] == [row]


def test_written_examples_are_read_back_equal(tmp_path):
    turns = (Turn("system", (Text("Listen."),)), Turn("user", (Audio("a.wav"), Audio("b.wav"), Text("ü?"))))
    examples = [
        Example("1", turns, root=tmp_path),
        Example("2", turns, ("a", "b"), reasoning="so", difficulty="hard", language="de", root=tmp_path, meta={"k": 0}),
        Example("3", (*turns, Turn("assistant", (Text("a"),)), Turn("user", ())), root=tmp_path),
    ]
    assert manifest.write(tmp_path / "m.jsonl", examples) == 3
    assert manifest.read(tmp_path / "m.jsonl", check_files=False) == examples


def test_audio_paths_become_relative_to_the_new_folder(tmp_path):
    (example,) = manifest.read(write_manifest(tmp_path, ROW))
    (tmp_path / "sub").mkdir()
    manifest.write(tmp_path / "sub" / "m.jsonl", [example])
    (moved,) = manifest.read(tmp_path / "sub" / "m.jsonl")
    assert moved.turns[0].parts[0] == Audio("../clips/a.ogg")


def test_parts_are_recognised_by_type_although_arrow_adds_keys(tmp_path):
    content = [{"type": "text", "text": "Hm", "audio": None, "x": None}, {"type": "audio", "audio": "a", "text": None}]
    row = {"id": "1", "messages": [{"role": "user", "content": content, "name": None}], "choices": None, "answer": None}
    example = manifest.from_row(row)
    assert example.turns[0].parts == (Text("Hm"), Audio("a")) and example.choices == () and example.answer == ()
    assert manifest.from_row({"id": "1", "messages": [{"role": "user", "content": "Hi"}]}).question == "Hi"


def test_iteration_stops_at_the_invalid_row(tmp_path):
    rows = manifest.iterate(write_manifest(tmp_path, ROW, "", "{"))
    assert next(rows).id == "a-1"
    with pytest.raises(DataError, match=r"m\.jsonl:row 3: not JSON"):
        next(rows)


def row_with(**fields):
    return ROW | {"id": "b"} | fields


def row_with_content(*parts):
    return row_with(messages=[{"role": "user", "content": list(parts)}])


INVALID_ROWS = [
    ('{"id": "b", ', r"row 2: not JSON \(.*one JSON object a line"),
    ("[1]", r"row 2: a JSON list where an object"),
    ({"id": "b"}, r"row 2: the keys id are of no known format; write messages, conversations, query/response"),
    ({"id": "b", "mesages": []}, r"row 2: unknown field 'mesages'; did you mean 'messages'\?"),
    ({"id": "b", "messages": ROW["messages"], "anwser": "x"}, r"unknown field 'anwser'; did you mean 'answer'\?"),
    (row_with(id=True), r"row 2: id is True, a bool; write it as a string"),
    (row_with(id=""), r"row 2: id is empty"),
    (ROW, r"row 2: id 'a-1' is taken by row 1"),
    (
        row_with(answer="Drilling"),
        r"row 2: answer 'Drilling' is none of the choices 'dog bark', 'drilling'; did you mean",
    ),
    (row_with(answer=True), r"row 2: answer is True, a bool"),
    (row_with(answer=["drilling", "dog bark"]), r"row 2: 2 answers with choices"),
    (row_with(choices=["drilling", "drilling"]), r"row 2: choice 'drilling' occurs twice"),
    (row_with(choices=["drilling"]), r"row 2: only one choice"),
    (row_with(choices=["drilling", " "]), r"row 2: a choice is empty"),
    (row_with(choices="drilling"), r"row 2: choices is 'drilling', a str; write a list"),
    (row_with(split="valid"), r"row 2: split 'valid' is none of train, val, test"),
    (row_with(group=5), r"row 2: group is 5, a int"),
    (row_with(reasoning=["x"]), r"row 2: reasoning is \['x'\], a list"),
    (row_with(messages=[]), r"row 2: messages is \[\]"),
    (row_with(messages=["hi"]), r"row 2: message 1: 'hi' is no object"),
    (row_with(messages=[{"role": "usr", "content": "x"}]), r"row 2: message 1: role 'usr' .*did you mean 'user'\?"),
    (row_with(messages=[{"role": "user", "content": "x", "tool": 1}]), r"message 1: unknown key 'tool'"),
    (row_with(messages=[{"role": "user", "content": None}]), r"message 1: content is None"),
    (row_with_content({"type": "input_audio", "input_audio": {}}), r"message 1, part 1: input_audio: \{\} is no clip"),
    (
        row_with_content({"type": "audio", "clip": "a.wav"}),
        r"part 1: unknown key 'clip'; known keys are type, text, audio",
    ),
    (row_with_content({"type": "audio", "audio": None}), r"'part of type audio' is a place for a clip and has no clip"),
    (row_with_content({"type": "sound", "audio": "a"}), r"part 1: type 'sound' is none of text, audio"),
    (
        row_with_content({"type": "audio", "audio": "clips/b.ogg"}),
        r"row 2: audio file .*b\.ogg is missing; paths are relative",
    ),
]


@pytest.mark.parametrize(("row", "message"), INVALID_ROWS)
def test_invalid_rows(tmp_path, row, message):
    path = write_manifest(tmp_path, ROW, row)
    with pytest.raises(DataError, match=message) as caught:
        manifest.read(path)
    assert str(caught.value).startswith(f"{path}:row 2: ") and "\n" not in str(caught.value)


def test_invalid_files(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        manifest.read(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        manifest.read(tmp_path)
    with pytest.raises(DataError, match=r"m\.jsonl: holds no rows"):
        manifest.read(write_manifest(tmp_path))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match=r"b\.jsonl:row 1: is not UTF-8"):
        manifest.read(tmp_path / "b.jsonl")


def test_invalid_examples_do_not_change_the_file(tmp_path):
    path = write_manifest(tmp_path, ROW)
    before = path.read_text()
    turns = (Turn("user", (Text("x"),)),)
    with pytest.raises(DataError, match="id '1' occurs twice"):
        manifest.write(path, [Example("1", turns), Example("1", turns)])
    with pytest.raises(DataError, match="meta holds the field 'answer'"):
        manifest.write(path, [Example("1", turns, meta={"answer": "x"})])
    assert path.read_text() == before and sorted(p.name for p in Path(tmp_path).iterdir()) == ["clips", "m.jsonl"]
