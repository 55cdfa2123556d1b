"""The index of a manifest gives the same rows and errors as reading the whole manifest, and is cached while valid."""

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from earwise.data import manifest
from earwise.data.index import ManifestRows, open_rows
from earwise.data.index_build import index_path, open_index
from earwise.data.manifest_path import STARTER
from earwise.data.mixture import Mixture
from earwise.errors import DataError
from earwise.types import Example


@pytest.fixture(autouse=True)
def temporary_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def row(number: int, clip: str, **fields: object) -> dict:
    content = [{"type": "audio", "audio": clip}] if clip else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "what?"}]}]
    return {"id": f"r{number}", "messages": messages, "answer": "dog", **fields}


def write_lines(path: Path, rows: list[object]) -> Path:
    """Write rows (objects, or lines as they are) to a file."""
    lines = (line if isinstance(line, str) else json.dumps(line) for line in rows)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def filtered(examples: list[Example], conditions: dict[str, str | tuple[str, ...]]) -> list[Example]:
    """The examples with an answer that meet the conditions, each a value or several."""
    return [
        example
        for example in examples
        if example.answer
        and all(
            getattr(example, key) in ((value,) if isinstance(value, str) else value)
            for key, value in conditions.items()
        )
    ]


def grouped(examples: list[Example]) -> list[tuple[Example, ...]]:
    groups: dict[tuple[Path, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.audio_paths, []).append(example)
    return [tuple(group) for group in groups.values()]


def open_in_parts(path: Path, size: int = 2000, workers: int = 1) -> ManifestRows:
    """The rows of a manifest that is read in parts of `size` bytes."""
    index = open_index(path, part_bytes=size, workers=workers)
    return ManifestRows(index, np.arange(len(index.offsets)))


@pytest.mark.parametrize("name", ["train", "val"])
def test_rows_filters_and_groups_equal_those_of_the_whole_manifest(name: str) -> None:
    path = STARTER / f"{name}.jsonl"
    rows, read = open_rows(path), manifest.read(path)
    assert list(rows) == read
    assert list(open_in_parts(path)) == read
    for conditions in ({}, {"task": "recognition"}, {"category": "speech", "task": "yes_no"}, {"language": "tlh"},
                       {"category": ("speech", "music"), "task": ["yes_no", "recognition"]}, {"task": ()}):  # fmt: skip
        selected = rows.select(conditions, require_answer=True)
        assert list(selected) == filtered(read, conditions)
        assert list(selected.group_by_clips()) == grouped(filtered(read, conditions))
    assert [example.id for example in rows[3:5]] == [example.id for example in read[3:5]]
    assert rows[-1] == read[-1]
    with pytest.raises(IndexError):
        rows[len(read)]


def test_order_and_position_of_a_mixture_are_the_same_with_and_without_index() -> None:
    read, rows = manifest.read(STARTER / "val.jsonl"), open_in_parts(STARTER / "val.jsonl")
    plain = Mixture([(grouped(read), 1.0), (grouped(filtered(read, {"task": "yes_no"})), 2.0)], 7)
    indexed = Mixture([(rows.group_by_clips(), 1.0), (rows.select({"task": "yes_no"}).group_by_clips(), 2.0)], 7)
    count = 3 * len(grouped(read))
    assert list(islice(plain, count)) == list(islice(indexed, count))
    assert plain.state_dict() == indexed.state_dict()


def test_training_takes_rows_and_lists_alike() -> None:
    from earwise.data.manifest import select
    from earwise.training.batches import group_by_clips

    read, rows = manifest.read(STARTER / "val.jsonl"), open_rows(STARTER / "val.jsonl")
    conditions = {"category": "music"}
    expected = [example for example in select(read, conditions) if example.answer]
    assert list(group_by_clips(rows.select(conditions, require_answer=True))) == group_by_clips(expected)
    assert len(group_by_clips(expected)) > 10


def test_parts_may_begin_within_lines(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    rows = [row(number, "a.wav", task=f"task {number % 3}", group="g" * (number % 2)) for number in range(40)]
    path = write_lines(tmp_path / "m.jsonl", [*rows[:20], "", "   ", *rows[20:]])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    whole = open_index(path)
    for size in (1, 7, 150, 1000):
        parted = open_index(path, part_bytes=size, workers=1)
        index_path(path).unlink()
        assert parted.values == whole.values
        for name in ("offsets", "clip_hashes", "group_hashes", "codes", "has_answer", "has_reasoning"):
            assert np.array_equal(getattr(parted, name), getattr(whole, name)), (size, name)
    assert list(open_in_parts(path)) == manifest.read(path)
    assert len(set(whole.group_hashes.tolist())) == 2
    assert len(set(whole.clip_hashes.tolist())) == 1


def test_several_processes_give_the_same_rows_as_one(tmp_path: Path) -> None:
    path = STARTER / "train.jsonl"
    assert list(open_in_parts(path, 100_000, workers=2)) == manifest.read(path)


def test_rows_are_filtered_by_answer_and_reasoning(tmp_path: Path) -> None:
    rows = [row(0, ""), row(1, "", answer=None), row(2, "", reasoning="since"), row(3, "", reasoning="")]
    opened = open_rows(write_lines(tmp_path / "m.jsonl", rows))
    assert [example.id for example in opened.select({}, require_answer=True)] == ["r0", "r2", "r3"]
    assert [example.id for example in opened.select({}, require_answer=True).without_reasoning()] == ["r0", "r3"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [""],
        [row(0, ""), "", "{"],
        [row(0, ""), "[1]"],
        [row(0, ""), "", row(1, "gone.wav")],
        [row(0, ""), row(1, ""), "", row(0, ""), row(1, "")],
        [row(0, ""), row(1, "", choices=["cat", "cow"])],
        [row(0, ""), {"anwser" if key == "answer" else key: value for key, value in row(1, "").items()}],
        [row(0, ""), {"id": "x"}],
    ],
)
@pytest.mark.parametrize("size", [60, 1 << 20])
def test_errors_equal_those_without_index(tmp_path: Path, rows: list, size: int) -> None:
    path = write_lines(tmp_path / "m.jsonl", rows)
    with pytest.raises(DataError) as plain:
        manifest.read(path, require_audio=False)
    with pytest.raises(DataError) as indexed:
        open_index(path, part_bytes=size, workers=1)
    assert str(indexed.value) == str(plain.value)
    assert not index_path(path).exists()


def test_errors_of_unreadable_files_equal_those_without_index(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(row(0, "")).encode() + b'\n{"id": "\xe9"}\n')
    (tmp_path / "wide.jsonl").write_bytes(json.dumps(row(0, "")).encode("utf-16"))
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "latin.jsonl", tmp_path / "wide.jsonl"):
        with pytest.raises(DataError) as plain:
            manifest.read(path, require_audio=False)
        with pytest.raises(DataError) as indexed:
            open_rows(path)
        assert str(indexed.value) == str(plain.value)


def test_a_cached_index_is_used_until_size_or_time_change_and_a_changed_row_is_noticed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(b"x")
    path = write_lines(tmp_path / "m.jsonl", [row(number, "a.wav") for number in range(30)])
    first = open_in_parts(path)
    assert index_path(path).exists()
    stat = path.stat()
    path.write_text(path.read_text().replace("a.wav", "b.wav"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    cached = open_in_parts(path)
    assert cached.select({"task": "open"})._row_numbers.tolist() == list(range(30))
    for rows in (first, cached):
        with pytest.raises(DataError, match=r"m\.jsonl.*no longer what was read"):
            rows[3]
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert open_in_parts(path)[3].audio_paths == (tmp_path / "b.wav",)


def test_a_damaged_or_unwritable_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "m.jsonl", [row(number, "") for number in range(30)])
    expected = list(open_in_parts(path))
    data = index_path(path).read_bytes()
    for damaged in (b"", b"PK no zip", data[: len(data) // 2]):
        index_path(path).write_bytes(damaged)
        assert list(open_in_parts(path)) == expected
    assert index_path(path).read_bytes() == data
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "file" / "below"))
    messages: list[str] = []
    assert len(open_index(path, part_bytes=500, workers=1, notify=messages.append).offsets) == 30
    assert any("not kept" in line for line in messages)
