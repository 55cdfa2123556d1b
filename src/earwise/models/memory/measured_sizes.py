"""Sizes of a model that is not declared in `models/registry.py`: counted from its config on the meta device, without
reading weights.

The declared sizes are checked against these counts. A folder is enough if it contains config.json; a user's own model
(`module:function`) has to be loaded and is counted as it is.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from earwise.config.resolve import resolve_entry
from earwise.errors import ModelError
from earwise.models import registry
from earwise.models.base import AudioLM, EmptyModel
from earwise.models.checkpoint import one_line
from earwise.models.decoders.llama import LlamaDecoder
from earwise.models.detect import find_checkpoint
from earwise.models.embedded.connector import ConnectorSpec, build_connector
from earwise.models.embedded.model import read_connector_spec
from earwise.models.family import ModelFamily
from earwise.models.memory.sizes import (
    ATTENTION_PROJECTIONS,
    FUSED_PROJECTIONS,
    SEPARATE_PROJECTIONS,
    DecoderShape,
    EncoderShape,
    ModelSizes,
)

_UNKNOWN_ENCODER = EncoderShape(32, 1280, 5120, 50.0)
"""Shape assumed for the encoder of an unknown family: Whisper large."""


def parameter_counts(module: nn.Module, parameter_prefixes: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Number of parameters of each part; one with two names (a tied head) counts once, LoRA matrices do not count."""
    return {
        part: sum(
            parameter.numel()
            for name, parameter in module.named_parameters()
            if name.startswith(prefixes) and ".lora_" not in name
        )
        for part, prefixes in parameter_prefixes.items()
    }


def measure(model: EmptyModel, family: str, weights: str, dtype: str) -> ModelSizes:
    """Sizes of a model of transformers' parts, which may be on the meta device.

    Args:
        model: The model.
        family: Its family; for a published one, the encoder's shape and the padding window are the declared ones.
        weights: Name of the checkpoint in messages and tables.
        dtype: Dtype of the weights.
    Raises:
        ModelError: if its decoder is not one of transformers' text models, whose config describes their shape.
    """
    text_config = next(_text_configs(model.module, model.parameter_prefixes["decoder"]), None)
    if text_config is None:
        raise ModelError(f"{weights}: its decoder is no text model of transformers; its memory cannot be told")
    counts = parameter_counts(model.module, model.parameter_prefixes)
    published = next(iter(registry.sizes(family)), None)
    return ModelSizes(
        weights, counts["encoder"], counts["connector"], counts["decoder"],
        published.encoder_shape if published else _UNKNOWN_ENCODER, decoder_shape(text_config), model.spec.sample_rate,
        model.spec.max_s, model.spec.tokens_per_s, published.window_s if published else None, dtype,
    )  # fmt: skip


def decoder_shape(config: Any) -> DecoderShape:
    """Shape of a text model from its config."""
    values = config.to_dict()
    heads, width = values["num_attention_heads"], values["hidden_size"]
    ffn = values["intermediate_size"]
    ffn = max(ffn) if isinstance(ffn, list | tuple) else ffn
    if values.get("use_double_wide_mlp"):  # in the layers that share keys and values (Gemma 4)
        ffn *= 2
    experts = values.get("num_experts_per_tok") or 0
    target_modules: tuple[str, ...] = SEPARATE_PROJECTIONS
    if experts:
        target_modules = ATTENTION_PROJECTIONS
    elif values["model_type"].startswith("phi"):
        target_modules = FUSED_PROJECTIONS
    return DecoderShape(
        layers=values["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or width // heads,
        ffn=experts * values["moe_intermediate_size"] if experts else ffn,
        vocabulary=values["vocab_size"],
        lora_target_modules=target_modules,
        experts=bool(experts),
    )


def measure_loaded(model: AudioLM) -> ModelSizes:
    """Sizes of a loaded model."""
    dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
    empty = EmptyModel(model.module, model.parameter_prefixes, model.spec)
    return measure(empty, model.name, model.name, dtype)


def with_connector(sizes: ModelSizes, connector: ConnectorSpec) -> ModelSizes:
    """Sizes of the embedded model with another connector, counted on the meta device."""
    encoder, decoder = sizes.encoder_shape, sizes.decoder_shape
    with torch.device("meta"):
        module = build_connector(connector, encoder.layers + 1, encoder.width, decoder.width)
    count = sum(parameter.numel() for parameter in module.parameters())
    return replace(sizes, connector=count, audio_tokens_per_s=1000 / connector.token_ms)


def measure_folder(path: Path) -> tuple[str, ModelSizes]:
    """The family of a checkpoint (or a finished run), and its sizes by its config.json. A folder without config.json (a
    PEFT adapter, the embedded model's trained part) has the sizes of the family's default.

    Raises:
        ModelError: if the folder contains no model, or its config is not complete.
    """
    name, folder = find_checkpoint(path)
    config, published = folder / "config.json", registry.default_sizes(name)
    family = registry.base_family(name)
    if published is not None and (not config.exists() or family is None or not family.build_empty):
        if name.startswith("embedded"):
            published = with_connector(published, read_connector_spec(folder))
        return name, replace(published, weights=str(path))
    try:
        return name, _measure_config(family, json.loads(config.read_text(encoding="utf-8")), str(path))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            f"{config}: not a whole config ({one_line(error)[:200]}); copy it from the model's release"
        ) from error


def _measure_config(family: ModelFamily | None, content: dict[str, Any], weights: str) -> ModelSizes:
    """Sizes of a checkpoint from the content of its config.json."""
    if family is None or not family.build_empty:
        raise ModelError(f"{weights}: its family has no sizes that config.json tells; load it with `earwise doctor`")
    build_empty = resolve_entry({family.name: family.build_empty}, family.name, "model")
    dtype = str(content.get("dtype") or content.get("torch_dtype") or "float32")
    return measure(build_empty(content), family.name, weights, dtype)


def _text_configs(module: nn.Module, prefixes: tuple[str, ...]) -> Iterator[Any]:
    """Configs of the text models that contain the decoder, in the order of the module tree."""
    for name, part in module.named_modules():
        inside = (name + ".").startswith(prefixes)
        if isinstance(part, PreTrainedModel) and inside:
            yield part.config.get_text_config()
        elif isinstance(part, LlamaDecoder):
            yield LlamaConfig(**part.config.transformers_fields())
    if isinstance(module, PreTrainedModel):  # a decoder that is the model itself, like Phi's
        yield module.config.get_text_config()
