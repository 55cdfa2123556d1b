"""A packed and unpacked manifest and its audio files keep their bytes; damaged or malicious archives are errors."""

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
def source_manifest(tmp_path: Path) -> Path:
    """Manifest with rows of one, two and no clips, a clip in two rows, alternating splits, and a custom field."""
    root = tmp_path / "data"
    names = []
    for clip in sorted(CLIPS.glob("*.ogg"))[:6]:
        names.append(f"clips/{clip.name}")
        (root / "clips").mkdir(parents=True, exist_ok=True)
        (root / names[-1]).write_bytes(clip.read_bytes())
    row_clips = [[names[0]], [names[1]], [names[0]], [names[2], names[3]], [], [names[4]], [names[5]]]
    examples = []
    for number, paths in enumerate(row_clips):
        turns = (Turn("user", (*map(Audio, paths), Text("What is this? – 日本"))), Turn("assistant", (Text("hm"),)))
        fields = {"answer": ("a", "b"), "reasoning": "since", "meta": {"label": {"x": [1, 2.5, None]}}}
        examples.append(
            Example(f"x/{number}.y", turns, root=root, split=SPLITS[number % 5], text_only=not paths, **fields)
        )
    manifest.write(root / "rows.jsonl", examples)
    return root / "rows.jsonl"


def assert_same(first: Path, second: Path) -> None:
    """The manifests and all their audio files have the same bytes."""
    assert second.read_bytes() == first.read_bytes()
    for example in manifest.read(first):
        for part in (part for turn in example.turns for part in turn.parts if isinstance(part, Audio)):
            assert (second.parent / part.path).read_bytes() == (first.parent / part.path).read_bytes()


def member_names(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


@pytest.mark.parametrize("command", ["shards", "parquet"])
def test_packing_and_unpacking_through_the_command_line(source_manifest: Path, tmp_path: Path, command: str) -> None:
    if command == "parquet":
        pytest.importorskip("pyarrow")
    packed, back = tmp_path / "packed", tmp_path / "back" / "rows.jsonl"
    assert run(["build", command, str(source_manifest), "--out", str(packed)]) == 0
    assert run(["build", command, str(packed), "--out", str(back)]) == 0
    assert_same(source_manifest, back)
    assert not [path for path in packed.rglob("*") if path.name.startswith(".")]
    assert run(["build", command, str(source_manifest), "--out", str(packed)]) == 2  # the folder is not empty
    assert run(["build", command, str(packed), "--out", str(back)]) == 2


def test_small_shards_hold_all_rows_in_order(source_manifest: Path, tmp_path: Path) -> None:
    shards = to_webdataset(source_manifest, tmp_path / "packed", shard_bytes=30_000)
    assert len(shards) > 2
    names_by_shard = [member_names(tmp_path / "packed" / shard["name"]) for shard in shards]
    assert [shard["rows"] for shard in shards] == [
        sum(name.endswith(".json") for name in names) for names in names_by_shard
    ]
    first = [name for names in names_by_shard for name in names][:4]
    assert first == ["000000000.json", "000000000.ogg", "000000001.json", "000000001.ogg"]
    assert from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl") == 7
    assert_same(source_manifest, tmp_path / "back" / "rows.jsonl")


def test_a_clip_outside_the_folder_is_renamed_to_its_hash(source_manifest: Path, tmp_path: Path) -> None:
    outside = sorted(CLIPS.glob("*.ogg"))[10]
    lines = [
        {"id": str(number), "messages": [{"role": "user", "content": [{"type": "audio", "audio": path}]}]}
        for number, path in enumerate([str(outside), "../data/clips/" + sorted(CLIPS.glob("*.ogg"))[0].name])
    ]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    to_webdataset(tmp_path / "here" / "m.jsonl", tmp_path / "packed")
    from_webdataset(tmp_path / "packed", tmp_path / "back" / "m.jsonl")
    first, second = manifest.read(tmp_path / "back" / "m.jsonl")
    assert first.audio_paths[0].read_bytes() == outside.read_bytes()
    assert first.audio_paths[0].parent == tmp_path / "back" / "clips"
    assert second.audio_paths[0].read_bytes() == sorted(CLIPS.glob("*.ogg"))[0].read_bytes()


def test_missing_truncated_and_short_shards_are_errors(source_manifest: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "packed", tmp_path / "back" / "rows.jsonl"
    shards = to_webdataset(source_manifest, packed, shard_bytes=30_000)
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
    last.write_bytes(data)  # files that were unpacked before are left alone
    assert from_webdataset(packed, out) == 7
    assert_same(source_manifest, out)


@pytest.mark.parametrize("path", ["../evil.ogg", "/tmp/evil.ogg", "a/../../evil.ogg", "C:\\evil.ogg"])
def test_a_path_that_leads_out_of_the_folder_is_an_error(tmp_path: Path, path: str) -> None:
    row = {"id": "a", "messages": [{"role": "user", "content": [{"type": "audio", "audio": path}]}]}
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "0.tar", "w") as tar:
        for name, data in (("0.json", json.dumps(row).encode()), ("0.ogg", b"evil")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match="leads out"):
        from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl")
    assert list(tmp_path.rglob("*evil*")) == []


def test_other_shards_and_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.tar"):
        from_webdataset(tmp_path, tmp_path / "rows.jsonl")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.cls"), io.BytesIO())
    with pytest.raises(DataError, match=r"no a\.json"):
        from_webdataset(tmp_path, tmp_path / "rows.jsonl")


def test_parquet_files_keep_the_row_order_and_missing_files_are_errors(source_manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from earwise.data.parquet import from_parquet, to_parquet

    files = to_parquet(source_manifest, tmp_path / "packed", shard_bytes=30_000)
    assert sum(file["rows"] for file in files) == 7
    names = {file["name"] for file in files}
    assert {"data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"} < names
    assert len([name for name in names if "train" in name]) > 1
    assert from_parquet(tmp_path / "packed", tmp_path / "back" / "rows.jsonl") == 7
    assert_same(source_manifest, tmp_path / "back" / "rows.jsonl")
    first = tmp_path / "packed" / min(names - {"data/test-00000-of-00001.parquet"})
    data = first.read_bytes()
    first.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=first.name):
        from_parquet(tmp_path / "packed", tmp_path / "other" / "rows.jsonl")
    first.unlink()
    with pytest.raises(DataError, match="fetch the others"):
        from_parquet(tmp_path / "packed", tmp_path / "other" / "rows.jsonl")


def test_the_datasets_library_reads_splits_and_an_audio_column(source_manifest: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from earwise.data.parquet import to_parquet

    to_parquet(source_manifest, tmp_path / "packed")
    loaded = datasets.load_dataset(str(tmp_path / "packed"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 4, "validation": 2, "test": 1}
    assert isinstance(loaded["train"].features["audio"], datasets.Audio)
    plain = loaded["train"].cast_column("audio", datasets.Audio(decode=False))
    example = manifest.read(source_manifest)[0]
    assert plain[0]["audio"] == {"bytes": example.audio_paths[0].read_bytes(), "path": example.turns[0].parts[0].path}
    assert plain[0]["answer"] == ["a", "b"]
