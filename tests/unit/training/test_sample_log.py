"""Logged completions of supervised stages: the model's greedy answers to fixed rows, shown with their clips. The
training is bit for bit the same as without them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from builders import tiny_qwen2_audio, tone, user_question
from earwise.audio import encode_ogg
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import AudioError, ConfigError
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.prompts import prompt_turns
from earwise.report.training import read_logs, rollout_cards
from earwise.training import checkpoints, run
from earwise.training.clip_loader import ClipLoader
from earwise.training.logging import sample_log
from earwise.training.logging.trackers import CLIP_RATE, LoggedSample, TrackedStage, markdown, sample_table
from earwise.training.trainable import set_trainable
from earwise.types import Audio, Example, Text, Turn
from resumed import assert_same_result, metrics_rows, run_interrupted_and_whole

CHOICES = ("low", "high")
TOKENS = 12


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


class RecordingTracker:
    """A tracker that records the samples of each step."""

    discards_later_steps = True
    steps: ClassVar[list[tuple[int, list[LoggedSample]]]] = []

    def __init__(self, watched: TrackedStage) -> None:
        """Nothing to open."""

    def __str__(self) -> str:
        return "recorded"

    def log(self, step: int, values: Mapping[str, float], samples: Sequence[LoggedSample]) -> None:
        self.steps.append((step, list(samples)))

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with five clips of half a second, each with a question, reasoning and a rejected answer."""
    monkeypatch.setattr(sample_log, "MAX_NEW_TOKENS", TOKENS)
    RecordingTracker.steps = []
    examples = []
    for number in range(5):
        (tmp_path / f"{number}.ogg").write_bytes(encode_ogg(tone(0.5, 300.0 * (number + 1)), 16000))
        turns = (Turn("user", (Audio(f"{number}.ogg"), Text("pitch?"))),)
        answer, rejected = CHOICES if number % 2 else CHOICES[::-1]
        examples.append(
            Example(f"{number}", turns, (answer,), CHOICES, "It swings. Slowly.", rejected=(rejected,), root=tmp_path)
        )
    manifest.write(tmp_path / "rows.jsonl", examples)
    manifest.write(tmp_path / "last.jsonl", examples[-1:])
    return tmp_path


def recipe(kind: str, **settings: Any) -> Recipe:
    styles = {"think": 1.0} if kind == "compress" else {"plain": 0.4, "answer": 0.6}
    common = {
        "kind": kind, "max_steps": 6, "clips_per_step": 2, "save_steps": 2, "log_completions_steps": 2,
        "trainable": {"connector": "full", "decoder": "full"},
        "optimizer": {"learning_rate": 3e-3, "lr_scheduler_type": "constant"},
        "data": {"mixture": [{"manifest": "rows.jsonl"}], "styles": styles},
    }  # fmt: skip
    top = {
        "recipe": "t",
        "model": {"name": f"{__name__}:load"},
        "seed": 5,
        "trackers": [f"{__name__}:RecordingTracker"],
    }
    return check_recipe(top | {"stages": [common | settings]}, "t")


def sample_rows(out: Path) -> list[dict[str, Any]]:
    """Rows of a run's rollouts.jsonl; none if there is no such file."""
    path = out / "rollouts.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


LORA = {
    "encoder": "lora",
    "connector": "full",
    "decoder": "lora",
    "lora": {"r": 2, "target_modules": ["q_proj", "up_proj"]},
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("sft", {}), ("sft", {"trainable": LORA}), ("dpo", {}), ("compress", {"steps_per_unit": 2})],
    ids=["sft", "sft-lora-encoder", "dpo", "compress"],
)
def test_logging_completions_changes_nothing_and_resumes_exactly(
    folder: Path, kind: str, settings: dict[str, Any]
) -> None:
    """The interrupted run resumes from the checkpoint before its first answers, which are logged again."""
    stopped, whole = run_interrupted_and_whole(recipe(kind, **settings), folder, after=3)
    run.start(recipe(kind, **settings, log_completions_steps=0), folder / "without", folder)
    assert_same_result(whole, folder / "without")
    assert not sample_rows(folder / "without")
    rows = sample_rows(whole)
    assert rows == sample_rows(stopped)
    assert [(row["step"], row["id"]) for row in rows] == [(step, name) for step in (3, 5) for name in "0123"]
    assert {row["stage"] for row in rows} == {f"stage-0-{kind}"} and all(row["rewards"] is None for row in rows)
    assert [row["answer"] for row in rows[:2]] == [["high"], ["low"]] and rows[0]["choices"] == list(CHOICES)
    assert rows[0]["completions"] != rows[4]["completions"], "two updates at this learning rate change the answers"


def test_logged_completions_are_greedy_answers(folder: Path) -> None:
    """They equal the answers with the weights before step 3, one prompt at a time, in the style of largest weight."""
    resolved = recipe("sft", save_steps=1, save_total_limit=9)
    run.start(resolved, folder / "run", folder)
    model = load()
    set_trainable(model, resolved.stages[0].trainable)
    checkpoint = checkpoints.list_checkpoints(folder / "run" / "stage-0-sft")[1]
    assert checkpoint.name == "checkpoint-2"
    trained = torch.load(checkpoint / "state.pt", weights_only=True)["trained"]
    model.module.load_state_dict(trained, strict=False)
    model.module.eval()
    clip_loader = ClipLoader(model, long_audio="error", on_bad_row="stop")
    rows = manifest.read(folder / "rows.jsonl")[:4]
    prompts = [Prompt(prompt_turns(row, "answer"), tuple(clip_loader.load(row) or ())) for row in rows]
    answers = [LocalEngine(model).generate([prompt], SamplingParams(TOKENS))[0][0].text for prompt in prompts]
    assert [row["completions"] for row in sample_rows(folder / "run")[:4]] == [[text] for text in answers]


def test_answers_to_held_out_rows_are_logged_where_they_are_measured(folder: Path) -> None:
    held_out = {"held_out": {"manifest": "rows.jsonl"}, "held_out_limit": 5, "eval_steps": 4, "max_new_tokens": 7}
    run.start(recipe("compress", steps_per_unit=2, **held_out), folder / "run", folder)
    rows, logged = sample_rows(folder / "run"), metrics_rows(folder / "run")
    measured = [row["step"] for row in logged if "compress/delay" in row]
    assert measured == [1, 5, 6]
    assert [(row["step"], row["id"]) for row in rows] == [(step, name) for step in measured for name in "0123"]


def test_trackers_and_reports_show_logged_completions_with_their_clips(folder: Path) -> None:
    run.start(recipe("sft", max_steps=4), folder / "run", folder)
    (samples,) = [samples for _, samples in RecordingTracker.steps if samples]
    assert [len(samples) for _, samples in RecordingTracker.steps] == [0, 0, 2, 0], "with step 3, the first two"
    rows = sample_rows(folder / "run")
    assert [sample.row for sample in samples] == rows[:2]
    assert [len(sample.waveforms[0]) for sample in samples] == [CLIP_RATE // 2] * 2
    text = rows[0]["completions"][0]
    assert samples[0].distinct_completions == [(None, text, 1)]
    assert "**high**" in markdown(samples[0]) and "\n\ncompletion\n\n" in markdown(samples[0])
    assert sample_table(samples)[0] == ["samples/1", "pitch?", "low | high", "high", text, None, 1]
    (logged,) = read_logs([folder / "run" / "metrics.jsonl"])
    page = rollout_cards(logged, 10**6)
    assert page.count("<audio") == 4 and "step 3" in page and "mean reward" not in page and "<b>" not in page


def test_logged_rows_are_evenly_spaced_in_every_manifest(folder: Path) -> None:
    assert (
        sample_log.evenly_spaced_rows(range(10), 4) == [0, 2, 5, 7]
        and sample_log.evenly_spaced_rows("ab", 4) == ["a", "b"]
        and sample_log.evenly_spaced_rows("", 4) == []
    )
    both = {"data": {"mixture": [{"manifest": "rows.jsonl"}, {"manifest": "last.jsonl"}]}}
    run.start(recipe("sft", max_steps=3, **both), folder / "run", folder)
    assert [row["id"] for row in sample_rows(folder / "run")] == ["0", "2", "4"]


def test_unreadable_clip_stops_the_run_or_is_left_out(folder: Path) -> None:
    (folder / "1.ogg").write_bytes(b"OggS no sound")
    with pytest.raises(AudioError, match=r"row '1': .*1\.ogg"):
        run.start(recipe("sft"), folder / "stop", folder)
    assert not (folder / "stop" / "metrics.jsonl").exists(), "at once, not at step 3"
    skip = {"data": {"mixture": [{"manifest": "rows.jsonl"}], "on_bad_row": "skip"}}
    run.start(recipe("sft", **skip), folder / "skip", folder)
    assert [row["id"] for row in sample_rows(folder / "skip")] == [*"023"] * 2


def test_default_interval_logs_nothing_in_short_runs() -> None:
    stage = {"kind": "sft", "data": {"mixture": [{"manifest": "a.jsonl"}]}, "max_steps": 50}
    config: Any = check_recipe({"recipe": "t", "stages": [stage]}, "t").stages[0]
    assert config.log_completions_steps == 50, "the first answers come before step 51"
    with pytest.raises(ConfigError, match="log_completions_steps"):
        check_recipe({"recipe": "t", "stages": [stage | {"log_completions_steps": -1}]}, "t")
    with pytest.raises(ConfigError, match="log_completions_steps"):
        check_recipe({"recipe": "t", "stages": [stage | {"kind": "grpo", "log_completions_steps": -1}]}, "t")
    logged_rollouts: Any = check_recipe({"recipe": "t", "stages": [stage | {"kind": "grpo"}]}, "t").stages[0]
    assert logged_rollouts.log_completions_steps == 10, "rollouts are sampled anyway, and logged more often"


def test_chosen_reply_is_logged_as_the_answer() -> None:
    example = Example("a", user_question("What?"), chosen=("It hums.",), rejected=("No.",))
    assert sample_log.sample_row(1, example, (), None)["answer"] == ["It hums."]
