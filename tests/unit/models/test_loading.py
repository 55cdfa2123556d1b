"""How a model is loaded: dtype, trimmed or padded hearing, and what a checkpoint keeps of that choice."""

import json
from pathlib import Path

import pytest
import torch
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from builders import ask, largest, sound, tiny_qwen2_audio
from earwise.config.recipe import check_recipe
from earwise.config.stages import TrainableConfig
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError, ModelError
from earwise.models import base
from earwise.models.embedded import base_weights
from earwise.models.embedded import model as embedded
from earwise.models.parts import whisper
from earwise.models.parts.projector import pool_states
from earwise.train.trainable import prepare

weights = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not (base_weights.home() / base_weights.BASE / "complete").exists(),
        reason="no base weights in EARWISE_HOME; `make test` fetches them",
    ),
]


def only_weights(folder: Path | None, *, device: str) -> object:
    """A user's own loader that knows neither dtype nor trim."""
    return (folder, device)


def test_a_loader_is_told_only_what_was_asked() -> None:
    assert base.load("test_loading:only_weights", device="cpu") == (None, "cpu")
    with pytest.raises(ModelError, match=r"its loader takes no dtype; leave model\.dtype out"):
        base.load("test_loading:only_weights", device="cpu", dtype="bfloat16")
    with pytest.raises(ModelError, match="dtype 'int8' is none of float32, bfloat16"):
        base.load("embedded", dtype="int8")


def test_a_checkpoint_in_half_precision(tmp_path: Path) -> None:
    """Frozen weights take the dtype that is asked for; what is trained beside them stays in float32."""
    tiny_qwen2_audio(1).save(tmp_path)
    full, half = base.load(str(tmp_path), device="cpu"), base.load(str(tmp_path), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in full.module.parameters()} == {torch.float32}
    assert {p.dtype for p in half.module.parameters()} == {torch.bfloat16}
    prompt = Prompt(ask("Which?"), (sound(0.5),), "a")
    exact, rounded = (LocalEngine(model).score([prompt], [("a dog", "a cat")])[0] for model in (full, half))
    assert max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) < 0.05 * max(map(abs, exact))
    prepare(half, TrainableConfig())
    trained = {p.dtype for p in half.module.parameters() if p.requires_grad}
    frozen = {p.dtype for p in half.module.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    said = LocalEngine(half).generate([prompt], SamplingParams(max_new_tokens=3))[0][0]
    assert len(said.token_ids) <= 3


def test_a_recipe_says_how_its_model_hears() -> None:
    stage = {"kind": "sft", "data": {"mixture": [{"manifest": "m.jsonl"}]}, "max_steps": 1}
    raw = {"recipe": "r", "model": {"dtype": "bfloat16", "trim": True}, "stages": [stage]}
    recipe = check_recipe(raw, "here")
    assert (recipe.model.dtype, recipe.model.trim) == ("bfloat16", True)
    assert recipe.stages[0].checkpoint_activations is False
    assert (
        check_recipe(raw | {"stages": [stage | {"checkpoint_activations": True}]}, "").stages[0].checkpoint_activations
    )
    with pytest.raises(ConfigError, match=r"model\.dtype.*float16"):
        check_recipe(raw | {"model": {"dtype": "float16"}}, "here")


class TestEmbedded:
    pytestmark = weights

    def test_the_choice_is_kept_in_the_checkpoint(self, tmp_path: Path) -> None:
        assert embedded.load().trims, "the shipped model was trained trimmed"
        assert not base.load("embedded-blank", device="cpu").trims, "Whisper was trained padded"
        for trim in (True, False):
            embedded.blank(trim=trim).save(tmp_path / str(trim))
            assert embedded.load(tmp_path / str(trim)).trims is trim
        assert embedded.load(tmp_path / "False", trim=True).trims
        marks = tmp_path / "False" / "earwise.json"
        marks.write_text(json.dumps({"family": "embedded", "base": base_weights.BASE}))
        assert embedded.load(tmp_path / "False").trims, "checkpoints that do not say were trained trimmed"

    @torch.no_grad()
    def test_padded_is_what_whisper_hears(self) -> None:
        model = embedded.blank()
        wave = sound(1.3)
        encoder: WhisperEncoder = model.module.encoder
        mel = model._extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
        assert mel.shape[-1] == 3000
        theirs = encoder(mel, output_hidden_states=True)
        states = torch.stack([*theirs.hidden_states[:-1], theirs.last_hidden_state])[:, 0, : whisper.states(len(wave))]
        (padded,) = model.encode_audio([wave])
        assert largest([padded - pool_states(states, embedded.POOL)]) < 1e-3
        model.trims = True
        (trimmed,) = model.encode_audio([wave])
        assert trimmed.shape == padded.shape
        assert largest([trimmed - padded]) > 1e-2, "trimming changes what an encoder without a mask says"

    @torch.no_grad()
    def test_half_precision(self) -> None:
        model = base.load("embedded", device="cpu", dtype="bfloat16")
        inside = model.module
        assert {p.dtype for p in inside.encoder.parameters()} == {p.dtype for p in inside.decoder.parameters()}
        assert inside.decoder.embed_tokens.weight.dtype == torch.bfloat16
        assert {p.dtype for p in inside.connector.parameters()} == {torch.float32}
        assert inside.decoder.rotary_emb.inv_freq.dtype == torch.float32
        prompt = Prompt(ask("What do you hear?"), (sound(1.0),), "a")
        (score,) = LocalEngine(model).score([prompt], [("a dog",)])[0]
        assert -100 < score < 0
