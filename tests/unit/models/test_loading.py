"""How a model is loaded: options of its loader, dtype, trimmed or padded clips, and what a checkpoint stores of that
choice."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers import WhisperFeatureExtractor
from transformers.utils import logging

from builders import max_abs, tiny_qwen2_audio, tone, user_question
from earwise.config.recipe import check_recipe
from earwise.config.stages import TrainableConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError, ModelError
from earwise.models import base
from earwise.models.checkpoint import no_progress_bars
from earwise.models.embedded import base_weights
from earwise.models.embedded import model as embedded
from earwise.models.parts import whisper
from earwise.models.parts.projector import pool_states
from earwise.training.trainable import set_trainable
from families.embedded import transformers_encoder

weights = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not (base_weights.cache_dir() / base_weights.BASE / "complete").exists(),
        reason="no base weights in EARWISE_HOME; `make test` fetches them",
    ),
]


def test_a_loader_gets_only_the_options_that_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own loader that has neither dtype nor trim."""
    (tmp_path / "own_loader.py").write_text("def load(folder, *, device):\n    return (folder, device)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert base.load("own_loader:load", device="cpu") == (None, "cpu")
    with pytest.raises(ModelError, match=r"its loader takes no dtype; leave model\.dtype out"):
        base.load("own_loader:load", device="cpu", dtype="bfloat16")
    with pytest.raises(ModelError, match="dtype 'int8' is none of float32, bfloat16"):
        base.load("embedded", dtype="int8")


def test_a_checkpoint_in_half_precision(tmp_path: Path) -> None:
    """Frozen weights have the requested dtype; what is trained beside them stays in float32."""
    tiny_qwen2_audio(1).save(tmp_path)
    full, half = base.load(str(tmp_path), device="cpu"), base.load(str(tmp_path), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in full.module.parameters()} == {torch.float32}
    assert {p.dtype for p in half.module.parameters()} == {torch.bfloat16}
    prompt = Prompt(user_question("Which?"), (tone(0.5),), "a")
    exact, rounded = (LocalEngine(model).score([prompt], [("a dog", "a cat")])[0] for model in (full, half))
    assert max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) < 0.05 * max(map(abs, exact))
    set_trainable(half, TrainableConfig())
    trained = {p.dtype for p in half.module.parameters() if p.requires_grad}
    frozen = {p.dtype for p in half.module.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    completion = LocalEngine(half).generate([prompt], SamplingParams(max_new_tokens=3))[0][0]
    assert len(completion.token_ids) <= 3


def test_a_recipe_sets_dtype_and_trim() -> None:
    stage = {"kind": "sft", "data": {"mixture": [{"manifest": "m.jsonl"}]}, "max_steps": 1}
    raw = {"recipe": "r", "model": {"dtype": "bfloat16", "trim": True}, "stages": [stage]}
    recipe = check_recipe(raw, "here")
    assert (recipe.model.dtype, recipe.model.trim) == ("bfloat16", True)
    assert recipe.stages[0].gradient_checkpointing is False
    assert (
        check_recipe(raw | {"stages": [stage | {"gradient_checkpointing": True}]}, "").stages[0].gradient_checkpointing
    )
    with pytest.raises(ConfigError, match=r"model\.dtype.*float16"):
        check_recipe(raw | {"model": {"dtype": "float16"}}, "here")


class TestEmbedded:
    pytestmark = weights

    def test_the_choice_is_kept_in_the_checkpoint(self, tmp_path: Path) -> None:
        assert embedded.load().trims_padding, "the shipped model was trained trimmed"
        assert not base.load("embedded-blank", device="cpu").trims_padding, "Whisper was trained padded"
        for trim in (True, False):
            embedded.load_untrained(trim=trim).save(tmp_path / str(trim))
            assert embedded.load(tmp_path / str(trim)).trims_padding is trim
        assert embedded.load(tmp_path / "False", trim=True).trims_padding
        marks = tmp_path / "False" / "earwise.json"
        marks.write_text(json.dumps({"family": "embedded", "base": base_weights.BASE}))
        assert embedded.load(tmp_path / "False").trims_padding, "checkpoints that do not say were trained trimmed"

    @torch.no_grad()
    def test_padded_is_what_whisper_hears(self) -> None:
        model = embedded.load_untrained()
        wave = tone(1.3)
        encoder = transformers_encoder(model.module.encoder.config, model.module.encoder.state_dict())
        mel = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt").input_features
        assert mel.shape[-1] == 3000
        theirs = encoder(mel, output_hidden_states=True)
        states = torch.stack([*theirs.hidden_states[:-1], theirs.last_hidden_state])[
            :, 0, : whisper.state_count(len(wave))
        ]
        (padded,) = model.encode_audio([wave])
        assert max_abs([padded - pool_states(states, embedded.POOL)]) < 1e-3
        model.trims_padding = True
        (trimmed,) = model.encode_audio([wave])
        assert trimmed.shape == padded.shape
        assert max_abs([trimmed - padded]) > 1e-2, "trimming changes what an encoder without a mask says"

    @torch.no_grad()
    def test_half_precision(self) -> None:
        model = base.load("embedded", device="cpu", dtype="bfloat16")
        inside = model.module
        assert {p.dtype for p in inside.encoder.parameters()} == {p.dtype for p in inside.decoder.parameters()}
        assert inside.decoder.embed_tokens.weight.dtype == torch.bfloat16
        assert {p.dtype for p in inside.connector.parameters()} == {torch.float32}
        assert inside.decoder.rotary_emb.inv_freq.dtype == torch.float32
        prompt = Prompt(user_question("What do you hear?"), (tone(1.0),), "a")
        (score,) = LocalEngine(model).score([prompt], [("a dog",)])[0]
        assert -100 < score < 0


def test_reading_and_writing_weights_shows_no_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers has bars for both; those of downloads stay as they are."""
    was_shown, downloads_were_silent = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    tiny_qwen2_audio(1).save(tmp_path / "saved")
    base.load(str(tmp_path / "saved"))
    assert capfd.readouterr().err == ""
    assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (was_shown, downloads_were_silent)
    with no_progress_bars():
        assert not logging.is_progress_bar_enabled() and are_progress_bars_disabled() == downloads_were_silent
