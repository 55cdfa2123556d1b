"""earwise's models behind transformers' interface: `input_ids` and `input_features` in, logits out, and `generate`.

TRL and a plain loop are given these models. Their parameters are the very tensors of the model that earwise trains (the
modules around them are copies, with one of transformers' own attention implementations), so gradients can be compared.
Qwen2-Audio is transformers' own class; the embedded model gets the thin wrapper below.

A feature extractor pads to the window (30 s), as transformers' processors do. Qwen2-Audio masks the padding, so its
states are those of a trimmed clip. Whisper does not: with padding, the embedded model computes something else (at the
cost of any model that pads). With `padded=False` the wrapper gets the same frames as earwise; gradients are compared
there, and padded runs are only timed.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel, WhisperConfig, WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earwise.models.base import AudioLM
from earwise.models.decoders.transformers_decoder import as_transformers
from earwise.models.embedded.model import POOL, Embedded, EmbeddedModule
from earwise.models.parts.lora_product import FusedLoraForward
from earwise.models.parts.projector import pool_states
from earwise.models.parts.whisper import layer_states, log_mel
from earwise.types import Waveform

FEATURES = ("input_features", "feature_attention_mask")


@dataclass(frozen=True, slots=True)
class HFModel:
    """A model for transformers' own loops, and its feature extractor.

    Attributes:
        module: `forward(input_ids, attention_mask, input_features, feature_attention_mask)` and `generate`.
        extractor: Log-mel features over the model's window.
        padded: True pads features to the window.
    """

    module: Any
    extractor: WhisperFeatureExtractor
    padded: bool

    @torch.autocast("cpu", enabled=False)  # features are made before a model, in float32
    def features(self, waveform: Waveform) -> dict[str, Tensor]:
        """`input_features` `(1, mels, frames)` and `feature_attention_mask` `(1, frames)` of one clip."""
        if not self.padded:
            mel = log_mel(waveform, self.extractor.feature_size)[None]
            return dict(zip(FEATURES, (mel, torch.ones(1, mel.shape[2], dtype=torch.long)), strict=True))
        features = self.extractor(
            waveform, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        return {"input_features": features.input_features, "feature_attention_mask": features.attention_mask}


def as_hf_model(model: AudioLM, *, padded: bool) -> HFModel:
    """A model behind transformers' interface, with shared parameters.

    Args:
        model: The embedded model or Qwen2-Audio, with LoRA already added.
        padded: True pads features to the window. Qwen2-Audio's class always needs that.
    """
    module = shared_copy(model.module)
    if isinstance(model, Embedded):
        module.encoder = as_transformers_encoder(module.encoder)
        module.decoder = as_transformers(module.decoder, "sdpa")
        extractor = WhisperFeatureExtractor(feature_size=module.encoder.num_mel_bins)
        return HFModel(EmbeddedForGeneration(module, model.placeholder_id).eval(), extractor, padded)
    module.model.language_model.config._attn_implementation = "sdpa"
    config = module.config.audio_config
    extractor = WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=config.max_source_positions // 50
    )
    return HFModel(module, extractor, True)


def as_transformers_encoder(encoder: Any) -> WhisperEncoder:
    """transformers' Whisper encoder with the layers of ours, so that parameters are shared."""
    dropout = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "encoder_layerdrop": 0.0}
    with torch.device("meta"):
        out = WhisperEncoder(WhisperConfig(**encoder.config, **dropout))
    for name in ("conv1", "conv2", "embed_positions", "layer_norm"):
        setattr(out, name, getattr(encoder, name))
    for layer, ours in zip(out.layers, encoder.layers, strict=True):
        for name in ("self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"):
            setattr(layer, name, getattr(ours, name))
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(layer.self_attn, name, getattr(ours.self_attn, name))
    return out.train(encoder.training)


def shared_copy(module: nn.Module) -> Any:
    """A copy of the modules and their configs with the same parameters, and with PEFT's own LoRA forward."""
    copied = copy.deepcopy(module, {id(value): value for value in module.parameters()})
    for layer in copied.modules():
        if isinstance(vars(layer).get("forward"), FusedLoraForward):
            del layer.forward
    return copied


class EmbeddedBody(nn.Module):
    """Encoder, connector and decoder, without the output head."""

    def __init__(self, module: EmbeddedModule, placeholder_id: int) -> None:
        super().__init__()
        self.encoder, self.connector, self.decoder = module.encoder, module.connector, module.decoder
        self.placeholder_id = placeholder_id

    def forward(
        self,
        input_ids: Tensor,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Decoder output for text, with audio embeddings in place of the placeholders."""
        embeddings = self.decoder.embed_tokens(input_ids)
        if input_features is not None and feature_attention_mask is not None:
            counts = ((feature_attention_mask.sum(1) - 1) // 2 + 1).tolist()
            layers = layer_states(self.encoder, list(input_features))
            pooled = [pool_states(clip[:, :count], POOL) for clip, count in zip(layers, counts, strict=True)]
            is_placeholder = (input_ids == self.placeholder_id)[..., None]
            audio = torch.cat(self.connector(pooled)).to(embeddings)
            embeddings = embeddings.masked_scatter(is_placeholder, audio)
        return self.decoder(inputs_embeds=embeddings, **kwargs)


class EmbeddedForGeneration(PreTrainedModel, GenerationMixin):
    """The embedded model as a causal language model of transformers, with the base classes that its loops require."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    accepts_loss_kwargs = False  # `forward` accepts further keywords, but none for the Trainer's loss

    def __init__(self, module: EmbeddedModule, placeholder_id: int) -> None:
        super().__init__(module.decoder.config)
        self.post_init()  # before the weights are set, since it initialises them
        self.model = EmbeddedBody(module, placeholder_id)
        weight = module.decoder.embed_tokens.weight
        self.lm_head = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
        self.lm_head.weight = weight

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of `input_ids`."""
        return self.model.decoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.lm_head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None, position_ids: Tensor | None = None, logits_to_keep: int = 0,
        return_dict: bool = True, **decoder_inputs: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """Logits of the last `logits_to_keep` positions (0: all).

        Further arguments are passed to the decoder and its further outputs are returned, since the KV cache is called
        `past_key_values` in transformers up to 5.23 and `cache` from 5.24 on.
        """
        out = self.model(
            input_ids, input_features, feature_attention_mask, attention_mask=attention_mask,
            position_ids=position_ids, **decoder_inputs,
        )  # fmt: skip
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        other_outputs = {name: value for name, value in out.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(logits=logits, **other_outputs)
