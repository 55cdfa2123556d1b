"""Measurements of constructed clips, in order, despite unreadable files and crashes; an interrupted scan continues."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwise.cli import run
from earwise.data.process_pool import CHUNKS_IN_FLIGHT, ordered_map
from earwise.datasets.scan.clip_stats import FLOOR_DB, clip_stats, frame_levels_db, scan_clips
from earwise.datasets.scan.scan_manifest import ScanOptions, ScanTotals, scan_manifest
from earwise.errors import ConfigError, DataError
from earwise.types import Waveform


def tone(path: Path, seconds: float = 1.0, peak: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    """Write a 500 Hz tone followed by silence of the same length."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.concatenate([peak * np.sin(2 * np.pi * 500 * t), np.zeros(len(t))])
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype="FLOAT")
    return path


def length(wave: Waveform, rate: int) -> float:
    """Analysis function with a known result."""
    return len(wave) / rate


def crash(wave: Waveform, rate: int) -> int:
    """Kills its process on a loud clip, as a faulty decoder can."""
    if np.abs(wave).max() > 0.85:
        os._exit(7)
    return len(wave)


def square(number: int) -> int:
    return number * number


def test_stats_of_half_a_tone_and_half_silence(tmp_path: Path) -> None:
    stats = clip_stats(str(tone(tmp_path / "a.wav", 1.0, 0.5, 44100, 2)), analysis=length)
    assert (stats.error, stats.sample_rate, stats.channels, stats.duration_s) == ("", 44100, 2, 2.0)
    assert stats.measured_s == 2.0
    assert stats.peak == pytest.approx(0.5, abs=2e-3)
    assert stats.loudness_db == pytest.approx(20 * np.log10(0.5 / 2), abs=0.02)  # 0.5/sqrt(2), over half of the time
    assert stats.silence_share == pytest.approx(0.5, abs=0.011)
    assert stats.analysis == 2.0
    assert len(stats.sha256) == 64
    row = json.loads(json.dumps(stats.as_dict(), allow_nan=False))
    assert (row["heard_s"], row["fingerprint"]) == (2.0, 2.0)
    assert type(stats).from_dict(row) == stats


def test_silence_and_a_clip_shorter_than_a_frame() -> None:
    assert frame_levels_db(np.zeros(1000, np.float32)).tolist() == [FLOOR_DB] * 3
    assert frame_levels_db(np.full(7, 0.01, np.float32)).round(3).tolist() == [-40.0]


def test_unreadable_files_do_not_stop_a_scan(tmp_path: Path) -> None:
    good = tone(tmp_path / "good.wav", 0.1)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "torn.wav").write_bytes(good.read_bytes()[:2000])
    names = [tmp_path / f"{name}.wav" for name in ("text", "good", "empty", "torn", "gone", "good")]
    clips = list(scan_clips(names, 1))
    assert [Path(clip.path).name for clip in clips] == [name.name for name in names]
    assert [bool(clip.error) for clip in clips] == [True, False, True, True, True, False]
    assert all(name in clip.error for name, clip in zip(map(str, names), clips, strict=True) if clip.error)
    json.dumps([clip.as_dict() for clip in clips], allow_nan=False)


def test_several_processes_give_equal_results_and_a_crash_affects_one_clip(tmp_path: Path) -> None:
    names = [tone(tmp_path / f"{n}.wav", 0.05, 0.9 if n in (4, 30) else 0.1 + n / 100) for n in range(36)]
    clips = list(scan_clips(names, 2, analysis=crash))
    assert [clip.path for clip in clips] == [str(name) for name in names]
    assert [number for number, clip in enumerate(clips) if clip.error] == [4, 30]
    assert "crashes the decoder" in clips[4].error
    harmless = [number for number in range(36) if number not in (4, 30)]
    assert [clips[n] for n in harmless] == list(scan_clips([names[n] for n in harmless], 1, analysis=crash))


def test_items_are_taken_only_a_few_chunks_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    results = ordered_map(square, items(), workers=2, chunk=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 3 * (2 * CHUNKS_IN_FLIGHT + 3)
    results.close()  # type: ignore[attr-defined]


def test_invalid_arguments() -> None:
    with pytest.raises(ConfigError, match="workers 0"):
        ordered_map(square, [1], workers=0)
    with pytest.raises(ConfigError, match="backend"):
        scan_clips([], backend="spark")  # type: ignore[arg-type]


@pytest.mark.slow
def test_ray_gives_the_same_results_as_processes(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    names = [tone(tmp_path / f"{n}.wav", 0.05, 0.1 + n / 100) for n in range(20)]
    (tmp_path / "3.wav").write_text("no sound")
    try:
        assert list(scan_clips(names, 2, backend="ray")) == list(scan_clips(names, 1))
    finally:
        ray.shutdown()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Manifest of five rows about two readable clips and an unreadable one."""
    tone(tmp_path / "a.wav", 0.5)
    tone(tmp_path / "b.wav", 0.25, 0.05)
    (tmp_path / "bad.wav").write_text("no sound")
    lines = []
    for number, clips in enumerate([["a.wav"], ["a.wav"], ["bad.wav"], ["bad.wav", "b.wav"], ["b.wav"]]):
        content = [{"type": "audio", "audio": clip} for clip in clips] + [{"type": "text", "text": "?"}]
        lines.append(json.dumps({"id": str(number), "messages": [{"role": "user", "content": content}]}) + "\n")
    (tmp_path / "m.jsonl").write_text("".join(lines))
    return tmp_path / "m.jsonl"


def test_each_file_is_decoded_once_and_a_scan_continues_from_its_log(rows: Path) -> None:
    log, messages = rows.parent / "scan.jsonl", list[str]()
    options = ScanOptions(log=log, workers=1)
    first, unreadable = scan_manifest(rows, options, messages.append)
    assert (first["clips"], first["decoded"], first["broken"]) == (3, 3, 1)
    assert unreadable == {str(rows.parent / "bad.wav")}
    assert len(messages) == 1
    assert first["duration_s"] == [0.5, 0.75, 1.0]
    assert first["loudness_db"] == [-32, -32, -12]  # 0.05 / 2 and 0.5 / 2
    with log.open("ab") as handle:
        handle.write(b'{"path": "torn')
    tone(rows.parent / "bad.wav", 0.5)
    again, unreadable = scan_manifest(rows, options)
    assert (again["clips"], again["decoded"], again["broken"], unreadable) == (3, 1, 0, frozenset())
    third, _ = scan_manifest(rows, options)
    assert third["decoded"] == 0
    assert {key: third[key] for key in ("clips", "hours", "loudness_db")} == {
        key: again[key] for key in ("clips", "hours", "loudness_db")
    }
    log.write_text('{"some": "log"}\n')
    with pytest.raises(DataError, match=r"scan\.jsonl:1"):
        scan_manifest(rows, options)


def test_totals_of_no_files_are_plain_values() -> None:
    assert json.loads(json.dumps(ScanTotals().summary(), allow_nan=False))["loudness_db"] == []


def test_command_lists_unreadable_files_writes_the_other_rows_and_can_fail(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = rows.parent / "sub" / "good.jsonl"
    assert run(["build", "scan", str(rows), "--keep", str(good), "--workers", "1", "--json"]) == 0
    out = capsys.readouterr()
    assert "bad.wav" in out.err
    assert json.loads(out.out) | {"clips_per_s": 0} == json.loads(out.out) | {"kept": 3, "broken": 1, "clips_per_s": 0}
    written = [json.loads(line) for line in good.read_text().splitlines()]
    assert [row["id"] for row in written] == ["0", "1", "4"]
    assert (good.parent / written[0]["messages"][0]["content"][0]["audio"]).exists()
    assert run(["build", "scan", str(rows), "--workers", "1", "--strict"]) == 2
    assert "1 of 3 audio files cannot be read" in capsys.readouterr().err
    assert run(["build", "scan", str(rows), "--keep", str(rows)]) == 2


@pytest.mark.slow
def test_benchmark_prints_rates_and_memory() -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "build.py"
    result = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True, check=True)
    figures = json.loads(result.stdout)
    assert figures["index_first"]["rows"] == figures["index_again"]["rows"] == 4000
    assert figures["scan_wav_16000_mono"]["clips_per_s"] > 0
    assert figures["scan_ogg_44100_stereo"]["peak_memory_mb"] > 10
