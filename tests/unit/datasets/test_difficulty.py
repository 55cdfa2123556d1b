"""Pass rates: counted by hand, judged as rewards are, resumable, and the same through the command line's pieces."""

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
from earwise.datasets.teachers.keyed_log import KeyedLog
from earwise.engine.base import Prompt, SamplingParams
from earwise.errors import ConfigError, EngineError
from earwise.types import Audio, Completion, Example, Text
from scripted_engine import RATE, options, pitch_name, tone_task


class Dice:
    """Hears, and says the right answer in `right[name]` of the attempts; remembers every call."""

    def __init__(self, right: dict[str, int], *, revision: str = "1", fails: str | None = None) -> None:
        self.name, self.revision, self.sample_rate, self.max_audio_s = "dice", revision, RATE, 30.0
        self.right, self.fails, self.up = right, fails, True
        self.calls: list[tuple[int, int, float]] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        names = [pitch_name(prompt.waveforms[0]) for prompt in prompts]
        if not self.up or (self.fails is not None and self.fails in names):
            raise EngineError("out of dice")
        self.calls.append((len(prompts), n, sampling_params.temperature))
        return [self._say(prompt, str(name), n) for prompt, name in zip(prompts, names, strict=True)]

    def _say(self, prompt: Prompt, name: str, n: int) -> list[Completion]:
        wrong = next(option for option in options(prompt) if option != name)
        right = [Completion(f"<answer>{name}</answer>")] * self.right[name]
        # An answer without tags is wrong by the reward, whatever it says.
        rest: list[Completion] = [Completion(f"<answer>{wrong}</answer>"), Completion(name, finish_reason="length")]
        return (right + rest * n)[:n]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


RIGHT = {"low tone": 16, "middle tone": 5, "high tone": 1, "hiss": 0}


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


def test_passes_are_counted_as_the_reward_judges(items: list[Example], tmp_path: Path) -> None:
    engine = Dice(RIGHT)
    rows = measure_pass_rates(engine, items, tmp_path / "log", batch=3)
    assert [row["pass_count"] for row in rows] == [RIGHT[item.answer[0]] for item in items]
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


def test_nothing_is_tried_twice_and_other_settings_are_other_attempts(items: list[Example], tmp_path: Path) -> None:
    log = tmp_path / "log"
    measure_pass_rates(Dice(RIGHT), items[:5], log)
    engine = Dice(RIGHT)
    measure_pass_rates(engine, items, log)
    assert sum(call[0] for call in engine.calls) == 3
    for other, attempts, changed in (
        (Dice(RIGHT, revision="2"), AttemptSettings(), items),
        (Dice(RIGHT), AttemptSettings(temperature=0.7), items),
        (Dice(RIGHT), AttemptSettings(count=8), items),
        (Dice(RIGHT), AttemptSettings(style="think"), items),
        (Dice(RIGHT), AttemptSettings(), [replace(item, choices=item.choices[::-1]) for item in items]),
    ):
        measure_pass_rates(other, changed, log, attempts)
        assert sum(call[0] for call in other.calls) == 8
    again = Dice(RIGHT)
    renamed = [replace(item, id=f"x{item.id}") for item in items]
    assert [row["pass_count"] for row in measure_pass_rates(again, renamed, log)] == [
        RIGHT[item.answer[0]] for item in items
    ]
    assert again.calls == []


def test_a_broken_clip_is_counted_and_asked_again_when_it_is_mended(items: list[Example], tmp_path: Path) -> None:
    broken = items[2].audio_paths[0]
    whole = broken.read_bytes()
    broken.write_bytes(b"no sound")
    rows = measure_pass_rates(Dice(RIGHT), items, tmp_path / "log")
    assert [row["status"] for row in rows].count("error") == 1 and rows[2]["status"] == "error"
    rated = list(with_pass_rates(items, rows, AttemptSettings()))
    assert rated[2].difficulty is None and broken.name in rated[2].meta["difficulty_error"]
    assert count_bands(rated)["unmeasured"] == 1
    broken.write_bytes(whole)
    engine = Dice(RIGHT)
    assert measure_pass_rates(engine, items, tmp_path / "log")[2]["pass_count"] == 1
    assert sum(call[0] for call in engine.calls) == 1


def test_long_clips_are_refused_cut_or_heard_in_pieces_and_counted(items: list[Example], tmp_path: Path) -> None:
    """Two sounds in one file, for an engine that hears half of it: what it was asked about tells how it was cut."""
    long, log = items[0].audio_paths[0], tmp_path / "log"
    first, second = (soundfile.read(items[number].audio_paths[0])[0] for number in (0, 3))
    soundfile.write(long, np.concatenate([first, second]), RATE)

    class Short(Dice):
        def generate(
            self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
        ) -> list[list[Completion]]:
            self.heard = [[(len(wave), pitch_name(wave)) for wave in prompt.waveforms] for prompt in prompts]
            self.parts = [[type(part) for part in prompt.turns[-1].parts] for prompt in prompts]
            return super().generate(prompts, sampling_params, n)

    engine = Short(RIGHT)
    engine.max_audio_s = 0.25
    rows = measure_pass_rates(engine, items[:2], log)
    assert [(row["status"], row["long_clips"]) for row in rows] == [("error", 1), ("ok", 0)]
    assert "lasts 0.50 s" in rows[0]["error"]
    rows = measure_pass_rates(
        engine, items[:2], log, long_audio="truncate"
    )  # another question, the short clip is not asked again
    assert engine.heard == [[(2000, "low tone")]] and rows[0]["status"] == "ok" and rows[0]["long_clips"] == 1
    measure_pass_rates(engine, items[:2], log, long_audio="chunk")
    assert engine.heard == [[(2000, "low tone"), (2000, "hiss")]]
    assert engine.parts == [[Audio, Audio, Text]]
    with KeyedLog(log, read_only=True) as rows_kept:
        assert len(rows_kept) == 4


def test_an_engine_that_fails_on_one_prompt_goes_on_and_one_that_is_down_stops(
    items: list[Example], tmp_path: Path
) -> None:
    rows = measure_pass_rates(Dice(RIGHT, fails="hiss"), items, tmp_path / "log", batch=3)
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "error"] * 2
    down = Dice(RIGHT)
    down.up = False
    with pytest.raises(EngineError, match="out of dice"):
        measure_pass_rates(down, items, tmp_path / "other")
    with KeyedLog(tmp_path / "other", read_only=True) as log:
        assert len(log) == 0


def test_an_item_without_answer_is_refused(items: list[Example], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="item-000' has no answer"):
        measure_pass_rates(Dice(RIGHT), [replace(items[0], answer=())], tmp_path / "log")
    with pytest.raises(ConfigError, match="attempts 0"):
        AttemptSettings(count=0)


def test_the_command(items: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command on real files; only the model is a scripted engine, which the table cannot load."""
    from earwise.cli import run
    from earwise.commands.build import difficulty as difficulty_command

    def opened(name: str) -> Any:
        assert name == "embedded"
        return Dice(RIGHT)

    monkeypatch.setattr(difficulty_command, "open_engine", opened)
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
