"""Packed and unpacked, a manifest is the same file and every sound the same bytes; what is torn or evil is refused."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from earwise.cli import run
from earwise.data import manifest
from earwise.data.webdataset import from_webdataset, to_webdataset
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

CLIPS = Path(manifest.__file__).parents[1] / "assets" / "starter" / "clips"
SPLITS = ("train", "val", "train", "test", "train")


@pytest.fixture
def packed_from(tmp_path: Path) -> Path:
    """Rows with one sound, two, none; a sound shared by two rows; splits that take turns; a field of their own."""
    root = tmp_path / "data"
    names = []
    for clip in sorted(CLIPS.glob("*.ogg"))[:6]:
        names.append(f"clips/{clip.name}")
        (root / "clips").mkdir(parents=True, exist_ok=True)
        (root / names[-1]).write_bytes(clip.read_bytes())
    sounds = [[names[0]], [names[1]], [names[0]], [names[2], names[3]], [], [names[4]], [names[5]]]
    examples = []
    for number, paths in enumerate(sounds):
        turns = (Turn("user", (*map(Audio, paths), Text("What is this? – 日本"))), Turn("assistant", (Text("hm"),)))
        more = {"answer": ("a", "b"), "reasoning": "since", "meta": {"label": {"x": [1, 2.5, None]}}}
        examples.append(Example(f"x/{number}.y", turns, root=root, split=SPLITS[number % 5], **more))
    manifest.write(root / "rows.jsonl", examples)
    return root / "rows.jsonl"


def same(one: Path, other: Path) -> None:
    assert other.read_bytes() == one.read_bytes()
    for example in manifest.read(one):
        for part in (part for turn in example.turns for part in turn.parts if isinstance(part, Audio)):
            assert (other.parent / part.path).read_bytes() == (one.parent / part.path).read_bytes()


def members(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


@pytest.mark.parametrize("command", ["shards", "parquet"])
def test_there_and_back_through_the_command_line(packed_from: Path, tmp_path: Path, command: str) -> None:
    if command == "parquet":
        pytest.importorskip("pyarrow")
    packed, back = tmp_path / "packed", tmp_path / "back" / "rows.jsonl"
    assert run(["build", command, str(packed_from), "--out", str(packed)]) == 0
    assert run(["build", command, str(packed), "--out", str(back)]) == 0
    same(packed_from, back)
    assert not [path for path in packed.rglob("*") if path.name.startswith(".")]
    assert run(["build", command, str(packed_from), "--out", str(packed)]) == 2  # holds something
    assert run(["build", command, str(packed), "--out", str(back)]) == 2


def test_small_shards_hold_all_rows_in_order(packed_from: Path, tmp_path: Path) -> None:
    shards = to_webdataset(packed_from, tmp_path / "packed", shard_bytes=30_000)
    assert len(shards) > 2
    inside = [members(tmp_path / "packed" / shard["name"]) for shard in shards]
    assert [shard["rows"] for shard in shards] == [sum(name.endswith(".json") for name in names) for names in inside]
    first = [name for names in inside for name in names][:4]
    assert first == ["000000000.json", "000000000.ogg", "000000001.json", "000000001.ogg"]
    assert from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl") == 7
    same(packed_from, tmp_path / "back" / "rows.jsonl")


def test_a_sound_outside_the_folder_comes_back_under_its_hash(packed_from: Path, tmp_path: Path) -> None:
    far = sorted(CLIPS.glob("*.ogg"))[10]
    lines = [
        {"id": str(number), "messages": [{"role": "user", "content": [{"type": "audio", "audio": path}]}]}
        for number, path in enumerate([str(far), "../data/clips/" + sorted(CLIPS.glob("*.ogg"))[0].name])
    ]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    to_webdataset(tmp_path / "here" / "m.jsonl", tmp_path / "packed")
    from_webdataset(tmp_path / "packed", tmp_path / "back" / "m.jsonl")
    first, second = manifest.read(tmp_path / "back" / "m.jsonl")
    assert first.audio_paths[0].read_bytes() == far.read_bytes()
    assert first.audio_paths[0].parent == tmp_path / "back" / "clips"
    assert second.audio_paths[0].read_bytes() == sorted(CLIPS.glob("*.ogg"))[0].read_bytes()


def test_missing_torn_and_short_shards_are_refused(packed_from: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "packed", tmp_path / "back" / "rows.jsonl"
    shards = to_webdataset(packed_from, packed, shard_bytes=30_000)
    last = packed / shards[-1]["name"]
    data = last.read_bytes()
    last.write_bytes(data[: len(data) // 2 // 512 * 512 + 100])
    with pytest.raises(DataError, match=last.name):
        from_webdataset(packed, out)
    last.write_bytes(tarfile.NUL * 1024)
    with pytest.raises(DataError, match=r"holds 0 of \d rows"):
        from_webdataset(packed, out)
    last.unlink()
    with pytest.raises(DataError, match=f"{last.name} is missing"):
        from_webdataset(packed, out)
    assert not out.exists()
    last.write_bytes(data)  # what was unpacked before is taken as it is
    assert from_webdataset(packed, out) == 7
    same(packed_from, out)


@pytest.mark.parametrize("path", ["../evil.ogg", "/tmp/evil.ogg", "a/../../evil.ogg", "C:\\evil.ogg"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    row = {"id": "a", "messages": [{"role": "user", "content": [{"type": "audio", "audio": path}]}]}
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "0.tar", "w") as tar:
        for name, data in (("0.json", json.dumps(row).encode()), ("0.ogg", b"evil")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match="leads out"):
        from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl")
    assert [found.name for found in tmp_path.rglob("*evil*")] == []


def test_other_peoples_shards_and_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.tar"):
        from_webdataset(tmp_path, tmp_path / "rows.jsonl")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.cls"), io.BytesIO())
    with pytest.raises(DataError, match=r"no a\.json"):
        from_webdataset(tmp_path, tmp_path / "rows.jsonl")


def test_parquet_files_keep_order_over_splits_and_say_what_is_missing(packed_from: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from earwise.data.parquet import from_parquet, to_parquet

    files = to_parquet(packed_from, tmp_path / "packed", shard_bytes=30_000)
    assert sum(one["rows"] for one in files) == 7
    names = {one["name"] for one in files}
    assert {"data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"} < names
    assert len([name for name in names if "train" in name]) > 1
    assert from_parquet(tmp_path / "packed", tmp_path / "back" / "rows.jsonl") == 7
    same(packed_from, tmp_path / "back" / "rows.jsonl")
    first = tmp_path / "packed" / min(names - {"data/test-00000-of-00001.parquet"})
    data = first.read_bytes()
    first.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=first.name):
        from_parquet(tmp_path / "packed", tmp_path / "other" / "rows.jsonl")
    first.unlink()
    with pytest.raises(DataError, match="fetch the others"):
        from_parquet(tmp_path / "packed", tmp_path / "other" / "rows.jsonl")


def test_datasets_sees_splits_and_an_audio_column(packed_from: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from earwise.data.parquet import to_parquet

    to_parquet(packed_from, tmp_path / "packed")
    loaded = datasets.load_dataset(str(tmp_path / "packed"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 4, "validation": 2, "test": 1}
    assert isinstance(loaded["train"].features["audio"], datasets.Audio)
    plain = loaded["train"].cast_column("audio", datasets.Audio(decode=False))
    example = manifest.read(packed_from)[0]
    assert plain[0]["audio"] == {"bytes": example.audio_paths[0].read_bytes(), "path": example.turns[0].parts[0].path}
    assert plain[0]["answer"] == ["a", "b"]
