"""A folder named as a model: a checkpoint, a run, or a released checkpoint; anything else is refused with a remedy."""

import json
from pathlib import Path

import pytest

from builders import tiny_qwen2_audio
from earwise.engine import loading
from earwise.errors import ModelError
from earwise.models import base, checkpoint, detect, lora_checkpoint, registry


def write(path: Path, **values: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def test_a_run_stands_for_its_final(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    tiny_qwen2_audio(1).save(run / "final")
    assert detect.find_checkpoint(run) == detect.find_checkpoint(run / "final") == ("qwen2_audio", run / "final")
    model, final = base.load(str(run), device="cpu"), base.load(str(run / "final"), device="cpu")
    assert model.revision == final.revision
    engine = loading.open_engine(str(run))
    assert engine.name == f"{model.name} (runs/first)" and engine.revision == model.revision


def test_a_released_checkpoint_is_recognised_by_its_model_type(tmp_path: Path) -> None:
    tiny_qwen2_audio(1).save(tmp_path)
    (tmp_path / "earwise.json").unlink()
    assert detect.find_checkpoint(tmp_path) == ("qwen2_audio", tmp_path)
    assert base.load(str(tmp_path), device="cpu").name == "qwen2_audio"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no model"),
        ({"recipe.json": {}}, "not finished; continue it: earwise train --resume"),
        ({"config.json": {"model_type": "bert"}}, "model_type 'bert', none of qwen2_audio"),
        ({"config.json": {}}, "does not say the model_type"),
        ({"earwise.json": {}}, "does not say the family"),
        ({"final/earwise.json": {}}, "final/earwise.json: does not say the family"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, files: dict[str, dict[str, str]], message: str) -> None:
    for name, values in files.items():
        write(tmp_path / name, **values)
    with pytest.raises(ModelError, match=message):
        base.load(str(tmp_path))


@pytest.mark.parametrize("chain", [{"a": "."}, {"a": "../b", "b": "../a"}, {"a": "../b", "b": "../b"}])
def test_an_adapter_that_is_its_own_base_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: dict[str, str]
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for name, base_name in chain.items():
        write(tmp_path / name / "adapter_config.json", base_model_name_or_path=base_name)
    with pytest.raises(ModelError, match="leads back to"):
        detect.find_checkpoint(tmp_path / "a")
    with pytest.raises(ModelError, match="leads back to"):
        lora_checkpoint.find_base(lora_checkpoint.PeftAdapter({}, {}, chain["a"]), tmp_path / "a", "qwen2_audio")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "", ".."])
def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path, name: str) -> None:
    tiny_qwen2_audio(1).save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "m" / "other.safetensors").write_bytes(b"")
    index = {"weight_map": {"a.weight": name}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names the file .* which is not in its folder"):
        checkpoint.read_tensors(tmp_path / "m", "a model")


def test_a_missing_folder_and_an_unknown_name() -> None:
    with pytest.raises(ModelError, match="runs/none: no such folder"):
        base.load("runs/none")
    with pytest.raises(ModelError, match=r"model 'embeded' is none of embedded, .*; did you mean 'embedded'\?"):
        base.load("embeded")


def test_every_model_type_stands_for_a_family() -> None:
    assert set(registry.model_types().values()) <= set(registry.names())


def test_base_weights_are_used_by_the_embedded_family(tmp_path: Path) -> None:
    write(tmp_path / "a" / "final" / "earwise.json", family="embedded")
    write(tmp_path / "b" / "earwise.json", family="qwen2_audio")
    names = ("embedded-blank", "qwen2_audio", *map(str, sorted(tmp_path.iterdir())))
    assert [loading.uses_base_weights(name) for name in names] == [True, False, True, False]
