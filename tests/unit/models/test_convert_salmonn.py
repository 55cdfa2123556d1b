"""SALMONN's converter on tiny released parts: in both directions, and what it refuses. Names and numbers of the
official model are compared in `tests/golden/test_salmonn.py`.
"""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.errors import ModelError
from earwise.models import base
from earwise.models.convert import salmonn
from earwise.models.convert.salmonn import SHARED_TABLE, convert, released_names
from earwise.models.families.salmonn import Salmonn, SalmonnConfig, SalmonnModule, load
from earwise.models.parts import lora
from earwise.training.trainable import set_trainable
from families.salmonn import TINY, letter_tokenizer, write_released

CONFIG: SalmonnConfig = replace(TINY, qformer={})  # the released Q-Former has one size


def official(config: SalmonnConfig) -> dict[str, Tensor]:
    """A random official state dict of these sizes."""
    torch.manual_seed(0)
    module = SalmonnModule(config)
    weights = {}
    for ours, released in released_names(module).items():
        if ".lora_" in ours:
            stem, _, matrix = ours.rpartition(".")
            outputs, inputs = module.get_submodule(stem).weight.shape
            weights[released] = torch.randn((8, inputs) if matrix == "lora_A" else (outputs, 8)) * 0.05
    for name, value in module.state_dict().items():
        if name in released_names(module):
            weights[released_names(module)[name]] = value
        elif name == "beats.place.weight":
            weights["beats.encoder.pos_conv.0.weight_g"] = value.norm(dim=(0, 1), keepdim=True)
            weights["beats.encoder.pos_conv.0.weight_v"] = 3 * value
        elif name.startswith("beats."):
            weights["beats." + salmonn.released_beats_name(name.removeprefix("beats."))] = value
        else:
            weights[name.replace("llama.", "llama_model.base_model.model.")] = value
    table = weights[f"beats.encoder.layers.0.{SHARED_TABLE}"]
    following_from_sizes = {
        f"beats.encoder.layers.1.{SHARED_TABLE}": table,
        "beats.predictor.weight": torch.zeros(527, config.beats.dim),
        "speech_Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    return weights | following_from_sizes


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """Released parts, and the folder that the command line makes of them."""
    folder = tmp_path_factory.mktemp("released")
    parts = write_released(
        folder, CONFIG, official(CONFIG), whisper_config=CONFIG.whisper, tokenizer=letter_tokenizer()
    )
    convert_on_the_command_line(parts, folder / "out")
    return parts, folder / "out"


@pytest.fixture
def parts(converted: tuple[dict[str, Path], Path], tmp_path: Path) -> dict[str, Path]:
    """A copy of the parts that a test may spoil."""
    copied = {}
    for name, path in converted[0].items():
        copied[name] = tmp_path / path.name
        if path.is_dir():
            shutil.copytree(path, copied[name])
        else:
            copied[name].symlink_to(path)
    return copied


def convert_on_the_command_line(parts: dict[str, Path], out: Path) -> None:
    """`python -m earwise.models.convert.salmonn convert ...`."""
    options = [argument for name in ("whisper", "beats", "vicuna") for argument in (f"--{name}", str(parts[name]))]
    run("convert", str(parts["pth"]), *options, "--out", str(out))


def run(*arguments: str) -> None:
    previous, sys.argv = sys.argv, ["convert.salmonn", *arguments]
    try:
        salmonn.main()
    finally:
        sys.argv = previous


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change what torch saved in a file; if the file is a link, its target stays unchanged."""
    content = torch.load(path, weights_only=True)
    change(content)
    path.unlink()
    torch.save(content, path)


def test_conversion_in_both_directions(converted: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    parts, out = converted
    model = base.load(str(out), device="cpu")
    assert isinstance(model, Salmonn) and model.name == "salmonn"
    trained = torch.load(parts["pth"], weights_only=True)["model"]
    vicuna = torch.load(next(parts["vicuna"].glob("*.bin")), weights_only=True)
    layer = "model.layers.1.self_attn.v_proj"
    up, down = (trained[f"llama_model.base_model.model.{layer}.lora_{half}.default.weight"] for half in "BA")
    weights = model.module.llama.state_dict()
    assert torch.equal(weights[f"{layer}.weight"], vicuna[f"{layer}.weight"] + 4 * up @ down)  # 32 / 8
    assert torch.equal(weights["lm_head.weight"], vicuna["lm_head.weight"])
    run("release", str(out), str(tmp_path / "again.pth"))
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    for name, value in again["model"].items():
        assert torch.equal(value, trained[name]), name
    follows = {name for name in trained if name.endswith(("inv_freq", "position_ids", SHARED_TABLE))}
    assert trained.keys() - again["model"].keys() == follows
    assert again["config"]["model"]["lora_rank"] == 8 and again["config"]["model"]["lora_alpha"] == 32


def test_lora_of_further_training_adds_its_ranks(converted: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    parts, out = converted
    model = load(out)
    lora_config = LoraConfig(r=2, lora_alpha=4.0, target_modules=("q_proj", "v_proj"))
    set_trainable(model, TrainableConfig(connector="full", decoder="lora", lora=lora_config))
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
        model.module.proj.bias.add_(1.0)
    model.save(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert {len(value) for name, value in saved.merged_lora.items() if name.endswith("lora_A")} == {10}
    assert not lora.collect(saved.module)
    run("release", str(tmp_path / "saved"), str(tmp_path / "more.pth"))
    convert(**(parts | {"pth": tmp_path / "more.pth"}), out=tmp_path / "converted")
    ours, again = saved.module.state_dict(), load(tmp_path / "converted").module.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)
    assert torch.equal(again["proj.bias"], ours["proj.bias"])
    changed = "llama.model.layers.0.self_attn.q_proj.weight"
    assert float((ours[changed] - load(out).module.state_dict()[changed]).abs().max()) > 1e-3


def test_lora_on_other_layers_has_no_released_form(converted: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    model = load(converted[1])
    lora_config = LoraConfig(r=2, lora_alpha=4.0, target_modules=("o_proj",))
    set_trainable(model, TrainableConfig(decoder="lora", lora=lora_config))
    with pytest.raises(ModelError, match=r"q_proj and v_proj.*o_proj"):
        salmonn.release(model, tmp_path / "no.pth")
    assert not list(tmp_path.iterdir())


class Code:
    """Calls a function when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def spoil_code(parts: dict[str, Path]) -> None:
    parts["pth"].unlink()
    torch.save({"model": {}, "config": Code()}, parts["pth"])


def spoil_text(parts: dict[str, Path]) -> None:
    parts["beats"].unlink()
    parts["beats"].write_text("404: not found")


def spoil_torn(parts: dict[str, Path]) -> None:
    content = parts["pth"].read_bytes()
    parts["pth"].unlink()
    parts["pth"].write_bytes(content[: len(content) // 2])


def spoil_base(name: str, change: Callable[[dict[str, Tensor]], None]) -> Callable[[dict[str, Path]], None]:
    def spoil(parts: dict[str, Path]) -> None:
        (path,) = (path for path in parts[name].iterdir() if path.suffix in (".bin", ".safetensors"))
        if path.suffix == ".bin":
            edit(path, change)
            return
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return spoil


def in_pth(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Path]], None]:
    return lambda parts: edit(parts["pth"], change)


def in_beats(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Path]], None]:
    return lambda parts: edit(parts["beats"], change)


def remove_a_layer_of_vicuna(parts: dict[str, Path]) -> None:
    """Vicuna with one layer less than the checkpoint was trained with."""
    path = parts["vicuna"] / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    spoil_base("vicuna", lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name])(parts)


FAULTS: dict[str, tuple[Callable[[dict[str, Path]], Any], str]] = {
    "no file": (lambda parts: parts["pth"].unlink(), r"salmonn\.pth: no such file"),
    "pickled code": (spoil_code, r"salmonn\.pth: pickled code.*print"),
    "no checkpoint": (spoil_text, r"beats\.pt: pickled code, or no checkpoint at all"),
    "torn": (spoil_torn, r"salmonn\.pth: cannot be read"),
    "partial": (
        in_pth(lambda content: content["model"].pop("speech_Qformer.bert.encoder.layer.1.output_query.dense.bias")),
        r"missing: speech_Qformer\.bert\.encoder\.layer\.1\.output_query\.dense\.bias",
    ),
    "too much": (
        in_pth(lambda content: content["model"].update({"speech_Qformer.cls.bias": torch.zeros(3)})),
        r"unexpected: speech_Qformer\.cls\.bias",
    ),
    "shape": (
        in_pth(lambda content: content["model"].update({"ln_audio.bias": torch.zeros(3)})),
        r"wrong shape: ln_audio\.bias \(3,\) for \(24,\)",
    ),
    "only weights": (in_pth(lambda content: content.pop("model")), "no `model` in it"),
    "overlap": (
        in_pth(lambda content: content["config"]["model"].update(second_stride=0.1)),
        r"windows of 0\.333333 s every 0\.1 s",
    ),
    "no Q-Former": (
        in_pth(lambda content: content["config"]["model"].update(window_level_Qformer=False)),
        "window_level_Qformer: false",
    ),
    "another BEATs": (
        in_beats(lambda content: content["model"][f"encoder.layers.0.{SHARED_TABLE}"].mul_(1.1)),
        r"beats\.pt: not the BEATs that salmonn\.pth was trained with",
    ),
    "BEATs of another kind": (
        in_beats(lambda content: content["cfg"].update(layer_norm_first=True)),
        "layer_norm_first=True, but SALMONN's has False",
    ),
    "partial BEATs": (
        in_beats(lambda content: content["model"].pop("encoder.layers.1.fc1.bias")),
        r"beats\.pt: tensors missing: encoder\.layers\.1\.fc1\.bias",
    ),
    "partial Whisper": (
        spoil_base("whisper", lambda tensors: tensors.pop("model.encoder.layers.1.fc1.bias")),
        r"whisper: tensors missing: speech_encoder\.layers\.1\.fc1\.bias",
    ),
    "wide Vicuna": (
        spoil_base("vicuna", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(208, 40)})),
        r"vicuna: tensors of the wrong shape: llama\.lm_head\.weight \(208, 40\) for \(208, 32\)",
    ),
    "shallow Vicuna": (
        remove_a_layer_of_vicuna,
        r"unexpected: llama_model\.base_model\.model\.model\.layers\.1\.self_attn",
    ),
    "no weights": (
        lambda parts: [path.unlink() for path in parts["vicuna"].glob("*.bin")],
        r"vicuna: no \*\.safetensors or pytorch_model\*\.bin here",
    ),
    "another model": (
        lambda parts: (parts["vicuna"] / "config.json").write_text('{"model_type": "qwen2"}'),
        "model_type is 'qwen2'",
    ),
    "no tokenizer": (lambda parts: (parts["vicuna"] / "tokenizer.json").unlink(), "no tokenizer"),
    "tokenizer of SentencePiece": (
        lambda parts: (parts["vicuna"] / "tokenizer.json").rename(parts["vicuna"] / "tokenizer.model"),
        r"tokenizer\.model cannot be read here; pip install sentencepiece",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refuses(parts: dict[str, Path], tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = FAULTS[fault]
    spoil(parts)
    with pytest.raises(SystemExit) as exit_status:
        convert_on_the_command_line(parts, tmp_path / "out")
    assert exit_status.value.code == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err
    assert captured.err.startswith("Error: ") and captured.err.count("\n") == 1 and "code ran" not in captured.out
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_does_not_overwrite_anything(converted: tuple[dict[str, Path], Path]) -> None:
    parts, out = converted
    before = sorted(path.stat().st_mtime_ns for path in out.iterdir())
    with pytest.raises(ModelError, match="holds something already"):
        convert(**parts, out=out)
    assert sorted(path.stat().st_mtime_ns for path in out.iterdir()) == before


def test_without_weights_the_message_names_the_converter() -> None:
    with pytest.raises(ModelError, match=r"convert\.salmonn"):
        base.load("salmonn", device="cpu")


def test_sizes_missing_in_config_json(converted: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    shutil.copytree(converted[1], tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text('{"model_type": "salmonn", "whisper": {}}')
    with pytest.raises(ModelError, match=r"config\.json: not a converted SALMONN model's"):
        load(tmp_path / "copy")
