"""The profiler of a step: with a fake clock, and in a whole run."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
from click.testing import CliRunner

from builders import tiny_qwen2_audio, tone
from earwise.commands.training.train import command
from earwise.data import manifest
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.training.profiler import Profiler, describe
from earwise.types import Audio, Example, Text, Turn


def clock(*readings: float) -> Callable[[], float]:
    """A function that returns the given readings one after the other."""
    return partial(next, iter(readings))


def test_time_of_an_inner_phase_is_not_counted_in_the_outer_one() -> None:
    # Created at 0; rollout from 1 to 8 with hear from 2 to 5 inside it; forward from 9 to 11; split at 11.5.
    profiler = Profiler(now=clock(0, 1, 2, 5, 8, 9, 11, 11.5))
    with profiler.phase("rollout"), profiler.phase("hear"):
        pass
    with profiler.phase("forward"):
        pass
    split = profiler.split()
    assert split == {"hear": 3, "rollout": 4, "forward": 2, "rest": 1 + 1 + 0.5}
    assert list(split) == ["hear", "rollout", "forward", "rest"]
    assert sum(split.values()) == 11.5


def test_split_resets_and_counts_a_phase_that_ends_with_an_error() -> None:
    profiler = Profiler(now=clock(0, 0, 4, 4, 5))
    with pytest.raises(ValueError), profiler.phase("backward"):
        raise ValueError
    assert profiler.split() == {"backward": 4, "rest": 0}
    assert profiler.split() == {"rest": 1}


def test_device_is_synchronized_before_each_reading() -> None:
    calls: list[str] = []

    def now() -> float:
        calls.append("now")
        return 0.0

    profiler = Profiler(now=now, synchronize=lambda: calls.append("synchronize"))
    with profiler.phase("hear"):
        pass
    assert calls == ["now", *["synchronize", "now"] * 2]


def test_describe_gives_seconds_per_step_and_shares() -> None:
    line = describe({"hear": 1.0, "forward": 3.0, "rest": 0.0}, 4)
    assert line == "1.00 s a step: forward 0.75 s (75 %), hear 0.25 s (25 %)"


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipe below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


def any_letter(_: Example, completion: str) -> float:
    """A reward that differs within a group."""
    return float(len(set(completion)))


STAGES = """
recipe: t
model: {name: "THIS_MODULE:load"}
stages:
  - {kind: sft, data: &data {mixture: [{manifest: rows.jsonl}]}, max_steps: 3, clips_per_step: 2,
     trainable: &all {decoder: full}, optimizer: {learning_rate: 1.0e-3}}
  - {kind: grpo, data: *data, max_steps: 2, prompts_per_step: 2, group_size: 3, max_new_tokens: 4, num_iterations: 2,
     trainable: *all, optimizer: {learning_rate: 1.0e-3}, rewards: {"THIS_MODULE:any_letter": 1.0}}
""".replace("THIS_MODULE", __name__)
SECONDS = (0.5, 0.75)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose steps all use both of its two clips, with one question each."""
    rows = []
    for number, seconds in enumerate(SECONDS):
        soundfile.write(tmp_path / f"{number}.wav", tone(seconds), 16000)
        turns = (Turn("user", (Audio(f"{number}.wav"), Text("?"))),)
        rows.append(Example(str(number), turns, ("yes",), ("yes", "no"), root=tmp_path, group=str(number)))
    manifest.write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "t.yaml").write_text(STAGES)
    return tmp_path / "t.yaml"


def train(recipe: Path, *options: str) -> tuple[str, list[dict[str, Any]]]:
    """Output of `earwise train`, and the rows of metrics.jsonl."""
    out = recipe.parent / "run"
    result = CliRunner().invoke(
        command, [str(recipe), "--no-eval", "--out", str(out), *options], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_profile_step_reports_phases_and_logs_seconds_that_add_up(recipe: Path) -> None:
    output, rows = train(recipe, "--profile-step")
    assert "sft profile of steps 1-3: " in output
    assert "grpo profile of steps 1-2: " in output
    for row in rows:
        phases = {key.removeprefix("phase/"): value for key, value in row.items() if key.startswith("phase/")}
        assert sum(phases.values()) == pytest.approx(row["seconds"], rel=0.05, abs=0.01)
        assert all(phases[name] > 0 for name in ("forward", "backward", "optimizer"))
        assert ("checks" in phases) == (row["step"] == 1)
    sft, grpo = rows[0], rows[3]
    assert sft["phase/hear"] > 0 and sft["phase/decode"] > 0 and "phase/rollout" not in sft
    assert grpo["phase/rollout"] > 0 and grpo["phase/reference"] > 0
    assert "phase/rollout" not in rows[4], "the second update uses the same rollout"


def test_profile_step_sets_the_phases_against_the_machine(recipe: Path) -> None:
    output, _ = train(recipe, "--profile-step")
    assert output.count("limits of this machine: float32 ") == 2, "one report per stage"
    assert "forward 0." in output and " of the limit; " in output
    limits = json.loads((recipe.parent / "run" / "limits.json").read_text())
    sft, grpo = limits.values()
    for phases in (sft["phases"], grpo["phases"]):
        assert {"forward", "backward"} <= phases.keys()
        assert all(0 < phase["share"] < 1.2 for phase in phases.values())
        assert phases["forward"]["gflop"] > 0 < phases["backward"]["gflop"]
        assert all(0 <= phase["outside"] < 1 for phase in phases.values())


def test_every_log_row_has_tokens_and_audio_seconds_per_second(recipe: Path) -> None:
    output, rows = train(recipe)
    assert "profile" not in output
    assert not any(key.startswith("phase/") for row in rows for key in row)
    for row in rows:
        assert row["audio_s_per_s"] * row["seconds"] == pytest.approx(sum(SECONDS))
        assert row["tokens_per_s"] * row["seconds"] == pytest.approx(row[f"{row['stage'].split('-')[-1]}/tokens"])
