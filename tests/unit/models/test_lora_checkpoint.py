"""LoRA in PEFT's folder format: we read what PEFT writes as PEFT does, PEFT reads what we write, under the names of
transformers 4 and 5; what is not plain LoRA is refused.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2AudioForConditionalGeneration

from builders import hf_inputs, max_abs, tiny_qwen2_audio, tone, user_question
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import ModelError
from earwise.models import base, lora_checkpoint, registry
from earwise.models.families.qwen2_audio import Qwen2Audio, load
from earwise.models.prompt_encoding import conversation_path
from earwise.training.trainable import set_trainable

WAVEFORMS = {0: tone(0.5)}
SETTINGS = {"r": 3, "lora_alpha": 12, "lora_dropout": 0.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole tiny checkpoint."""
    tiny_qwen2_audio(4).save(tmp_path / "base")
    return tmp_path / "base"


def reference_model(folder: Path) -> Qwen2AudioForConditionalGeneration:
    return Qwen2AudioForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def logits(module: torch.nn.Module) -> Tensor:
    model = tiny_qwen2_audio()
    path = conversation_path(model, user_question("What?"), [0], [len(WAVEFORMS[0])], generate=True)
    scores: Tensor = module(**hf_inputs(path, WAVEFORMS)).logits[0]
    return scores


def with_own_attention(model: Qwen2Audio) -> torch.nn.Module:
    """The transformers class inside a model of ours, with its own attention."""
    model.module.model.language_model.config._attn_implementation = "eager"
    return model.module


def move_trained_weights(module: torch.nn.Module) -> None:
    """Move LoRA away from its zero start, and other trained parameters too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name or "modules_to_save.default" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def rename_tensors(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({change(name): value for name, value in tensors.items()}, folder / "adapter_model.safetensors")


def name_in_transformers_4(name: str) -> str:
    """The class of transformers 4 had the text model with its head in one part, and no `model.` around the three."""
    name = name.removeprefix("base_model.model.model.")
    return "base_model.model." + name.replace("language_model.", "language_model.model.")


@pytest.mark.parametrize("names", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.0.self_attn.q_proj": 20}},
        {"modules_to_save": ["multi_modal_projector"]},
    ],
    ids=["plain", "rslora", "patterns", "with a connector"],
)
def test_an_adapter_of_peft_is_merged_as_peft_applies_it(checkpoint: Path, names: str, settings: dict) -> None:
    target_modules = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    wrapped = get_peft_model(
        reference_model(checkpoint), PeftConfig(**SETTINGS, target_modules=target_modules, **settings)
    )
    move_trained_weights(wrapped)
    folder = checkpoint.parent / "lora"
    wrapped.save_pretrained(folder)
    if names == "transformers 4":
        rename_tensors(folder, name_in_transformers_4)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(checkpoint)
    model = base.load(str(folder))
    assert isinstance(model, Qwen2Audio)
    expected = logits(wrapped)
    assert max_abs([logits(reference_model(checkpoint)) - expected]) > 1e-2
    assert max_abs([logits(with_own_attention(model)) - expected]) < 1e-5
    assert model.revision not in (load(checkpoint).revision, base.load("qwen2_audio", checkpoint).revision)
    assert model.revision == base.load("qwen2_audio", folder).revision


@pytest.mark.parametrize("connector", ["frozen", "full"])
def test_what_is_written_is_read_by_peft_and_by_us(checkpoint: Path, connector: str) -> None:
    model = load(checkpoint)
    lora = LoraConfig(r=2, lora_alpha=6.0, target_modules=("q_proj", "up_proj"))
    set_trainable(model, TrainableConfig(connector=connector, lora=lora))
    move_trained_weights(model.module)
    with torch.no_grad():
        model.module.model.multi_modal_projector.linear.bias.add_(0.3 if connector == "full" else 0.0)
    ours = logits(with_own_attention(model))
    adapter = lora_checkpoint.from_module(model.module, str(checkpoint))
    assert bool(adapter.full_parameters) == (connector == "full")
    folders = checkpoint.parent / "five", checkpoint.parent / "four"
    lora_checkpoint.write(folders[0], adapter)
    published = lora_checkpoint.rename_parameters(adapter, registry.parameter_names("qwen2_audio"))
    lora_checkpoint.write(folders[1], published)
    stored = set(load_file(folders[1] / "adapter_model.safetensors"))
    assert "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight" in stored
    assert ("base_model.model.multi_modal_projector.linear.bias" in stored) == (connector == "full")
    assert max_abs([logits(PeftModel.from_pretrained(reference_model(checkpoint), folders[0])) - ours]) < 1e-5
    for folder in folders:
        assert max_abs([logits(with_own_attention(base.load(str(folder)))) - ours]) < 1e-5


def test_ranks_that_differ(checkpoint: Path) -> None:
    stems = [f"model.language_model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    generator = torch.Generator().manual_seed(0)
    weights = dict(load(checkpoint).module.named_parameters())
    matrices = {}
    for stem, rank in zip(stems, (2, 2, 3), strict=True):
        rows, columns = weights[f"{stem}.weight"].shape
        matrices[f"{stem}.lora_A"] = torch.randn(rank, columns, generator=generator)
        matrices[f"{stem}.lora_B"] = torch.randn(rows, rank, generator=generator)
    folder = checkpoint.parent / "lora"
    lora_checkpoint.write(folder, lora_checkpoint.PeftAdapter(matrices, {}, str(checkpoint)))
    expected = logits(PeftModel.from_pretrained(reference_model(checkpoint), folder))
    assert max_abs([logits(with_own_attention(base.load(str(folder)))) - expected]) < 1e-4 * float(expected.abs().max())
    again = lora_checkpoint.read(folder)
    assert all(torch.equal(value, again.matrices[name]) for name, value in matrices.items())


def test_adapters_that_are_refused(checkpoint: Path) -> None:
    folder = checkpoint.parent / "lora"
    stem = "model.language_model.layers.0.self_attn.q_proj"
    matrices = {f"{stem}.lora_A": torch.zeros(2, 32), f"{stem}.lora_B": torch.zeros(32, 2)}

    def refused(match: str, changed: dict[str, Tensor] | None = None, **settings: object) -> None:
        lora_checkpoint.write(folder, lora_checkpoint.PeftAdapter(changed or matrices, {}, str(checkpoint)))
        config = json.loads((folder / "adapter_config.json").read_text()) | settings
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=match) as error:
            base.load("qwen2_audio", folder)
        assert "\n" not in str(error.value)

    refused("use_dora True is not plain LoRA", use_dora=True)
    refused("peft_type 'IA3'", peft_type="IA3")
    refused("names no base_model_name_or_path", base_model_name_or_path=None)
    refused(
        "its base model nowhere/at-all: no such folder here, .* cannot be fetched",
        base_model_name_or_path="nowhere/at-all",
    )
    refused(
        r"unexpected: visual\.q_proj\.weight", {name.replace(stem, "visual.q_proj"): v for name, v in matrices.items()}
    )
    refused(r"missing: .*q_proj", {f"{stem}.lora_A": torch.zeros(2, 32)})
    refused(r"wrong shape: .*\(32, 16\) for \(32, 32\)", matrices | {f"{stem}.lora_A": torch.zeros(2, 16)})
    model = load(checkpoint)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    fitting = {f"model.language_model.layers.0.mlp.up_proj.lora_{half}": torch.ones(1, 1) for half in "AB"}
    with pytest.raises(ModelError, match="unexpected: nowhere"):
        lora_checkpoint.add_own(
            model.module, lora_checkpoint.PeftAdapter(fitting, {"nowhere": torch.ones(1)}, ""), (), folder
        )
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    with pytest.raises(ModelError, match="no LoRA to write"):
        lora_checkpoint.write(folder, lora_checkpoint.PeftAdapter({}, {}, ""))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin: pickled weights can run code"):
        base.load(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_audio"}))
    with pytest.raises(ModelError, match="a whole checkpoint and an adapter"):
        base.load("qwen2_audio", folder)
