"""LoRA in PEFT's folders: what PEFT writes is read as PEFT reads it, what we write PEFT reads, under the names of
transformers 4 and 5; what is no plain LoRA is refused.
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

from builders import ask, largest, plain_inputs, sound, tiny_qwen2_audio
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import ModelError
from earwise.models import base, lora_checkpoint
from earwise.models.families.qwen2_audio import Qwen2Audio, load
from earwise.models.prompt_encoding import conversation_path
from earwise.train.trainable import prepare

WAVES = {0: sound(0.5)}
SETTINGS = {"r": 3, "lora_alpha": 12, "lora_dropout": 0.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole tiny checkpoint."""
    tiny_qwen2_audio(4).save(tmp_path / "base")
    return tmp_path / "base"


def plain(folder: Path) -> Qwen2AudioForConditionalGeneration:
    return Qwen2AudioForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def logits(module: torch.nn.Module) -> Tensor:
    model = tiny_qwen2_audio()
    path = conversation_path(model, ask("What?"), [0], [len(WAVES[0])], generate=True)
    scores: Tensor = module(**plain_inputs(path, WAVES)).logits[0]
    return scores


def unfold(model: Qwen2Audio) -> torch.nn.Module:
    """transformers' own forward on a model of ours."""
    model.module.model.language_model.config._attn_implementation = "eager"
    return model.module


def drawn(module: torch.nn.Module) -> None:
    """LoRA away from its zero start, whatever else is trained moved too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name or "modules_to_save.default" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def as_transformers_4(folder: Path, change: Callable[[str], str]) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    save_file({change(name): value for name, value in state.items()}, folder / "adapter_model.safetensors")


def older(name: str) -> str:
    """The class of transformers 4 had the text model with its head in one part, and no `model.` around the three."""
    name = name.removeprefix("base_model.model.model.")
    return "base_model.model." + name.replace("language_model.", "language_model.model.")


@pytest.mark.parametrize("names", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.0.self_attn.q_proj": 20}},
        {"modules_to_save": ["multi_modal_projector"]},
    ],
    ids=["plain", "rslora", "patterns", "with a connector"],
)
def test_an_adapter_of_peft_is_merged_as_peft_runs_it(checkpoint: Path, names: str, more: dict) -> None:
    targets = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    wrapped = get_peft_model(plain(checkpoint), PeftConfig(**SETTINGS, target_modules=targets, **more))
    drawn(wrapped)
    folder = checkpoint.parent / "lora"
    wrapped.save_pretrained(folder)
    if names == "transformers 4":
        as_transformers_4(folder, older)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(checkpoint)
    model = base.load(str(folder))
    assert isinstance(model, Qwen2Audio)
    theirs = logits(wrapped)
    assert largest([logits(plain(checkpoint)) - theirs]) > 1e-2
    assert largest([logits(unfold(model)) - theirs]) < 1e-5
    assert model.revision not in (load(checkpoint).revision, base.load("qwen2_audio", checkpoint).revision)
    assert model.revision == base.load("qwen2_audio", folder).revision


@pytest.mark.parametrize("connector", ["frozen", "full"])
def test_what_is_written_is_read_by_peft_and_by_us(checkpoint: Path, connector: str) -> None:
    model = load(checkpoint)
    targets = ("q_proj", "up_proj")
    prepare(model, TrainableConfig(connector=connector, lora=LoraConfig(r=2, alpha=6.0, targets=targets)))
    drawn(model.module)
    with torch.no_grad():
        model.module.model.multi_modal_projector.linear.bias.add_(0.3 if connector == "full" else 0.0)
    ours = logits(unfold(model))
    kept = lora_checkpoint.trained(model.module, str(checkpoint))
    assert bool(kept.whole) == (connector == "full")
    folders = checkpoint.parent / "five", checkpoint.parent / "four"
    lora_checkpoint.write(folders[0], kept)
    lora_checkpoint.write(folders[1], lora_checkpoint.renamed(kept, lora_checkpoint.PUBLISHED["qwen2_audio"]))
    stored = set(load_file(folders[1] / "adapter_model.safetensors"))
    assert "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight" in stored
    assert ("base_model.model.multi_modal_projector.linear.bias" in stored) == (connector == "full")
    assert largest([logits(PeftModel.from_pretrained(plain(checkpoint), folders[0])) - ours]) < 1e-5
    for folder in folders:
        assert largest([logits(unfold(base.load(str(folder)))) - ours]) < 1e-5


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
    lora_checkpoint.write(folder, lora_checkpoint.Adapter(matrices, {}, str(checkpoint)))
    peft = logits(PeftModel.from_pretrained(plain(checkpoint), folder))
    assert largest([logits(unfold(base.load(str(folder)))) - peft]) < 1e-4 * float(peft.abs().max())
    again = lora_checkpoint.read(folder)
    assert all(torch.equal(value, again.matrices[name]) for name, value in matrices.items())


def test_adapters_that_are_refused(checkpoint: Path) -> None:
    folder = checkpoint.parent / "lora"
    stem = "model.language_model.layers.0.self_attn.q_proj"
    matrices = {f"{stem}.lora_A": torch.zeros(2, 32), f"{stem}.lora_B": torch.zeros(32, 2)}

    def refused(match: str, changed: dict[str, Tensor] | None = None, **settings: object) -> None:
        lora_checkpoint.write(folder, lora_checkpoint.Adapter(changed or matrices, {}, str(checkpoint)))
        config = json.loads((folder / "adapter_config.json").read_text()) | settings
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=match) as caught:
            base.load("qwen2_audio", folder)
        assert "\n" not in str(caught.value)

    refused("use_dora True is not plain LoRA", use_dora=True)
    refused("peft_type 'IA3'", peft_type="IA3")
    refused("names no base_model_name_or_path", base_model_name_or_path=None)
    refused("nowhere/at-all.* is no folder here", base_model_name_or_path="nowhere/at-all")
    refused(
        r"unexpected: visual\.q_proj\.weight", {name.replace(stem, "visual.q_proj"): v for name, v in matrices.items()}
    )
    refused(r"missing: .*q_proj", {f"{stem}.lora_A": torch.zeros(2, 32)})
    refused(r"wrong shape: .*\(32, 16\) for \(32, 32\)", matrices | {f"{stem}.lora_A": torch.zeros(2, 16)})
    model = load(checkpoint)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    good = {f"model.language_model.layers.0.mlp.up_proj.lora_{half}": torch.ones(1, 1) for half in "AB"}
    with pytest.raises(ModelError, match="unexpected: nowhere"):
        lora_checkpoint.merge(model.module, lora_checkpoint.Adapter(good, {"nowhere": torch.ones(1)}, ""), (), folder)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    with pytest.raises(ModelError, match="no LoRA to write"):
        lora_checkpoint.write(folder, lora_checkpoint.Adapter({}, {}, ""))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin: pickled weights can run code"):
        base.load(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_audio"}))
    with pytest.raises(ModelError, match="a whole checkpoint and an adapter"):
        base.load("qwen2_audio", folder)
