"""Clips longer than a model accepts, in training and in evaluation: refused, truncated and counted, or split into
chunks; and rows whose text and audio do not match.
"""

from pathlib import Path

import pytest
import soundfile

from builders import tiny_qwen2_audio, tone
from earwise.config.recipe import check_recipe
from earwise.data import manifest
from earwise.engine.base import Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import AudioError, DataError
from earwise.evaluation.run import EvalOptions, evaluate
from earwise.models.family import ModelFamily
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import MELLOW_COMPAT, repeat_audio_parts
from earwise.training import run
from earwise.training.clip_loader import ClipLoader
from earwise.types import Audio, Example, Text, Turn
from families import mellow
from scripted_engine import RATE, ScriptedEngine, tone_task, write_clip


@pytest.fixture
def rows(tmp_path: Path) -> list[Example]:
    """A row with a short and a long clip (4.5 s; the tiny model accepts 2 s), and one with the long clip alone."""
    soundfile.write(tmp_path / "short.wav", tone(0.5), 16000)
    soundfile.write(tmp_path / "long.wav", tone(4.5, 700.0), 16000)
    both = Turn("user", (Audio("short.wav"), Audio("long.wav"), Text("Which is longer?")))
    long_clip = Turn("user", (Audio("long.wav"), Text("What is it?")))
    common = {"choices": ("one", "two"), "root": tmp_path}
    examples = [Example("both", (both,), ("two",), **common), Example("alone", (long_clip,), ("one",), **common)]
    manifest.write(tmp_path / "rows.jsonl", examples)
    return examples


def test_clips_of_a_row_under_each_policy(rows: list[Example]) -> None:
    model = tiny_qwen2_audio()
    with pytest.raises(AudioError, match=r"'both'.*long\.wav: lasts 4\.50 s, the longest allowed is 2 s; .*truncate"):
        ClipLoader(model, long_audio="error", on_bad_row="stop").load(rows[0])
    truncating = ClipLoader(model, long_audio="truncate", on_bad_row="stop")
    assert [len(waveform) for waveform in truncating.load(rows[0]) or ()] == [8000, 32000]
    assert truncating.long_clips == {rows[1].clips[0]}
    chunking = ClipLoader(model, long_audio="chunk", on_bad_row="stop")
    loaded = chunking.load_rows(tuple(rows[:1]))
    assert loaded is not None
    (row,), waveforms = loaded.rows, loaded.waveforms
    assert [len(waveform) for waveform in waveforms] == [8000, 24000, 24000, 24000]
    assert [part.path for part in row.turns[0].parts if isinstance(part, Audio)] == ["short.wav", *["long.wav"] * 3]
    assert row.answer == rows[0].answer and row.turns[0].parts[-1] == rows[0].turns[0].parts[-1]
    path = conversation_path(model, row.turns, range(4), [len(waveform) for waveform in waveforms], generate=True)
    assert sorted(set(path.clips)) == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize(("policy", "words"), [("truncate", "only their beginning"), ("chunk", "passed in chunks")])
def test_training_on_long_clips_reports_the_policy(
    rows: list[Example], monkeypatch: pytest.MonkeyPatch, kind: str, policy: str, words: str
) -> None:
    tiny = ModelFamily("tiny", "a tiny model", "builders:tiny_of_recipes")
    monkeypatch.setattr("earwise.models.registry.FAMILIES", (tiny,))
    monkeypatch.setattr("builders.tiny_of_recipes", lambda _, *, device: tiny_qwen2_audio(3), raising=False)
    folder = rows[0].root
    stage = {
        "kind": kind,
        "data": {"mixture": [{"manifest": "rows.jsonl"}], "long_audio": policy},
        "max_steps": 1,
        "pack_tokens": 4096,
        "trainable": {"connector": "full", "decoder": "frozen"},
    }
    stage |= {"clips_per_step": 2} if kind == "sft" else {"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 3}
    lines: list[str] = []
    recipe = {"recipe": "t", "model": {"name": "tiny"}, "stages": [stage]}
    run.start(check_recipe(recipe, "t"), folder / policy, folder, notify=lines.append)
    beginning = "1 clips are longer than the audio window of tiny (2 s)"
    assert any(line.startswith(beginning) and words in line for line in lines)


def test_evaluation_passes_chunks_in_order(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 4)
    write_clip(tmp_path / "clips" / "2.wav", "high tone", 3, seconds=4.5)
    prompts: list[Prompt] = []

    def complete(prompt: Prompt) -> str:
        prompts.append(prompt)
        return f"<answer>{len(prompt.waveforms)}</answer>"

    metrics = evaluate(
        ScriptedEngine(complete, max_audio_s=2.0), task, tmp_path / "run", EvalOptions(long_audio="chunk")
    )
    assert metrics["error"]["count"] == 0 and metrics["truncated"] == 0
    assert [len(prompt.waveforms) for prompt in prompts] == [1, 1, 3, 1]
    long_prompt = prompts[2]
    assert [len(waveform) for waveform in long_prompt.waveforms] == [round(1.5 * RATE)] * 3
    assert sum(isinstance(part, Audio) for part in long_prompt.turns[0].parts) == 3


def test_a_row_that_the_model_cannot_take_is_an_error_and_the_others_are_answered(tmp_path: Path) -> None:
    model = mellow.tiny(0).model
    model.template = MELLOW_COMPAT
    task = tone_task(tmp_path, 3)
    clip = task[1].turns[0].parts[0]
    three_clips = Turn("user", (clip, clip, clip, Text("What is it?")))
    task[1] = Example("bad", (three_clips,), ("hiss",), task[1].choices)
    assert soundfile.info(task[0].audio_paths[0]).samplerate == RATE != 32000, "clips are resampled for the model"
    metrics = evaluate(LocalEngine(model), task, tmp_path / "run")
    assert metrics["n"] == 3 and metrics["error"]["count"] == 1
    assert "takes 1 to 2 sounds" in metrics["first_error"]


def test_too_many_clips_for_a_template_of_two() -> None:
    model = mellow.tiny(0).model
    model.template = MELLOW_COMPAT
    question_turns = (Turn("user", (Audio("a"), Text("What is it?"))),)
    for num_chunks, fits in ((1, True), (2, True), (3, False)):
        turns = repeat_audio_parts(question_turns, [num_chunks])
        samples = [8000] * num_chunks
        if fits:
            assert conversation_path(model, turns, range(num_chunks), samples, generate=True).clips
        else:
            with pytest.raises(DataError, match=r"takes 1 to 2 sounds.*this has 3"):
                conversation_path(model, turns, range(num_chunks), samples, generate=True)


def test_chunks_repeat_audio_parts_and_nothing_else() -> None:
    turns = (
        Turn("user", (Text("a"), Audio("1"), Text("b"), Audio("2"))),
        Turn("assistant", (Text("c"),)),
        Turn("user", (Audio("3"),)),
    )
    assert repeat_audio_parts(turns, [1, 1, 1]) == turns
    assert repeat_audio_parts(turns, [2, 1, 3]) == (
        Turn("user", (Text("a"), Audio("1"), Audio("1"), Text("b"), Audio("2"))),
        turns[1],
        Turn("user", (Audio("3"),) * 3),
    )
