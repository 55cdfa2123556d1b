"""Parquet files and folders that the `datasets` library wrote, and ours that it reads."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from earwise.data import manifest
from earwise.data.interchange.clip_store import ClipStore
from earwise.data.interchange.detection import find_dataset
from earwise.data.interchange.readers import parquet_tables
from earwise.data.interchange.writers.exporting import write_datasets, write_parquet
from earwise.data.manifest_path import manifest_path
from earwise.errors import DataError
from earwise.evaluation.tasks import mmau
from earwise.types import Example

pytestmark = pytest.mark.usefixtures("own_home")


def wav_bytes(frequency: float, seconds: float = 0.25, rate: int = 16000) -> bytes:
    """A tone as a WAV file."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, 0.1 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate), rate, format="WAV"
    )
    return buffer.getvalue()


def hub_dataset(num_rows: int = 5) -> datasets.Dataset:
    """A data set with audio bytes, a class label, options and a nested column, as they lie on the hub."""
    columns = {
        "recording": [{"bytes": wav_bytes(200 + 50 * number), "path": f"x/{number}.wav"} for number in range(num_rows)],
        "instruction": [f"Question {number}?" for number in range(num_rows)],
        "options": [["dog", "cat"]] * num_rows,
        "label": [number % 2 for number in range(num_rows)],
        "about": [{"key": f"k{number}"} for number in range(num_rows)],
    }
    data = datasets.Dataset.from_dict(columns)
    # a cast keeps the bytes; making the feature at once would want an encoder that is not installed everywhere
    data = data.cast_column("recording", datasets.Audio(decode=False))
    return data.cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))


def check_rows(rows: list[Example]) -> None:
    """The rows of `hub_dataset`, whichever way they came."""
    assert [row.question for row in rows] == [f"Question {number}?" for number in range(5)]
    assert [row.answer for row in rows] == [("dog",), ("cat",), ("dog",), ("cat",), ("dog",)]
    assert {row.choices for row in rows} == {("dog", "cat")}
    for number, row in enumerate(rows):
        assert row.audio_paths[0].read_bytes() == wav_bytes(200 + 50 * number)


def test_parquet_that_datasets_wrote(tmp_path: Path) -> None:
    hub_dataset().to_parquet(tmp_path / "hub.parquet")
    check_rows(manifest.read(manifest_path("hub.parquet", tmp_path)))
    rows = manifest.read(manifest_path("hub.parquet?id=about.key", tmp_path))
    assert [row.id for row in rows] == ["k0", "k1", "k2", "k3", "k4"]


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    hub_dataset().save_to_disk(tmp_path / "single")
    check_rows(manifest.read(manifest_path("single", tmp_path)))
    both = datasets.DatasetDict({"train": hub_dataset(3), "validation": hub_dataset(5)})
    both.save_to_disk(tmp_path / "both")
    rows = manifest.read(manifest_path("both?split=validation", tmp_path))
    check_rows(rows)
    assert {row.split for row in rows} == {"val"}
    with pytest.raises(DataError, match="no split 'test'; there are train, validation"):
        manifest_path("both?split=test", tmp_path)


def test_files_of_splits(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("validation", 5)):
        hub_dataset(count).to_parquet(tmp_path / "set" / "data" / f"{name}-00000-of-00001.parquet")
    rows = manifest.read(manifest_path("set?id=about.key&split=validation", tmp_path))
    assert [row.split for row in rows] == ["val"] * 5
    rows = manifest.read(manifest_path("set", tmp_path))
    assert [row.split for row in rows] == ["train"] * 3 + ["val"] * 5
    with pytest.raises(DataError, match="no file of split 'test'; there are train, validation"):
        manifest_path("set?split=test", tmp_path)


def test_decoded_samples_lists_of_clips_and_paths(tmp_path: Path) -> None:
    samples = (0.1 * np.sin(np.arange(4000) / 5)).astype(np.float32)
    decoded = {"audio": [{"array": samples.tolist(), "sampling_rate": 8000}], "question": ["Q?"], "answer": ["x"]}
    pyarrow.parquet.write_table(pyarrow.table(decoded), tmp_path / "decoded.parquet")
    (row,) = manifest.read(manifest_path("decoded.parquet", tmp_path))
    heard, rate = soundfile.read(row.audio_paths[0], dtype="float32")
    assert rate == 8000
    np.testing.assert_array_equal(heard, samples)

    clips = [{"bytes": wav_bytes(200), "path": None}, {"bytes": wav_bytes(300), "path": None}]
    pyarrow.parquet.write_table(
        pyarrow.table({"audio": [clips], "question": ["Same?"], "answer": ["no"]}), tmp_path / "pair.parquet"
    )
    (row,) = manifest.read(manifest_path("pair.parquet", tmp_path))
    assert [path.read_bytes() for path in row.audio_paths] == [wav_bytes(200), wav_bytes(300)]

    (tmp_path / "a.wav").write_bytes(wav_bytes(440))
    table = {"audio": [{"bytes": None, "path": "a.wav"}], "question": ["Q?"], "answer": ["x"]}
    schema = pyarrow.schema([
        ("audio", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        ("question", pyarrow.string()), ("answer", pyarrow.string()),
    ])  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(table, schema=schema), tmp_path / "paths.parquet")
    (row,) = manifest.read(manifest_path("paths.parquet", tmp_path))
    assert row.audio_paths[0].read_bytes() == wav_bytes(440)


def test_two_audio_columns_must_be_named(tmp_path: Path) -> None:
    def stored(frequency: float) -> list[dict[str, object]]:
        return [{"bytes": wav_bytes(frequency), "path": "c.wav"}]

    columns = {"first": stored(200), "second": stored(300), "question": ["Q?"], "answer": ["x"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "two.parquet")
    with pytest.raises(DataError, match="row 1: column 'second' holds audio too; name the clip"):
        manifest_path("two.parquet", tmp_path)
    (row,) = manifest.read(manifest_path("two.parquet?audio=first,second", tmp_path))
    assert [path.read_bytes() for path in row.audio_paths] == [wav_bytes(200), wav_bytes(300)]


def test_clips_are_named_by_their_bytes_and_never_by_the_data_set(tmp_path: Path) -> None:
    hostile = [{"bytes": wav_bytes(200), "path": "../../../conftest.py"}]
    pyarrow.parquet.write_table(
        pyarrow.table({"audio": hostile, "question": ["Q?"], "answer": ["x"]}), tmp_path / "h.parquet"
    )
    (row,) = manifest.read(manifest_path("h.parquet", tmp_path))
    assert row.audio_paths[0].suffix == ".wav"
    assert row.audio_paths[0].parent.name == "clips"
    assert not list(tmp_path.rglob("conftest.py"))


def test_a_damaged_file_and_empty_audio_are_refused(tmp_path: Path) -> None:
    hub_dataset().to_parquet(tmp_path / "hub.parquet")
    data = (tmp_path / "hub.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.parquet: is not a complete Parquet file"):
        manifest_path("cut.parquet", tmp_path)
    columns = {"audio": [{"bytes": b"", "path": "c.wav"}], "question": ["Q?"], "answer": ["x"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"row 1: the clip 'c\.wav' is empty"):
        manifest_path("empty.parquet", tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_what_we_write_is_read_by_datasets_and_comes_back_whole(tmp_path: Path) -> None:
    hub_dataset().to_parquet(tmp_path / "hub.parquet")
    path = manifest_path("hub.parquet", tmp_path)
    assert write_datasets(path, tmp_path / "saved") == 5
    saved = datasets.load_from_disk(tmp_path / "saved")
    assert saved["train"].features["audio"] == datasets.Audio()
    assert saved["train"].cast_column("audio", datasets.Audio(decode=False))[3]["audio"]["bytes"] == wav_bytes(350)
    assert write_parquet(path, tmp_path / "packed") == 5
    originals = manifest.read(path)
    for name in ("saved", "packed"):
        again = manifest.read(manifest_path(name, tmp_path))
        check_rows(again)
        assert [row.meta for row in again] == [row.meta for row in originals]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Of a file of 64 clips of 1 MB each, at most about a row group (8 of them) is held at a time."""
    audio = [{"bytes": bytes([number]) * (1 << 20), "path": f"{number}.wav"} for number in range(64)]
    table = pyarrow.table({"audio": audio, "question": ["Q?"] * 64, "answer": ["x"] * 64})
    pyarrow.parquet.write_table(table, tmp_path / "large.parquet", row_group_size=8, use_dictionary=False)
    del table, audio
    location = find_dataset("large.parquet", tmp_path)
    assert location is not None
    pool, peak = pyarrow.default_memory_pool(), 0
    before = pool.bytes_allocated()
    for _ in parquet_tables.read(location, ClipStore(tmp_path / "clips")):
        peak = max(peak, pool.bytes_allocated() - before)
    assert peak < 24 << 20


def test_a_benchmark_published_as_parquet(tmp_path: Path) -> None:
    """MMAU's columns on the hub: `context`, `instruction`, `choices`, `answer`, and the id in `other_attributes`."""
    columns = {
        "context": [{"bytes": wav_bytes(200), "path": "a.wav"}, {"bytes": wav_bytes(300), "path": "b.wav"}],
        "instruction": ["Who speaks?", "What is heard?"],
        "choices": [["Man", "Woman"], ["Rain", "Wind"]],
        "answer": ["Man", "Wind"],
        "other_attributes": [
            {"id": "3fe6", "task": "speech", "category": "Reasoning", "difficulty": "easy"},
            {"id": "9a1c", "task": "sound", "category": "Reasoning", "difficulty": "hard"},
        ],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "test-mini.parquet")
    first, second = mmau.load(tmp_path / "test-mini.parquet")
    assert (first.id, first.question, first.choices, first.answer) == (
        "3fe6",
        "Who speaks?",
        ("Man", "Woman"),
        ("Man",),
    )
    assert (second.id, second.task, second.difficulty) == ("9a1c", "sound", "hard")
    assert second.audio_paths[0].read_bytes() == wav_bytes(300)
