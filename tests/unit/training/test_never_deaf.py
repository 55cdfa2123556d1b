"""A run in which nothing would be heard is refused before it trains; declared text-only rows are used."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from builders import tiny_qwen2_audio
from earwise.config.recipe import Recipe, check_recipe
from earwise.data import manifest
from earwise.errors import DataError, ModelError
from earwise.models.encoder_cache import EncoderCache
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import prompt_turns
from earwise.training import run
from earwise.training.check_recipe import check_training
from earwise.training.clip_loader import ClipLoader
from earwise.training.stages.sft import SftStage
from earwise.training.stages.stage import StageContext, StageData
from earwise.types import Text, Turn
from resumed import metrics_rows


def load(_: Path | None = None, *, device: str = "cpu") -> Qwen2Audio:
    """The model of the recipes below, which name it."""
    assert device == "cpu"
    return tiny_qwen2_audio(3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EARWISE_HOME", str(tmp_path / "home"))
    for number in range(3):
        t = np.arange(8000 + 800 * number) / 16000
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(2 * np.pi * 300 * (number + 1) * t), 16000)
    return tmp_path


def write(folder: Path, *rows: dict) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(kind: str = "sft", *, source: dict | None = None, data: dict | None = None, **stage: object) -> Recipe:
    settings = {
        "kind": kind, "max_steps": 2, "pack_tokens": 400, "save_steps": 1,
        "data": {"mixture": [{"manifest": "rows.jsonl"} | (source or {})], "styles": {"open": 1.0}} | (data or {}),
        "trainable": {"encoder": "frozen", "connector": "full", "decoder": "full"},
        "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip
    if kind == "sft":
        settings |= {"clips_per_step": 2, "log_completions_steps": 0}
    if kind == "grpo":
        settings |= {"prompts_per_step": 1, "group_size": 2, "max_new_tokens": 2}
    model = {"name": f"{__name__}:load"}
    return check_recipe({"recipe": "t", "model": model, "trackers": [], "stages": [settings | stage]}, "t")


def swift(number: int, **fields: object) -> dict:
    messages = [{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": f"Sound {number}."}]
    return {"messages": messages, "audios": [f"{number}.wav"]} | fields


TEXT_ROW = {"id": "t", "messages": [{"role": "user", "content": "Two and two?"}], "answer": "4"}


@pytest.mark.parametrize("kind", ["sft", "grpo", "dpo"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (swift(0, audios=None), r"rows\.jsonl:row 2: '<audio>' is a place for a clip and has no clip"),
        (TEXT_ROW, r"rows\.jsonl:row 2: no clip \(1 such rows\); add the audio part, or declare text alone"),
        (TEXT_ROW | {"wav_file": "0.wav"}, r"rows\.jsonl:row 2: no clip, but the key 'wav_file' names sound"),
        ({"sentence": "x", "clip": "0.wav"}, r"rows\.jsonl:row 2: the keys sentence, clip are of no known format"),
    ],
)
def test_every_stage_refuses_a_row_without_the_sound_it_names(folder: Path, kind: str, row: dict, message: str) -> None:
    write(folder, swift(0, rejected_response="no"), row | ({"rejected": ["3"]} if row is TEXT_ROW else {}))
    with pytest.raises(DataError, match=message):
        check_training(recipe(kind), folder)


def test_an_evaluation_of_a_recipe_refuses_it_too(folder: Path) -> None:
    write(folder, swift(0))
    (folder / "val.jsonl").write_text(json.dumps(TEXT_ROW) + "\n")
    plan = recipe().model_dump(mode="json") | {"eval": [{"manifest": "val.jsonl"}]}
    with pytest.raises(DataError, match=r"val\.jsonl:row 1: no clip"):
        check_training(check_recipe(plan, "t"), folder)
    plan["eval"][0]["allow_text_only"] = True
    check_training(check_recipe(plan, "t"), folder)


def test_declared_text_is_trained_beside_sound_and_never_alone(folder: Path) -> None:
    write(folder, TEXT_ROW, swift(0))
    lines: list[str] = []
    rows = check_training(recipe(source={"allow_text_only": True}), folder, lines.append).stages[0].data.mixture[0][0]
    assert len(rows) == 2
    assert any("1 of ms-swift" in line and "1 of earwise" in line for line in lines)
    write(folder, TEXT_ROW | {"text_only": True}, swift(0))
    check_training(recipe(), folder)
    write(folder, TEXT_ROW | {"text_only": True})
    with pytest.raises(DataError, match="stage sft: none of its 1 rows has a clip"):
        check_training(recipe(), folder)


def test_the_start_check_waits_for_a_clip_and_ends_a_run_that_has_none(folder: Path) -> None:
    write(folder, TEXT_ROW | {"text_only": True}, swift(0))
    (folder / "text.jsonl").write_text(json.dumps(TEXT_ROW | {"text_only": True}) + "\n")
    rare = [{"manifest": "text.jsonl", "weight": 1e9}, {"manifest": "rows.jsonl", "weight": 1e-9}]
    with pytest.raises(ModelError, match="no row of the first 2 steps has a clip"):
        run.start(recipe(data={"mixture": rare}), folder / "deaf", folder)
    assert not (folder / "deaf" / "final").exists()


def test_swift_rows_are_heard_in_training(folder: Path) -> None:
    write(folder, *(swift(number) for number in range(3)))
    lines: list[str] = []
    run.start(recipe(), folder / "run", folder, notify=lines.append)
    assert metrics_rows(folder / "run")[0]["sft/hearing"] != 0
    assert any("3 rows, recognised by their keys: 3 of ms-swift" in line for line in lines)


def test_rows_that_are_left_out_are_counted(folder: Path) -> None:
    unlabelled = {"id": "u", "messages": swift(0)["messages"][:1], "audios": ["0.wav"]}
    write(folder, swift(0), unlabelled, swift(1))
    lines: list[str] = []
    check_training(recipe(), folder, lines.append)
    assert any("1 of 3 rows are left out: without an answer to train on" in line for line in lines)


def test_missing_files_are_skipped_where_bad_rows_are(folder: Path) -> None:
    write(folder, swift(0), swift(1), swift(2, audios=["gone.wav"]))
    with pytest.raises(DataError, match=r"rows\.jsonl:row 3: audio file .*gone\.wav is missing"):
        check_training(recipe(), folder)
    lines: list[str] = []
    run.start(recipe(data={"on_bad_row": "skip"}, max_steps=3), folder / "run", folder, notify=lines.append)
    assert any(line.startswith("skipped") and "gone.wav" in line for line in lines)


def conversation_row() -> dict:
    return {
        "conversations": [
            {"from": "human", "value": "<audio>What?"}, {"from": "gpt", "value": "A dog."},
            {"from": "human", "value": "And <audio>this?"}, {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
        ],
        "audios": ["0.wav", "1.wav"],
    }  # fmt: skip


@pytest.mark.parametrize("assistant_turns", ["last", "all"])
def test_the_loss_counts_the_last_reply_or_all_of_them(folder: Path, assistant_turns: str) -> None:
    write(folder, conversation_row())
    model, lines = load(), list[str]()
    plan = recipe(assistant_turns=assistant_turns, clips_per_step=1)
    rows = check_training(plan, folder, lines.append).stages[0].data.mixture[0][0]
    assert any("earlier assistant turns" in line for line in lines) == (assistant_turns == "last")
    loader = ClipLoader(model, long_audio="error", on_bad_row="stop")
    context = StageContext(model, StageData([(rows, 1.0)]), EncoderCache(model, batch_size=1), loader, 0, folder)
    (micro_batch,) = SftStage(context, plan.stages[0]).batches(0).micro_batches
    forest = micro_batch.forest
    trained = [
        forest.target_ids[targets[mask]].tolist()
        for targets, mask in zip(forest.branch_targets, forest.loss_mask, strict=True)
    ]
    replies = ["A dog.", "A cat.", "Yes."] if assistant_turns == "all" else ["Yes."]
    assert trained == [[*model.tokenizer.encode(reply), model.eos_ids[0]] for reply in replies]
    # The tree is the conversation itself: as many distinct tokens as the whole conversation, rendered at once.
    example = rows[0]
    samples = [len(waveform) for waveform in loader.load(example) or ()]
    whole = (*prompt_turns(example, "open"), Turn("assistant", (Text("Yes."),)))
    path = conversation_path(model, whole, range(2), samples, generate=False)
    assert Counter(forest.ids.tolist()) == Counter(path.ids[: len(forest)])
    assert manifest.read(folder / "rows.jsonl")[0].answer == ("Yes.",)
