"""Sound longer than a model hears, under each policy, in training and in evaluation: refused, cut with a count, or
heard as several clips in a row; and what else can be wrong between a row's text and its sounds.
"""

from pathlib import Path

import pytest
import soundfile
from scripted_engine import RATE, ScriptedEngine, tone_task, write_clip

from builders import sound, tiny_qwen2_audio
from earwise.config.recipe import check_recipe
from earwise.data import manifest
from earwise.engine.base import Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import AudioError, DataError
from earwise.evaluate.run import evaluate
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import MELLOW_COMPAT, spread
from earwise.train import run
from earwise.train.batches import Sounds
from earwise.types import Audio, Example, Text, Turn
from families import mellow


@pytest.fixture
def rows(tmp_path: Path) -> list[Example]:
    """A row with a short and a long clip (4.5 s; the tiny model hears 2), and one with the long clip alone."""
    soundfile.write(tmp_path / "short.wav", sound(0.5), 16000)
    soundfile.write(tmp_path / "long.wav", sound(4.5, 700.0), 16000)
    both = Turn("user", (Audio("short.wav"), Audio("long.wav"), Text("Which is longer?")))
    alone = Turn("user", (Audio("long.wav"), Text("What is it?")))
    common = {"choices": ("one", "two"), "root": tmp_path}
    examples = [Example("both", (both,), ("two",), **common), Example("alone", (alone,), ("one",), **common)]
    manifest.write(tmp_path / "rows.jsonl", examples)
    return examples


def test_sounds_of_a_row_under_each_policy(rows: list[Example]) -> None:
    model = tiny_qwen2_audio()
    with pytest.raises(AudioError, match=r"'both'.*long\.wav: lasts 4\.50 s, the longest allowed is 2 s; .*truncate"):
        Sounds(model, long_audio="error", on_bad_row="stop").load(rows[0])
    cut = Sounds(model, long_audio="truncate", on_bad_row="stop")
    assert [len(wave) for wave in cut.load(rows[0]) or ()] == [8000, 32000]
    assert cut.long == {rows[1].audio_paths[0]}
    pieces = Sounds(model, long_audio="chunk", on_bad_row="stop")
    fitted = pieces.fit(tuple(rows[:1]))
    assert fitted is not None
    (row,), waves = fitted
    assert [len(wave) for wave in waves] == [8000, 24000, 24000, 24000]
    assert [part.path for part in row.turns[0].parts if isinstance(part, Audio)] == ["short.wav", *["long.wav"] * 3]
    assert row.answer == rows[0].answer and row.turns[0].parts[-1] == rows[0].turns[0].parts[-1]
    path = conversation_path(model, row.turns, range(4), [len(wave) for wave in waves], generate=True)
    assert sorted(set(path.clips)) == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize(("policy", "words"), [("truncate", "only their beginning"), ("chunk", "piece by piece")])
def test_training_on_long_sound_says_how_it_was_heard(
    rows: list[Example], monkeypatch: pytest.MonkeyPatch, kind: str, policy: str, words: str
) -> None:
    monkeypatch.setattr("earwise.models.base.MODELS", {"tiny": "builders:tiny_of_recipes"})
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
    said: list[str] = []
    recipe = {"recipe": "t", "model": {"name": "tiny"}, "stages": [stage]}
    run.start(check_recipe(recipe, "t"), folder / policy, folder, say=said.append)
    assert any(line.startswith("1 clips last longer than the 2 s") and words in line for line in said)


def test_evaluation_hears_pieces_in_a_row(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 4)
    write_clip(tmp_path / "clips" / "2.wav", "high tone", 3, seconds=4.5)
    asked: list[Prompt] = []

    def say(prompt: Prompt) -> str:
        asked.append(prompt)
        return f"<answer>{len(prompt.waves)}</answer>"

    metrics = evaluate(ScriptedEngine(say, max_audio_s=2.0), task, tmp_path / "run", long_audio="chunk")
    assert metrics["error"]["count"] == 0 and metrics["truncated"] == 0
    assert [len(prompt.waves) for prompt in asked] == [1, 1, 3, 1]
    long = asked[2]
    assert [len(wave) for wave in long.waves] == [round(1.5 * RATE)] * 3
    assert sum(isinstance(part, Audio) for part in long.turns[0].parts) == 3


def test_a_row_that_the_model_cannot_take_is_an_error_and_the_others_are_answered(tmp_path: Path) -> None:
    task = tone_task(tmp_path, 3)
    first = task[1].turns[0].parts[0]
    task[1] = Example("bad", (Turn("user", (first, Text("What is <|AUDIO|>?"))),), ("hiss",), task[1].choices)
    assert soundfile.info(task[0].audio_paths[0]).samplerate == RATE != 16000, "clips are resampled for the model"
    metrics = evaluate(LocalEngine(tiny_qwen2_audio()), task, tmp_path / "run")
    assert metrics["n"] == 3 and metrics["error"]["count"] == 1
    assert "holds the audio placeholder" in metrics["first_error"]


def test_too_many_sounds_for_a_packing_of_two() -> None:
    model = mellow.tiny(0).model
    model.template = MELLOW_COMPAT
    asked = (Turn("user", (Audio("a"), Text("What is it?"))),)
    for pieces, fits in ((1, True), (2, True), (3, False)):
        turns = spread(asked, [pieces])
        samples = [8000] * pieces
        if fits:
            assert conversation_path(model, turns, range(pieces), samples, generate=True).clips
        else:
            with pytest.raises(DataError, match=r"takes 1 to 2 sounds.*this has 3"):
                conversation_path(model, turns, range(pieces), samples, generate=True)


def test_spread_repeats_sounds_and_nothing_else() -> None:
    turns = (
        Turn("user", (Text("a"), Audio("1"), Text("b"), Audio("2"))),
        Turn("assistant", (Text("c"),)),
        Turn("user", (Audio("3"),)),
    )
    assert spread(turns, [1, 1, 1]) == turns
    assert spread(turns, [2, 1, 3]) == (
        Turn("user", (Text("a"), Audio("1"), Audio("1"), Text("b"), Audio("2"))),
        turns[1],
        Turn("user", (Audio("3"),) * 3),
    )
