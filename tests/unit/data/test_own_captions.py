"""Captions of one's own, as tables, JSON lines and manifests."""

import json
from pathlib import Path

import pytest

from earwise.data import manifest, sources
from earwise.types import Audio, Example, Text, Turn


def load(path: Path, skipped: list[str] | None = None) -> list[Example]:
    on_skip = pytest.fail if skipped is None else skipped.append
    return list(sources.load("own", path, on_skip))


def test_json_lines_and_tables(tmp_path: Path) -> None:
    folder = tmp_path / "set"  # the name of the temporary folder holds a word that would be a split
    folder.mkdir()
    rows = [
        {"path": "a.wav", "caption": "A dog  barks.", "group": "g", "split": "dev", "licence": "CC0"},
        {"file_name": "b.wav", "captions": ["It rains.", "Rain falls.", "It rains."]},
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = (
        "path;caption_1;caption_2;group;split;licence\na.wav;A dog barks.;;g;val;CC0\nb.wav;It rains.;Rain falls.;;;\n"
    )
    (folder / "captions.csv").write_text("\ufeff" + table)
    for name in ("captions.jsonl", "captions.csv"):
        first, second = load(folder / name)
        assert (first.answer, first.group, first.split, first.licence) == (("A dog barks.",), "g", "val", "CC0")
        assert (second.answer, second.group, second.split) == (("It rains.", "Rain falls."), "b.wav", "train")
        assert (first.task, first.source, first.audio_paths) == ("caption", "own", (folder / "a.wav",))


def test_a_manifest_of_captions(tmp_path: Path) -> None:
    turn = Turn("user", (Audio("a.wav"), Text("Describe it.")))
    good = Example("1", (turn,), ("A dog barks.",), task="caption")
    manifest.write(tmp_path / "m.jsonl", [good, Example("2", (turn,), ("yes",), ("yes", "no"))])
    skipped: list[str] = []
    (row,) = load(tmp_path / "m.jsonl", skipped)
    assert (row.answer, row.source) == (("A dog barks.",), "own")
    assert "row 2: no caption of one clip" in skipped[0]


def test_rows_without_path_or_caption_are_skipped_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("path,caption,split\na.wav,,\n,It rains.,\nb.wav,It rains.,held-out\n")
    skipped: list[str] = []
    assert load(tmp_path / "c.csv", skipped) == []
    assert ["row 2: no caption" in skipped[0], "row 3: no path" in skipped[1], "split is 'held-out'" in skipped[2]] == [
        True, True, True
    ]  # fmt: skip
