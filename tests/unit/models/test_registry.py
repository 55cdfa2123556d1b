"""A new model family is one file and one row of `models/registry.py`: every part of earwise that knows families by name
then knows it."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import WhisperFeatureExtractor

from builders import max_abs, tone
from earwise import cli
from earwise.config.resolve import resolve_entry
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import ModelError
from earwise.models import base, detect, lora_checkpoint, registry
from earwise.models.families.transformers_audio import from_parts
from earwise.models.family import ModelFamily
from earwise.models.memory.sizes import DecoderShape, EncoderShape, ModelSizes
from earwise.training.trainable import set_trainable
from families import voxtral as tiny_voxtral
from families.transformers_audio import MELS, special_byte_tokenizer

FAMILY_FILE = '''
"""A family of its own: a class under its own model_type, with the functions of Voxtral."""

from dataclasses import replace
from functools import partial

from transformers import VoxtralConfig, VoxtralForConditionalGeneration

from earwise.models import registry
from earwise.models.families import transformers_audio, voxtral


class ToyAudioConfig(VoxtralConfig):
    model_type = "toy_audio"


class ToyAudioForConditionalGeneration(VoxtralForConditionalGeneration):
    config_class = ToyAudioConfig
    config: ToyAudioConfig


ARCHITECTURE = replace(
    voxtral.ARCHITECTURE,
    family=registry.get("toy_audio"),
    label="a toy audio model",
    model_class="toy_audio_family:ToyAudioForConditionalGeneration",
)
load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
'''

ROW = ModelFamily(
    name="toy_audio",
    summary="a family of this test",
    loader="toy_audio_family:load",
    model_types={"toy_audio": ""},
    build_empty="toy_audio_family:build_empty",
    parameter_names=(("model.language_model.", "toy.decoder."),),
    sizes=(
        ModelSizes(
            "toy/audio-1B", 100_000_000, 10_000_000, 900_000_000, EncoderShape(2, 24, 96, 50.0),
            DecoderShape(2, 32, 4, 2, 8, 48, 272), 16000, 60.0, 12.5,
        ),
    ),
)  # fmt: skip


@pytest.fixture
def toy_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFamily:
    """The family's file on the Python path, and its row in the table."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "toy_audio_family.py").write_text(FAMILY_FILE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "toy_audio_family", raising=False)
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, ROW))
    return ROW


@pytest.fixture
def released(toy_family: ModelFamily, tmp_path: Path) -> Path:
    """A checkpoint of the family as somebody else published it: without earwise.json."""
    toy = importlib.import_module("toy_audio_family")
    reference = tiny_voxtral.reference_model()
    module = toy.ToyAudioForConditionalGeneration(toy.ToyAudioConfig(**reference.config.to_dict()))
    module.load_state_dict(reference.state_dict())
    tokenizer = special_byte_tokenizer(tiny_voxtral.SPECIAL, {})
    extractor = WhisperFeatureExtractor(feature_size=MELS)
    folder = tmp_path / "released"
    from_parts(toy.ARCHITECTURE, module, tokenizer, extractor).save(folder)
    (folder / "earwise.json").unlink()
    return folder


@torch.no_grad()
def test_its_checkpoints_are_detected_and_loaded(released: Path, tmp_path: Path) -> None:
    assert detect.find_checkpoint(released) == ("toy_audio", released)
    model = base.load(str(released), device="cpu")
    assert model.name == "toy_audio"
    model.save(tmp_path / "saved")
    saved = base.load(str(tmp_path / "saved"), device="cpu")
    assert saved.name == "toy_audio" and saved.revision == base.load("toy_audio", tmp_path / "saved").revision
    waveform = tone(0.5)
    embeddings = [lm.project_audio(lm.encode_audio([waveform]))[0] for lm in (model, saved)]
    assert torch.equal(*embeddings)


def test_earwise_models_lists_and_describes_it(
    released: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.run(["models"]) == 0
    listed = capsys.readouterr().out
    assert "toy_audio" in listed and "a family of this test" in listed and "toy/audio-1B" in listed
    assert cli.run(["models", "toy_audio"]) == 0
    described = capsys.readouterr().out
    assert (
        "1.01B parameters" in described
        and "LoRA      q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in described
    )
    assert cli.run(["models", str(released), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    model = base.load(str(released), device="cpu")
    assert row["family"] == "toy_audio" and row["decoder"]["layers"] == 2
    assert row["parameters"]["all"] == sum(parameter.numel() for parameter in model.module.parameters())


def test_a_recipe_is_planned_with_its_sizes(
    toy_family: ModelFamily, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "recipe: toy\nmodel: {name: toy_audio}\nstages:\n"
        '  - {kind: sft, data: {mixture: [{manifest: "starter:train"}]}, max_steps: 1, trainable: {lora: {r: 4}}}\n'
    )
    assert cli.run(["train", str(recipe), "--plan", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["parameters"] == toy_family.sizes[0].parameters
    query_and_output, key_and_value, feed_forward = 2 * (32 + 32), 2 * (32 + 16), 3 * (32 + 48)
    assert stage["trained"]["decoder"] == 2 * 4 * (query_and_output + key_and_value + feed_forward)


@torch.no_grad()
def test_its_lora_is_exported_under_the_published_names_and_read_again(
    released: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = base.load(str(released), device="cpu")
    lora = LoraConfig(r=2)
    set_trainable(model, TrainableConfig(connector="frozen", lora=lora))
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    run = tmp_path / "run"
    model.save(run)
    lora_checkpoint.write_beside(run, lora_checkpoint.from_module(model.module, str(released)))
    assert cli.run(["export", "--model", str(run), "--out", str(tmp_path / "lora"), "--format", "peft"]) == 0
    capsys.readouterr()
    adapter = lora_checkpoint.read(tmp_path / "lora")
    assert adapter.matrices and all(name.startswith("toy.decoder.layers.") for name in adapter.matrices)
    merged = base.load("toy_audio", tmp_path / "lora", device="cpu").module.state_dict()
    trained = base.load(str(run), device="cpu").module.state_dict()
    assert max_abs([merged[name] - trained[name] for name in trained]) < 1e-6


def test_unknown_names_are_refused(toy_family: ModelFamily) -> None:
    with pytest.raises(ModelError, match=r"model 'toy_audo' is none of .*toy_audio; did you mean 'toy_audio'\?"):
        base.load("toy_audo")
    with pytest.raises(KeyError, match="add a row to FAMILIES"):
        registry.get("no such family")


def test_a_row_without_sizes_or_published_checkpoint_says_so(
    toy_family: ModelFamily, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES[:-1], replace(toy_family, sizes=())))
    assert cli.run(["models", "toy_audio"]) == 2
    message = (
        "family 'toy_audio' declares no sizes in models/registry.py; give a checkpoint folder: earwise models FOLDER"
    )
    assert message in capsys.readouterr().err
    with pytest.raises(
        ModelError, match=r"^toy_audio has no published checkpoint; name a folder with one: --model FOLDER"
    ):
        base.load("toy_audio", device="cpu")


def test_every_row_is_complete() -> None:
    """Names are unique, model types belong to one family, and everything that a row names can be imported."""
    names = registry.names()
    assert len(set(names)) == len(names)
    model_types = [model_type for family in registry.FAMILIES for model_type in family.model_types]
    assert len(set(model_types)) == len(model_types)
    for family in registry.FAMILIES:
        assert family.summary and (family.sizes or registry.get(family.variant_of).sizes)
        targets = [family.loader, family.build_empty, family.official.writer if family.official else ""]
        for target in filter(None, targets):
            assert callable(resolve_entry({family.name: target}, family.name, "model"))
        if family.hub:
            assert family.hub.partition("@")[0] in {sizes.weights for sizes in family.sizes}


def test_special_tokens_of_a_tokenizer() -> None:
    """The tiny tokenizers of the tests have one token per byte, so texts come back as they were."""
    tokenizer = tiny_voxtral.tiny().model.tokenizer
    assert tokenizer.decode(tokenizer.encode_template("[INST]hé[/INST]")) == "hé"
    assert tokenizer.decode(tokenizer.encode("[INST]hé[/INST]")) == "[INST]hé[/INST]"
    backend = special_byte_tokenizer(tiny_voxtral.SPECIAL, {})
    assert tokenizer.placeholder_id == backend.token_to_id("[AUDIO]")
    assert tokenizer.eos_ids == (backend.token_to_id("</s>"),)
