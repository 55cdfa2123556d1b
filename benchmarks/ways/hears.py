"""earwise's models as transformers knows models: `input_ids` with `input_features` in, logits out, `generate` with a
cache. What TRL and a plain loop are given.

The parameters are the very tensors of the model that earwise trains (a copy of the modules around them, with an
attention of transformers' own), so gradients can be compared and nothing drifts apart. Qwen2-Audio is transformers' own
class. The embedded model gets the thin wrapper below.

A feature extractor pads to the window (30 s), as transformers' processors do. Qwen2-Audio masks the padding, so it
hears the same as a trimmed clip. Whisper does not: with padding the embedded model hears something else (and works as
much as any model that is padded). `padded=False` gives the wrapper the very frames that earwise hears; gradients are
compared there, and `padded` runs are for the clock only.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel, WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from earwise.models.base import AudioLM
from earwise.models.embedded.model import POOL, Embedded, EmbeddedModule
from earwise.models.parts.projector import pool_states
from earwise.models.parts.whisper import layer_states, log_mel
from earwise.types import Waveform

FEATURES = ("input_features", "feature_attention_mask")


@dataclass(frozen=True, slots=True)
class Hearing:
    """A model for transformers' own loops, and the features it takes.

    Attributes:
        module: `forward(input_ids, attention_mask, input_features, feature_attention_mask)` and `generate`.
        extractor: Log-mel over the model's window.
        padded: Features are padded to the window.
    """

    module: Any
    extractor: WhisperFeatureExtractor
    padded: bool

    def features(self, wave: Waveform) -> dict[str, Tensor]:
        """`input_features (1, mels, frames)` and `feature_attention_mask (1, frames)` of one clip."""
        if not self.padded:
            mel = log_mel(wave, self.extractor)[None]
            return dict(zip(FEATURES, (mel, torch.ones(1, mel.shape[2], dtype=torch.long)), strict=True))
        heard = self.extractor(
            wave, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        return {"input_features": heard.input_features, "feature_attention_mask": heard.attention_mask}


def hearing(model: AudioLM, *, padded: bool) -> Hearing:
    """The model behind transformers' interface, parameters shared.

    Args:
        model: The embedded model or Qwen2-Audio, LoRA already in place.
        padded: Pad features to the window; Qwen2-Audio's class takes nothing else.
    """
    module = shared_copy(model.module)
    if isinstance(model, Embedded):
        module.decoder.config._attn_implementation = "sdpa"
        extractor = WhisperFeatureExtractor(feature_size=module.encoder.num_mel_bins)
        return Hearing(EmbeddedForGeneration(module, model.placeholder_id).eval(), extractor, padded)
    module.model.language_model.config._attn_implementation = "sdpa"
    config = module.config.audio_config
    extractor = WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=config.max_source_positions // 50
    )
    return Hearing(module, extractor, True)


def shared_copy(module: nn.Module) -> Any:
    """A copy of the modules (and their configurations) around the same parameters."""
    return copy.deepcopy(module, {id(value): value for value in module.parameters()})


class EmbeddedBody(nn.Module):
    """Encoder, connector and decoder without a head."""

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
        """The decoder on text embeddings with what was heard in the placeholders' place."""
        embeddings = self.decoder.embed_tokens(input_ids)
        if input_features is not None and feature_attention_mask is not None:
            states = ((feature_attention_mask.sum(1) - 1) // 2 + 1).tolist()
            layers = layer_states(self.encoder, list(input_features))
            heard = [pool_states(clip[:, :count], POOL) for clip, count in zip(layers, states, strict=True)]
            places = (input_ids == self.placeholder_id)[..., None]
            embeddings = embeddings.masked_scatter(places, torch.cat(self.connector(heard)))
        return self.decoder(inputs_embeds=embeddings, **kwargs)


class EmbeddedForGeneration(PreTrainedModel, GenerationMixin):
    """The embedded model as a causal language model of transformers; the base classes are what its loops ask for."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    accepts_loss_kwargs = False  # `forward` takes more keywords, but none of them is the Trainer's for a loss

    def __init__(self, module: EmbeddedModule, placeholder_id: int) -> None:
        super().__init__(module.decoder.config)
        self.post_init()  # before there are weights: it would draw them anew
        self.model = EmbeddedBody(module, placeholder_id)
        weight = module.decoder.embed_tokens.weight
        self.lm_head = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
        self.lm_head.weight = weight

    def get_input_embeddings(self) -> nn.Module:
        """The table that `input_ids` are looked up in."""
        return self.model.decoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None, position_ids: Tensor | None = None, logits_to_keep: int = 0,
        return_dict: bool = True, **decoder_inputs: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """Scores over the vocabulary, for the last `logits_to_keep` positions (0: all).

        What else transformers' loops pass goes to the decoder, and what else the decoder returns goes back to them: the
        key/value cache is called `past_key_values` in transformers up to 5.23 and `cache` from 5.24 on.
        """
        out = self.model(
            input_ids, input_features, feature_attention_mask, attention_mask=attention_mask,
            position_ids=position_ids, **decoder_inputs,
        )  # fmt: skip
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        others = {name: value for name, value in out.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(logits=logits, **others)
