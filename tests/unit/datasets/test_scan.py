"""Facts of clips by construction, past broken files and crashes, in order, with a log that a scan goes on from."""

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
from earwise.datasets.scan.clip_stats import FLOOR_DB, facts, frame_levels_db, scan
from earwise.datasets.scan.scan_manifest import Tally, tally
from earwise.errors import ConfigError, DataError
from earwise.types import Waveform


def tone(path: Path, seconds: float = 1.0, peak: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    """A 500 Hz tone, then as much silence."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.concatenate([peak * np.sin(2 * np.pi * 500 * t), np.zeros(len(t))])
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype="FLOAT")
    return path


def length(wave: Waveform, rate: int) -> float:
    """A fingerprint that tests can name."""
    return len(wave) / rate


def crash(wave: Waveform, rate: int) -> int:
    """Takes its process down on a loud clip, as a decoder can."""
    if np.abs(wave).max() > 0.85:
        os._exit(7)
    return len(wave)


def square(number: int) -> int:
    return number * number


def test_facts_of_half_a_tone_and_half_silence(tmp_path: Path) -> None:
    found = facts(str(tone(tmp_path / "a.wav", 1.0, 0.5, 44100, 2)), fingerprint=length)
    assert (found.error, found.sample_rate, found.channels, found.duration_s) == ("", 44100, 2, 2.0)
    assert found.heard_s == 2.0
    assert found.peak == pytest.approx(0.5, abs=2e-3)
    assert found.loudness_db == pytest.approx(20 * np.log10(0.5 / 2), abs=0.02)  # 0.5/sqrt(2), over half of the time
    assert found.silence_share == pytest.approx(0.5, abs=0.011)
    assert found.fingerprint == 2.0
    assert len(found.sha256) == 64
    json.dumps(found.as_dict(), allow_nan=False)


def test_silence_and_a_clip_shorter_than_a_frame() -> None:
    assert frame_levels_db(np.zeros(1000, np.float32)).tolist() == [FLOOR_DB] * 3
    assert frame_levels_db(np.full(7, 0.01, np.float32)).round(3).tolist() == [-40.0]


def test_broken_files_are_facts_and_stop_nobody(tmp_path: Path) -> None:
    good = tone(tmp_path / "good.wav", 0.1)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "torn.wav").write_bytes(good.read_bytes()[:2000])
    names = [tmp_path / f"{name}.wav" for name in ("text", "good", "empty", "torn", "gone", "good")]
    found = list(scan(names, 1))
    assert [Path(one.path).name for one in found] == [name.name for name in names]
    assert [bool(one.error) for one in found] == [True, False, True, True, True, False]
    assert all(name in one.error for name, one in zip(map(str, names), found, strict=True) if one.error)
    json.dumps([one.as_dict() for one in found], allow_nan=False)


def test_processes_find_what_one_finds_and_a_crash_costs_only_its_clip(tmp_path: Path) -> None:
    names = [tone(tmp_path / f"{n}.wav", 0.05, 0.9 if n in (4, 30) else 0.1 + n / 100) for n in range(36)]
    found = list(scan(names, 2, fingerprint=crash))
    assert [one.path for one in found] == [str(name) for name in names]
    assert [number for number, one in enumerate(found) if one.error] == [4, 30]
    assert "crashes the decoder" in found[4].error
    calm = [number for number in range(36) if number not in (4, 30)]
    assert [found[n] for n in calm] == list(scan([names[n] for n in calm], 1, fingerprint=crash))


def test_items_are_taken_only_a_little_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    results = ordered_map(square, items(), workers=2, chunk=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 3 * (2 * CHUNKS_IN_FLIGHT + 3)
    results.close()  # type: ignore[attr-defined]


def test_what_a_caller_got_wrong_is_said() -> None:
    with pytest.raises(ConfigError, match="workers 0"):
        ordered_map(square, [1], workers=0)
    with pytest.raises(ConfigError, match="engine"):
        scan([], engine="spark")  # type: ignore[arg-type]


@pytest.mark.slow
def test_ray_finds_what_processes_find(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    names = [tone(tmp_path / f"{n}.wav", 0.05, 0.1 + n / 100) for n in range(20)]
    (tmp_path / "3.wav").write_text("no sound")
    try:
        assert list(scan(names, 2, engine="ray")) == list(scan(names, 1))
    finally:
        ray.shutdown()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four rows: two about one clip, one about a broken clip, one about both."""
    tone(tmp_path / "a.wav", 0.5)
    tone(tmp_path / "b.wav", 0.25, 0.05)
    (tmp_path / "bad.wav").write_text("no sound")
    lines = []
    for number, clips in enumerate([["a.wav"], ["a.wav"], ["bad.wav"], ["bad.wav", "b.wav"], ["b.wav"]]):
        content = [{"type": "audio", "audio": clip} for clip in clips] + [{"type": "text", "text": "?"}]
        lines.append(json.dumps({"id": str(number), "messages": [{"role": "user", "content": content}]}) + "\n")
    (tmp_path / "m.jsonl").write_text("".join(lines))
    return tmp_path / "m.jsonl"


def test_each_file_is_decoded_once_and_the_log_is_gone_on_from(rows: Path) -> None:
    log, said = rows.parent / "scan.jsonl", list[str]()
    first, broken = tally(rows, log, workers=1, on_broken=said.append)
    assert (first["clips"], first["decoded"], first["broken"]) == (3, 3, 1)
    assert broken == {str(rows.parent / "bad.wav")}
    assert len(said) == 1
    assert first["duration_s"] == [0.5, 0.75, 1.0]
    assert first["loudness_db"] == [-32, -32, -12]  # 0.05 / 2 and 0.5 / 2
    with log.open("ab") as handle:
        handle.write(b'{"path": "torn')
    tone(rows.parent / "bad.wav", 0.5)
    again, broken = tally(rows, log, workers=1)
    assert (again["clips"], again["decoded"], again["broken"], broken) == (3, 1, 0, frozenset())
    third, _ = tally(rows, log, workers=1)
    assert third["decoded"] == 0
    assert {key: third[key] for key in ("clips", "hours", "loudness_db")} == {
        key: again[key] for key in ("clips", "hours", "loudness_db")
    }
    log.write_text('{"some": "log"}\n')
    with pytest.raises(DataError, match=r"scan\.jsonl:1"):
        tally(rows, log, workers=1)


def test_an_empty_tally_has_plain_values() -> None:
    assert json.loads(json.dumps(Tally().summary(), allow_nan=False))["loudness_db"] == []


def test_command_lists_counts_keeps_the_good_rows_and_can_fail(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = rows.parent / "sub" / "good.jsonl"
    assert run(["build", "scan", str(rows), "--keep", str(good), "--workers", "1", "--json"]) == 0
    out = capsys.readouterr()
    assert "bad.wav" in out.err
    assert json.loads(out.out) | {"clips_per_s": 0} == json.loads(out.out) | {"kept": 3, "broken": 1, "clips_per_s": 0}
    kept = [json.loads(line) for line in good.read_text().splitlines()]
    assert [row["id"] for row in kept] == ["0", "1", "4"]
    assert (good.parent / kept[0]["messages"][0]["content"][0]["audio"]).exists()
    assert run(["build", "scan", str(rows), "--workers", "1", "--strict"]) == 2
    assert "1 of 3 sounds cannot be read" in capsys.readouterr().err
    assert run(["build", "scan", str(rows), "--keep", str(rows)]) == 2


@pytest.mark.slow
def test_benchmark_prints_rates_and_memory() -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "build.py"
    done = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["index_first"]["rows"] == found["index_again"]["rows"] == 4000
    assert found["scan_wav_16000_mono"]["clips_per_s"] > 0
    assert found["scan_ogg_44100_stereo"]["peak_memory_mb"] > 10
