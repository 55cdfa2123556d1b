"""Pass rates are counted by the reward, logged so that nothing is attempted twice, and written by the command."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from earwise.data import manifest
from earwise.datasets.difficulty import BANDS, AttemptSettings, band, count_bands, measure_pass_rates, with_pass_rates
from earwise.datasets.teachers.audio_queries import QueryOptions
from earwise.datasets.teachers.keyed_log import KeyedLog
from earwise.engine.base import Prompt, SamplingParams
from earwise.errors import ConfigError, EngineError
from earwise.types import Audio, Completion, Example, Text
from scripted_engine import RATE, pitch_name, prompt_options, tone_task


class PassCountEngine:
    """Recognises the sound and answers it correctly in `pass_counts[name]` of the attempts; records every call.

    Args:
        pass_counts: Name of a sound -> number of correct attempts.
        revision: Revision of the model.
        fails: Name of a sound on which the engine fails.
    """

    def __init__(self, pass_counts: dict[str, int], *, revision: str = "1", fails: str | None = None) -> None:
        self.name, self.revision, self.sample_rate, self.max_audio_s = "dice", revision, RATE, 30.0
        self.pass_counts, self.fails, self.is_up = pass_counts, fails, True
        self.calls: list[tuple[int, int, float]] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        names = [pitch_name(prompt.waveforms[0]) for prompt in prompts]
        if not self.is_up or (self.fails is not None and self.fails in names):
            raise EngineError("out of dice")
        self.calls.append((len(prompts), n, sampling_params.temperature))
        return [self._attempts(prompt, str(name), n) for prompt, name in zip(prompts, names, strict=True)]

    def _attempts(self, prompt: Prompt, name: str, n: int) -> list[Completion]:
        wrong = next(option for option in prompt_options(prompt) if option != name)
        correct = [Completion(f"<answer>{name}</answer>")] * self.pass_counts[name]
        # The reward counts an answer without tags as wrong, even the right one.
        incorrect = [Completion(f"<answer>{wrong}</answer>"), Completion(name, finish_reason="length")]
        return (correct + incorrect * n)[:n]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


PASS_COUNTS = {"low tone": 16, "middle tone": 5, "high tone": 1, "hiss": 0}


@pytest.fixture
def items(tmp_path: Path) -> list[Example]:
    return tone_task(tmp_path, 8)


def test_bands_cover_every_count() -> None:
    names = [band(count, 16) for count in range(17)]
    assert Counter(names) == {"unsolved": 1, "hard": 4, "medium": 7, "easy": 4, "solved": 1}
    assert [band(count, 4) for count in range(5)] == ["unsolved", "hard", "medium", "easy", "solved"]
    assert [band(count, 1) for count in range(2)] == ["unsolved", "solved"]
    with pytest.raises(ConfigError, match="pass count 17 of 16"):
        band(17, 16)


def test_passes_are_counted_by_the_reward(items: list[Example], tmp_path: Path) -> None:
    engine = PassCountEngine(PASS_COUNTS)
    rows = measure_pass_rates(engine, items, tmp_path / "log", options=QueryOptions(batch=3))
    assert [row["pass_count"] for row in rows] == [PASS_COUNTS[item.answer[0]] for item in items]
    assert all(row["attempts"] == 16 and row["id"] == item.id for row, item in zip(rows, items, strict=True))
    assert rows[1]["cut"] == 5 and rows[1]["unparsed"] == 0 and rows[1]["answers"]["middle tone"] == 5 + 5
    # all attempts of a prompt in one call, so that the engine can share the sound
    assert engine.calls == [(3, 16, 1.0), (3, 16, 1.0), (2, 16, 1.0)]
    rated = list(with_pass_rates(items, rows, AttemptSettings()))
    assert [item.difficulty for item in rated] == ["solved", "medium", "hard", "unsolved"] * 2
    assert rated[1].meta["pass_rate"] == 5 / 16 and rated[1].meta["policy"] == "dice"
    assert rated[1].meta["policy_decoding"]["temperature"] == 1.0
    assert count_bands(rated) == {"unsolved": 2, "hard": 2, "medium": 2, "easy": 0, "solved": 2, "unmeasured": 0}
    path = tmp_path / "rated.jsonl"
    manifest.write(path, rated)
    assert [item.difficulty for item in manifest.read(path)] == [item.difficulty for item in rated]


def test_nothing_is_attempted_twice_and_other_settings_are_other_attempts(items: list[Example], tmp_path: Path) -> None:
    log = tmp_path / "log"
    measure_pass_rates(PassCountEngine(PASS_COUNTS), items[:5], log)
    engine = PassCountEngine(PASS_COUNTS)
    measure_pass_rates(engine, items, log)
    assert sum(call[0] for call in engine.calls) == 3
    reordered = [replace(item, choices=item.choices[::-1]) for item in items]
    for engine, attempts, changed in (
        (PassCountEngine(PASS_COUNTS, revision="2"), AttemptSettings(), items),
        (PassCountEngine(PASS_COUNTS), AttemptSettings(temperature=0.7), items),
        (PassCountEngine(PASS_COUNTS), AttemptSettings(count=8), items),
        (PassCountEngine(PASS_COUNTS), AttemptSettings(style="think"), items),
        (PassCountEngine(PASS_COUNTS), AttemptSettings(), reordered),
    ):
        measure_pass_rates(engine, changed, log, attempts)
        assert sum(call[0] for call in engine.calls) == 8
    again = PassCountEngine(PASS_COUNTS)
    renamed = [replace(item, id=f"x{item.id}") for item in items]
    assert [row["pass_count"] for row in measure_pass_rates(again, renamed, log)] == [
        PASS_COUNTS[item.answer[0]] for item in items
    ]
    assert again.calls == []


def test_a_broken_clip_is_counted_and_attempted_once_it_is_repaired(items: list[Example], tmp_path: Path) -> None:
    broken = items[2].audio_paths[0]
    data = broken.read_bytes()
    broken.write_bytes(b"no sound")
    rows = measure_pass_rates(PassCountEngine(PASS_COUNTS), items, tmp_path / "log")
    assert [row["status"] for row in rows].count("error") == 1 and rows[2]["status"] == "error"
    rated = list(with_pass_rates(items, rows, AttemptSettings()))
    assert rated[2].difficulty is None and broken.name in rated[2].meta["difficulty_error"]
    assert count_bands(rated)["unmeasured"] == 1
    broken.write_bytes(data)
    engine = PassCountEngine(PASS_COUNTS)
    assert measure_pass_rates(engine, items, tmp_path / "log")[2]["pass_count"] == 1
    assert sum(call[0] for call in engine.calls) == 1


def test_long_clips_are_refused_cut_or_chunked_and_counted(items: list[Example], tmp_path: Path) -> None:
    """A file of two sounds for an engine that accepts half of it: the received waveforms show how it was cut."""
    long, log = items[0].audio_paths[0], tmp_path / "log"
    first, second = (soundfile.read(items[number].audio_paths[0])[0] for number in (0, 3))
    soundfile.write(long, np.concatenate([first, second]), RATE)

    class ShortWindowEngine(PassCountEngine):
        def generate(
            self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
        ) -> list[list[Completion]]:
            self.received = [[(len(clip), pitch_name(clip)) for clip in prompt.waveforms] for prompt in prompts]
            self.parts = [[type(part) for part in prompt.turns[-1].parts] for prompt in prompts]
            return super().generate(prompts, sampling_params, n)

    engine = ShortWindowEngine(PASS_COUNTS)
    engine.max_audio_s = 0.25
    rows = measure_pass_rates(engine, items[:2], log)
    assert [(row["status"], row["long_clips"]) for row in rows] == [("error", 1), ("ok", 0)]
    assert "lasts 0.50 s" in rows[0]["error"]
    # Another handling of the long clip is another query; the short clip is not asked about again.
    rows = measure_pass_rates(engine, items[:2], log, options=QueryOptions(long_audio="truncate"))
    assert engine.received == [[(2000, "low tone")]] and rows[0]["status"] == "ok" and rows[0]["long_clips"] == 1
    measure_pass_rates(engine, items[:2], log, options=QueryOptions(long_audio="chunk"))
    assert engine.received == [[(2000, "low tone"), (2000, "hiss")]]
    assert engine.parts == [[Audio, Audio, Text]]
    with KeyedLog(log, read_only=True) as kept_rows:
        assert len(kept_rows) == 4


def test_an_engine_that_fails_on_one_prompt_goes_on_and_one_that_is_down_stops(
    items: list[Example], tmp_path: Path
) -> None:
    rows = measure_pass_rates(
        PassCountEngine(PASS_COUNTS, fails="hiss"), items, tmp_path / "log", options=QueryOptions(batch=3)
    )
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "error"] * 2
    stopped = PassCountEngine(PASS_COUNTS)
    stopped.is_up = False
    with pytest.raises(EngineError, match="out of dice"):
        measure_pass_rates(stopped, items, tmp_path / "other")
    with KeyedLog(tmp_path / "other", read_only=True) as log:
        assert len(log) == 0


def test_an_item_without_answer_is_refused(items: list[Example], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="item-000' has no answer"):
        measure_pass_rates(PassCountEngine(PASS_COUNTS), [replace(items[0], answer=())], tmp_path / "log")
    with pytest.raises(ConfigError, match="attempts 0"):
        AttemptSettings(count=0)


def test_the_command(items: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command on real files; only the model is a scripted engine, which no model name stands for."""
    from earwise.cli import run
    from earwise.commands.build import difficulty as difficulty_command

    def open_scripted_engine(name: str) -> Any:
        assert name == "embedded"
        return PassCountEngine(PASS_COUNTS)

    monkeypatch.setattr(difficulty_command, "open_engine", open_scripted_engine)
    source, out = tmp_path / "items.jsonl", tmp_path / "rated.jsonl"
    manifest.write(source, items)
    for number in (1, 2):
        shard = ["--shard", f"{number}/2"]
        assert run(["build", "difficulty", str(source), "--out", str(out), *shard]) == 0
    assert not out.exists() and not list(tmp_path.glob("*.checks.html"))
    options = ["--drop-unsolved", "--drop-solved", "--long-audio", "chunk"]
    assert run(["build", "difficulty", str(source), "--out", str(out), *options]) == 0
    assert [item.difficulty for item in manifest.read(out)] == ["medium", "hard"] * 2
    assert (tmp_path / "rated.checks.html").is_file()
    with KeyedLog(tmp_path / "rated.attempts", read_only=True) as log:
        assert len(log) == 8
    assert sum(1 for _ in (tmp_path / "rated.attempts" / "rows.jsonl").open()) == 0
    assert BANDS[0] == "unsolved"
