"""Gemma 3n: a Universal Speech Model conformer (one state per 160 ms), 188 audio tokens per clip, and a decoder with
alternating updates (AltUp), per-layer embeddings, shared keys and values and sliding windows.

1. Every clip takes 188 tokens: those of its own audio (one per 160 ms), then the embedding of the family's padding
   token, as in transformers' class.
2. Per-layer embeddings need token ids, which `decode` is not given: a row of `embed` is the embedding with the
   per-layer embeddings appended, and `decode` separates them. Audio takes the per-layer embeddings of id 0, as in the
   class.
3. Layers that share keys and values pass the shared ones to `attend` under their own number: a cache stores them twice.
4. Clips are encoded one at a time: in a batch the end of a clip depends on the length of the other clips.
5. The class is transformers' own without its image tower, which needs another package (timm); a checkpoint's image
   weights are written back by `save`.

Source: transformers 5 `models/gemma3n`; USM (arXiv:2303.01037).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3nAudioFeatureExtractor, Gemma3nConfig
from transformers.models.gemma3n.modeling_gemma3n import (
    Gemma3nAudioEncoder,
    Gemma3nMultimodalEmbedder,
    Gemma3nPreTrainedModel,
    Gemma3nTextModel,
)

from earwise.audio import AudioSpec
from earwise.models import registry
from earwise.models.decoders.transformers_decoder import run_decoder
from earwise.models.families import transformers_audio
from earwise.models.families.transformers_audio import Architecture, embed_text, head_logits
from earwise.models.parts.attention import AttentionFn
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

TEMPLATE = ChatTemplate(
    "gemma3n", "<start_of_turn>{role}\n", "<end_of_turn>", "\n\n<start_of_audio>", "<end_of_audio>\n\n",
    conversation_start="<bos>", role_markers={"assistant": ("<start_of_turn>model\n", "<end_of_turn>")},
    system_in_user=True,
)  # fmt: skip
WINDOW_S = 30.0
"""Longest clip, seconds."""
ROUNDED_SAMPLES = 128
"""The extractor pads clips to a multiple of this."""
IMAGE_PREFIXES = ("model.vision_tower.", "model.embed_vision.")


class Gemma3nForConditionalGeneration(Gemma3nPreTrainedModel):  # type: ignore[misc]
    """The parts of transformers' class of this name that audio passes through, under the same parameter names. Config
    files name the class, so it has the same name."""

    config: Gemma3nConfig
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__(config)
        text = Gemma3nTextModel(config.text_config)
        self.model = nn.Module()
        self.model.language_model = text
        self.model.audio_tower = Gemma3nAudioEncoder(config.audio_config)
        self.model.embed_audio = Gemma3nMultimodalEmbedder(config.audio_config, config.text_config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Published files contain keys and values of layers that share others'; the text model lists them.
        shared: list[str] = text._keys_to_ignore_on_load_unexpected or []
        self._keys_to_ignore_on_load_unexpected = [*(rf"^{prefix}" for prefix in IMAGE_PREFIXES), *shared]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text model's input embeddings."""
        return self.model.get_submodule("language_model.embed_tokens")


def feature_extractor(folder: Path | None, config: Any) -> Gemma3nAudioFeatureExtractor:
    """The checkpoint's feature extractor; one with the encoder's number of mel bins if the folder has none."""
    if folder is not None and (folder / "preprocessor_config.json").exists():
        return Gemma3nAudioFeatureExtractor.from_pretrained(str(folder))
    return Gemma3nAudioFeatureExtractor(feature_size=config.audio_config.input_feat_size)


def audio_spec(config: Any, extractor: Gemma3nAudioFeatureExtractor) -> AudioSpec:
    """6.25 tokens a second as released; clips of 30 s, or less if the audio tokens stand for less."""
    audio = config.audio_config
    stride = audio.sscp_conv_stride_size[0][0] * audio.sscp_conv_stride_size[1][0] * audio.conf_reduction_factor
    tokens_per_s = extractor.sampling_rate / (extractor.hop_length * stride)
    max_s = min(WINDOW_S, config.audio_soft_tokens_per_image / tokens_per_s)
    return AudioSpec(extractor.sampling_rate, max_s, tokens_per_s)


def audio_tokens(config: Any, extractor: Gemma3nAudioFeatureExtractor, samples: int) -> int:
    """The same number for every clip, 188 as released; 0 if the clip is too short for one frame."""
    padded = -(-samples // ROUNDED_SAMPLES) * ROUNDED_SAMPLES
    return config.audio_soft_tokens_per_image if padded > extractor.frame_length else 0


def encode_audio(module: Any, extractor: Gemma3nAudioFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of the frames that contain audio; fewer than there are audio tokens."""
    tower = module.model.audio_tower
    weight = tower.subsample_conv_projection.input_proj_linear.weight
    encoder_states = []
    for waveform in waveforms:
        out = extractor(waveform, truncation=False, pad_to_multiple_of=ROUNDED_SAMPLES, return_tensors="pt")
        is_padding = ~out.input_features_mask.to(weight.device)
        states = tower(out.input_features.to(weight), is_padding)
        encoder_states.append(states.last_hidden_state[0][~states.audio_mel_mask[0]])
    return encoder_states


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """`(188, dim + layers * per-layer dim)` per clip: see points 1 and 2 of the module."""
    config, embedder = module.config, module.model.embed_audio
    weight = embedder.embedding_projection.weight
    last_id = torch.tensor([config.text_config.vocab_size - 1], device=weight.device)
    padding = embedder(input_ids=last_id)
    per_layer = module.model.language_model.embed_tokens_per_layer(torch.zeros_like(last_id))
    rows = []
    for clip in encoder_states:
        soft = embedder(inputs_embeds=clip.to(weight))
        padded = torch.cat([soft, padding.expand(config.audio_soft_tokens_per_image - len(soft), -1)])
        rows.append(torch.cat([padded, per_layer.expand(len(padded), -1)], 1))
    return rows


def embed(module: Any, ids: Tensor) -> Tensor:
    """Embeddings with the per-layer embeddings appended; special tokens above the text vocabulary have tables of their
    own."""
    text, embedder = module.model.language_model, module.model.embed_audio
    embeddings = embed_text(module, ids)
    ids = ids.to(embeddings.device)
    is_special = ids >= embedder.vocab_offset
    special = embedder(input_ids=torch.where(is_special, ids, embedder.vocab_offset))
    embeddings = torch.where(is_special[:, None], special.to(embeddings.dtype), embeddings)
    return torch.cat([embeddings, text.get_per_layer_inputs(ids).flatten(1)], 1)


def decode(decoder: Any, rows: Tensor, positions: Tensor, attend: AttentionFn) -> Tensor:
    """Decoder states `(seq, dim)` from the rows of `embed` and `project_audio`."""
    config = decoder.config
    embeddings, per_layer = rows.split([config.hidden_size, rows.shape[1] - config.hidden_size], 1)
    per_layer = per_layer.unflatten(1, (config.num_hidden_layers, -1))
    return run_decoder(decoder, positions, attend, inputs_embeds=embeddings[None], per_layer_inputs=per_layer[None])


def logits(module: Any, hidden: Tensor) -> Tensor:
    """Scores, soft-capped as the config says."""
    scores, cap = head_logits(module, hidden), module.config.text_config.final_logit_softcapping
    return scores if cap is None else torch.tanh(scores / cap) * cap


ARCHITECTURE = Architecture(
    family=registry.get("gemma3n"),
    label="a Gemma 3n model",
    model_class="earwise.models.families.gemma3n:Gemma3nForConditionalGeneration",
    placeholder="<audio_soft_token>",
    end_tokens=("<end_of_turn>", "<eos>"),
    template=TEMPLATE,
    encoder=("model.audio_tower.",),
    connector=("model.embed_audio.",),
    decoder=("model.language_model.", "lm_head."),
    language_model="model.language_model",
    placeholder_id=lambda config: config.audio_token_id,
    feature_extractor=feature_extractor,
    audio_spec=audio_spec,
    audio_tokens=audio_tokens,
    encode_audio=encode_audio,
    project_audio=project_audio,
    trims_padding=True,
    masks_padding=False,
    removed_modules=IMAGE_PREFIXES,
    embed=embed,
    decode=decode,
    logits=logits,
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
