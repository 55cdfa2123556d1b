"""A packed and unpacked manifest and its audio files keep their bytes; damaged or malicious archives are errors."""

import io
import json
import signal
import subprocess
import sys
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


def pack_foreign(folder: Path, members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> None:
    """Write a tar shard that another program made."""
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind if name.endswith(".wav") else tarfile.REGTYPE, "/etc"
            tar.addfile(info, io.BytesIO(data))


def row_of(path: str) -> bytes:
    content = [{"type": "audio", "audio": path}, {"type": "text", "text": "What is it?"}]
    return json.dumps({"id": "a", "messages": [{"role": "user", "content": content}]}).encode()


@pytest.mark.parametrize(
    "path",
    [".git/hooks/post-checkout", "conftest.py", "a/.ssh/key.wav", "setup.cfg", "noending", ".hidden.wav", "a.pth"],
)
def test_only_audio_files_are_unpacked(tmp_path: Path, path: str) -> None:
    suffix = Path(path).suffix or ".audio"
    pack_foreign(tmp_path / "packed", [("0.json", row_of(path)), (f"0{suffix}", b"evil")])
    with pytest.raises(DataError, match="not that of an audio file; do not unpack"):
        from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl")
    assert not list((tmp_path / "back").rglob("*")) if (tmp_path / "back").exists() else True


def test_a_link_in_the_folder_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "clips").symlink_to(tmp_path / "elsewhere")
    pack_foreign(tmp_path / "packed", [("0.json", row_of("clips/a.wav")), ("0.wav", b"evil")])
    with pytest.raises(DataError, match="leads out"):
        from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_shard_are_errors(tmp_path: Path, kind: bytes) -> None:
    pack_foreign(tmp_path / "packed", [("0.json", row_of("a.wav")), ("0.wav", b"")], kind)
    with pytest.raises(DataError, match="is no file"):
        from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl")


def test_large_files_and_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("earwise.data.webdataset.SPOOLED_BYTES", 100)
    pack_foreign(tmp_path / "packed", [("0.json", row_of("a.wav")), ("0.wav", b"x" * 5000)])
    assert from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl") == 1
    assert (tmp_path / "back" / "a.wav").read_bytes() == b"x" * 5000
    monkeypatch.setattr("earwise.data.webdataset.MAX_ROW_BYTES", 100)
    with pytest.raises(DataError, match="which is no row"):
        from_webdataset(tmp_path / "packed", tmp_path / "other" / "rows.jsonl")


def test_a_shard_cut_between_two_members_is_told(source_manifest: Path, tmp_path: Path) -> None:
    to_webdataset(source_manifest, tmp_path / "packed")
    shard = tmp_path / "packed" / "000000.tar"
    (tmp_path / "packed" / "shards.json").unlink()
    with tarfile.open(shard) as tar:
        third = tar.getmember("000000002.json")
    shard.write_bytes(shard.read_bytes()[: third.offset])
    with pytest.raises(DataError, match="end mark is missing"):
        from_webdataset(tmp_path / "packed", tmp_path / "back" / "rows.jsonl")


@pytest.mark.parametrize("command", ["shards", "parquet"])
def test_what_a_killed_packing_left_is_not_unpacked(source_manifest: Path, tmp_path: Path, command: str) -> None:
    """The process is killed after the first shard is complete, as by a power cut."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from earwise.data import parquet, portable_rows, webdataset\n"
        "rows = portable_rows.portable_rows\n"
        "def killed(path):\n"
        "    for row in rows(path):\n"
        "        if row.number == 6 and (Path(sys.argv[2]).exists()):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield row\n"
        f"webdataset.portable_rows = killed\n"
        f"parquet.portable_rows = killed if {command == 'parquet'} else rows\n"
        f"pack = {'parquet.to_parquet' if command == 'parquet' else 'webdataset.to_webdataset'}\n"
        "Path(sys.argv[2]).mkdir()\n"
        "pack(Path(sys.argv[1]), Path(sys.argv[2]), shard_bytes=30_000)\n"
    )
    packed = tmp_path / "packed"
    ended = subprocess.run([sys.executable, "-c", script, str(source_manifest), str(packed)], check=False)
    assert ended.returncode == -signal.SIGKILL
    if command == "shards":
        assert list(packed.glob("*.tar"))
    assert run(["build", command, str(packed), "--out", str(tmp_path / "back" / "rows.jsonl")]) == 2
    assert not (tmp_path / "back" / "rows.jsonl").exists()


def test_a_clip_without_an_audio_ending_is_packed_under_another_name(source_manifest: Path, tmp_path: Path) -> None:
    clip = source_manifest.parent / "NOEXT"
    clip.write_bytes(next(CLIPS.glob("*.ogg")).read_bytes())
    (source_manifest.parent / "m.jsonl").write_bytes(row_of("NOEXT") + b"\n")
    to_webdataset(source_manifest.parent / "m.jsonl", tmp_path / "packed")
    from_webdataset(tmp_path / "packed", tmp_path / "back" / "m.jsonl")
    (example,) = manifest.read(tmp_path / "back" / "m.jsonl")
    assert example.audio_paths[0].suffix == ".audio" and example.audio_paths[0].read_bytes() == clip.read_bytes()
