"""LoRA with the default targets, for every family: where it goes, that it trains, and that what was trained comes back
after saving, merging and export.

The targets are those that a recipe has if it names none, so that a family whose layers have other names cannot be
trained in part without a word.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from builders import max_abs
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import ConfigError
from earwise.models import lora_checkpoint, registry
from earwise.models.export import ExportOptions, export
from earwise.training.trainable import set_trainable
from families.forests import conversation, lengths, make_clip, ready, scores, turn
from families.tiny import Tiny
from families.training import train_sft

LOGITS = 1e-4
FROZEN: dict[str, Any] = {"encoder": "frozen", "connector": "frozen", "decoder": "frozen"}


def decoder_lora(**settings: Any) -> TrainableConfig:
    """LoRA on the decoder alone."""
    return TrainableConfig(connector="frozen", decoder="lora", lora=LoraConfig(**{"r": 2, "lora_alpha": 6} | settings))


def adapted(module: nn.Module) -> dict[str, Any]:
    """Name -> layer of all layers that have LoRA."""
    return {name: layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_the_default_targets_are_all_linear_layers(fresh: Tiny, part: str) -> None:
    """All but the head, as in PEFT, and the one layer whose weight Gemma 3n reads past the layer."""
    model = fresh.model
    all_linear = {
        name
        for name, layer in model.module.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.".startswith(model.parameter_prefixes[part])
    }
    left_out = {name for name in all_linear if name.split(".")[-1] in ("lm_head", "head", "correction_coefs")}
    assert {name.split(".")[-1] for name in left_out} <= {"lm_head", "head"} or "gemma3n" in model.name
    set_trainable(model, TrainableConfig(**FROZEN | {part: "lora"}))
    assert adapted(model.module).keys() == all_linear - left_out and len(all_linear - left_out) >= 8
    trained = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)


def test_what_was_trained_is_saved_loaded_merged_and_exported(fresh: Tiny, tmp_path: Path) -> None:
    long, short = lengths(fresh)
    base = fresh.reload(fresh.model, tmp_path / "base")
    model = ready(fresh.model, decoder_lora(), moved=False)
    waveforms = {0: make_clip(model, long), 1: make_clip(model, short, 900.0, 1)}
    path = conversation(model, [turn("user", "What is it?", 0)], waveforms)
    losses = train_sft(model, waveforms, tmp_path / "training", 2)
    assert losses[-1] < losses[0]
    untrained = [name for name, layer in adapted(model.module).items() if not layer.lora_B["default"].weight.any()]
    assert untrained == []
    with torch.no_grad():
        trained = scores(model, path, waveforms)
        assert max_abs([trained - scores(base, path, waveforms)]) > 10 * LOGITS
        loaded = fresh.reload(model, tmp_path / "final")
        assert max_abs([scores(loaded, path, waveforms) - trained]) < LOGITS
        family = registry.find(registry.family_of_model(model.name))
        names = family.parameter_names if family is not None else ()
        adapter = lora_checkpoint.from_module(model.module, str(tmp_path / "base"))
        lora_checkpoint.write(tmp_path / "adapter", lora_checkpoint.rename_parameters(adapter, names))
        published = lora_checkpoint.read(tmp_path / "adapter")
        assert len(published.matrices) == 2 * len(adapted(model.module))
        if isinstance(base.module, PreTrainedModel):
            lora_checkpoint.write(tmp_path / "final" / lora_checkpoint.SUBFOLDER, adapter)
            export(
                str(tmp_path / "final"),
                tmp_path / "exported",
                ExportOptions(format="peft", parameter_names="transformers5"),
            )
            copy = fresh.reload(base, tmp_path / "copy")
            PeftModel.from_pretrained(copy.module, tmp_path / "exported")  # PEFT puts its layers into the module
            assert max_abs([scores(copy, path, waveforms) - trained]) < LOGITS
        lora_checkpoint.add_own(base.module, published, names, tmp_path / "adapter")
        assert max_abs([scores(base, path, waveforms) - trained]) < LOGITS


def test_a_target_that_matches_nothing_is_refused(fresh: Tiny) -> None:
    """Among others the projections of Llama in a model with fused ones, and the experts of a mixture."""
    with pytest.raises(ConfigError, match=r"'wide_proj' matches no linear layer .* all-linear takes all") as error:
        set_trainable(fresh.model, decoder_lora(target_modules=("o_proj", "wide_proj")))
    assert "\n" not in str(error.value) and "o_proj" in str(error.value)
    with pytest.raises(ConfigError, match="rank_pattern 'wide_proj' matches no layer"):
        set_trainable(fresh.model, decoder_lora(rank_pattern={"wide_proj": 3}))
    with pytest.raises(ConfigError, match="exclude_modules 'wide_proj' matches no linear layer"):
        set_trainable(fresh.model, decoder_lora(exclude_modules=("wide_proj",)))
    assert not adapted(fresh.model.module)
