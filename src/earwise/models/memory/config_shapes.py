"""Sizes of a model that is not in the table: counted from its config on the meta device, no weights read.

Also what the table (`models/sizes.py`) is checked against. A folder is enough if it holds config.json; a model of the
user's own (`module:function`) has to be loaded and is counted as it is.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from earwise.audio import AudioSpec
from earwise.errors import ModelError
from earwise.models import detect
from earwise.models.base import MODELS, AudioLM
from earwise.models.embedded.connector import ConnectorSpec, build_connector
from earwise.models.embedded.model import read_connector_spec
from earwise.models.families import native
from earwise.models.memory.published_sizes import Decoder, Encoder, Sizes, default, of_family

Groups = Mapping[str, tuple[str, ...]]


def counts(module: nn.Module, groups: Groups) -> dict[str, int]:
    """Parameters of each group; one that two names share (a tied head) counts once, LoRA matrices do not count."""
    return {
        group: sum(p.numel() for name, p in module.named_parameters() if name.startswith(prefixes) and _own(name))
        for group, prefixes in groups.items()
    }


def of_parts(family: str, weights: str, module: nn.Module, groups: Groups, spec: AudioSpec, dtype: str) -> Sizes:
    """Sizes of a module of transformers' parts, which may lie on the meta device.

    Raises:
        ModelError: if its decoder is not one of transformers' text models, whose config says how it is made.
    """
    text = next((config for config in _text_configs(module, groups["decoder"])), None)
    if text is None:
        raise ModelError(f"{weights}: its decoder is no text model of transformers; its memory cannot be told")
    found = counts(module, groups)
    known = of_family(family)
    hears = known[0].hears if known else Encoder(32, 1280, 5120, 50.0)
    return Sizes(
        family, weights, found["encoder"], found["connector"], found["decoder"], hears, decoder_of(text),
        spec.sample_rate, spec.max_s, spec.tokens_per_s, known[0].window_s if known else None, dtype,
    )  # fmt: skip


def decoder_of(config: Any) -> Decoder:
    """Shape of a text model by its config."""
    values = config.to_dict()
    heads, width = values["num_attention_heads"], values["hidden_size"]
    ffn = values["intermediate_size"]
    ffn = max(ffn) if isinstance(ffn, list | tuple) else ffn
    experts = values.get("num_experts_per_tok") or 0
    return Decoder(
        layers=values["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or width // heads,
        ffn=experts * values["moe_intermediate_size"] if experts else ffn,
        vocab=values["vocab_size"],
        fused=values["model_type"].startswith("phi"),
        experts=bool(experts),
    )


def of_native(family: str, config: Any, weights: str, dtype: str = "bfloat16") -> Sizes:
    """Sizes of a family of `models/native.py` by its config, on the meta device."""
    row: native.Row = importlib.import_module(native.ROWS[family]).ROW
    with torch.device("meta"):
        module = native.class_of(row)(config)
    groups = {"encoder": row.encoder, "connector": row.connector, "decoder": row.decoder}
    return of_parts(family, weights, module, groups, row.spec(config, row.extractor(None, config)), dtype)


def of_model(model: AudioLM) -> Sizes:
    """Sizes of a loaded model."""
    dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
    family = next((name for name in MODELS if name == model.name), model.name)
    return of_parts(family, model.name, model.module, model.groups, model.spec, dtype)


def with_connector(sizes: Sizes, choice: ConnectorSpec) -> Sizes:
    """The embedded model with another connector, counted on the meta device."""
    with torch.device("meta"):
        made = build_connector(choice, sizes.hears.layers + 1, sizes.hears.width, sizes.says.width)
    count = sum(parameter.numel() for parameter in made.parameters())
    return replace(sizes, connector=count, tokens_per_s=1000 / choice.token_ms)


def of_folder(path: Path) -> Sizes:
    """Sizes of a checkpoint (or a finished run) by its config.json; of one without, the family's default.

    Raises:
        ModelError: if the folder holds no model, or its config is not whole.
    """
    family, at = detect.checkpoint(path)
    config, known = at / "config.json", default(family)
    if known is not None and (family == "mellow" or not config.exists()):  # one shape; or an adapter, a trained part
        sized = with_connector(known, read_connector_spec(at)) if family.startswith("embedded") else known
        return replace(sized, weights=str(path))
    try:
        return _by_config(family, json.loads(config.read_text(encoding="utf-8")), str(path))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"{config}: not a whole config ({line}); copy it from the model's release") from error


def _by_config(family: str, read: dict[str, Any], weights: str) -> Sizes:
    dtype = str(read.get("dtype") or read.get("torch_dtype") or "float32")
    if family in native.ROWS:
        row: native.Row = importlib.import_module(native.ROWS[family]).ROW
        part = row.types[read["model_type"]]
        config = native.class_of(row).config_class.from_dict(read[f"{part}_config"] if part else read)
        return of_native(family, config, weights, dtype)
    if family == "qwen2_audio":
        from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

        from earwise.models.families.qwen2_audio import GROUPS
        from earwise.models.parts.mel import SAMPLE_RATE

        with torch.device("meta"):
            module = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig.from_dict(read))
        window_s = module.config.audio_config.max_source_positions / 50
        return of_parts(family, weights, module, GROUPS, AudioSpec(SAMPLE_RATE, window_s, 25.0), dtype)
    if family == "salmonn":
        from earwise.models.families import salmonn

        known = of_family(family)[0]
        spec = AudioSpec(known.sample_rate, known.max_s, known.tokens_per_s)
        module = salmonn.empty(salmonn.SalmonnConfig.read(read))
        return of_parts(family, weights, module, salmonn.GROUPS, spec, dtype)
    raise ModelError(f"{weights}: the sizes of {family} are not told by its config; load it with `earwise doctor`")


def _own(name: str) -> bool:
    return ".lora_" not in name


def _text_configs(module: nn.Module, prefixes: tuple[str, ...]) -> Iterator[Any]:
    """Configs of the text models that hold the decoder, innermost name first found."""
    for name, part in module.named_modules():
        inside = (name + ".").startswith(prefixes)
        if isinstance(part, PreTrainedModel) and inside:
            yield part.config.get_text_config()
    if isinstance(module, PreTrainedModel):  # a decoder that is the model itself, as Phi's
        yield module.config.get_text_config()
