"""Checkpoints that must not be loaded, for every family: incomplete, with unexpected tensors or tensors of another
shape, truncated, pickled, of a text-only model. Each is refused by one line that names what is wrong.

Families differ only in the file and name of a tensor; `connector_tensor` finds one of the connector's.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from earwise.errors import ModelError
from earwise.models import base
from families.forests import base_weights_of
from families.tiny import FAMILIES, Tiny

Tensors = dict[str, Tensor]


@pytest.fixture
def saved(family: Tiny, tmp_path: Path) -> Iterator[Path]:
    """A complete checkpoint of the family; the embedded model's base weights are beside it."""
    folder = tmp_path / "checkpoint"
    family.reload(family.model, folder)
    with base_weights_of(folder):
        yield folder


def weights(folder: Path) -> Path:
    """The largest safetensors file."""
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as error:
        base.load(str(folder), device="cpu")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def change(path: Path, edit: Callable[[Tensors], Tensors]) -> None:
    save_file(edit(load_file(path)), path, {"format": "pt"})


def connector_tensor(folder: Path, family: Tiny) -> tuple[Path, str]:
    """File and name of a tensor of the connector: the name with the longest common end with a parameter's."""

    def common_end(key: str, name: str) -> int:
        pairs = zip(reversed(key.split(".")), reversed(name.split(".")), strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    prefixes = family.model.parameter_prefixes["connector"]
    names = [name for name, _ in family.model.module.named_parameters() if name.startswith(prefixes)]
    stored = [(key, path) for path in folder.glob("*.safetensors") for key in load_file(path)]
    length, key, path = max((common_end(key, name), key, path) for key, path in stored for name in names)
    assert length >= 2, f"no tensor of the connector in {stored}"
    return path, key


def test_a_good_checkpoint_loads(saved: Path, family: Tiny) -> None:
    assert base.load(str(saved), device="cpu").spec == family.model.spec


def test_a_missing_tensor_is_named(saved: Path, family: Tiny) -> None:
    path, key = connector_tensor(saved, family)
    change(path, lambda tensors: {name: value for name, value in tensors.items() if name != key})
    refused(saved, "(?i)missing.*" + key.rsplit(".", 2)[-2].replace(".", r"\."))


def test_an_unexpected_tensor_is_named(saved: Path) -> None:
    change(weights(saved), lambda tensors: tensors | {"surplus.weight": torch.zeros(2)})
    refused(saved, r"(?i)unexpected.*surplus\.weight")


def test_a_tensor_of_another_shape_is_named(saved: Path, family: Tiny) -> None:
    path, key = connector_tensor(saved, family)
    change(path, lambda tensors: tensors | {key: torch.zeros(5, 3, 2)})
    refused(saved, r"(?i)shape.*5, 3, 2|5, 3, 2.*shape")


def test_a_truncated_file_is_refused(saved: Path) -> None:
    path = weights(saved)
    path.write_bytes(path.read_bytes()[:900])
    refused(saved, "not a")


def test_pickled_weights_are_not_read(saved: Path) -> None:
    for path in saved.glob("*.safetensors"):
        path.rename(saved / "pytorch_model.bin")
    refused(saved, r"pytorch_model\.bin: pickled weights can run code|no trained part")


def test_a_tokenizer_that_does_not_know_the_placeholder(saved: Path, family: Tiny) -> None:
    path = next(saved.rglob("tokenizer.json"))
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    (placeholder,) = (token for token, number in vocabulary.items() if number == family.model.placeholder_id)
    path.write_text(path.read_text(encoding="utf-8").replace(placeholder, "<|another|>"), encoding="utf-8")
    refused(saved, re.escape(placeholder))


def test_another_sample_rate_is_refused_or_used(saved: Path, family: Tiny) -> None:
    """Features at another rate than the encoder's are refused, or clips are decoded at that rate."""
    path = saved / "preprocessor_config.json"
    if not path.exists():
        assert family.model.spec.sample_rate in (16000, 32000), "the rate is part of the family"
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"sampling_rate": 8000}), encoding="utf-8")
    try:
        loaded = base.load(str(saved), device="cpu")
    except ModelError as error:
        assert "8000" in str(error)
    else:
        assert loaded.spec.sample_rate == 8000


def test_a_text_only_models_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    save_file({"model.embed_tokens.weight": torch.zeros(4, 8)}, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, "model_type 'qwen2'")
    for name in FAMILIES:
        with pytest.raises(ModelError, match=r"qwen2|no trained part") as error:
            base.load(name, tmp_path, device="cpu")
        assert "\n" not in str(error.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    refused(tmp_path, r"holds no model")
    refused(tmp_path / "nowhere", "no such folder")
