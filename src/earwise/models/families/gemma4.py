"""Gemma 4 E2B and E4B: a conformer with local attention (one token per 40 ms), and a decoder with per-layer embeddings,
shared keys and values, sliding windows, and two sizes of attention heads.

1. Per-layer embeddings need token ids, which `decode` is not given: a row of `embed` is the embedding with the
   per-layer embeddings appended, as in Gemma 3n. Audio takes the per-layer embeddings of the padding token.
2. The encoder masks padding in every convolution and attention, so clips are encoded in one batch.
3. The image tower is not computed; `save` writes it back. The larger models of the series have no audio encoder and are
   refused.

Source: transformers 5 `models/gemma4`; USM (arXiv:2303.01037); the published chat template.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma4AudioFeatureExtractor

from earwise.audio import AudioSpec
from earwise.errors import ModelError
from earwise.models import registry
from earwise.models.families import gemma3n, transformers_audio
from earwise.models.families.transformers_audio import Architecture, embed_text
from earwise.models.parts.mel import CONFIG_FILES
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

TEMPLATE = ChatTemplate(
    "gemma4", "<|turn>{role}\n", "<turn|>", "<|audio>", "<audio|>", conversation_start="<bos>",
    role_markers={"assistant": ("<|turn>model\n", "<turn|>")},
)  # fmt: skip
WINDOW_S = 30.0
"""Longest clip, seconds."""
STRIDE = 4
"""Mel frames per audio token: two convolutions with a stride of two."""


def feature_extractor(folder: Path | None, config: Any) -> Gemma4AudioFeatureExtractor:
    """The checkpoint's feature extractor; one with the encoder's number of mel bins if the folder has none."""
    if folder is not None and any((folder / name).exists() for name in CONFIG_FILES):
        return Gemma4AudioFeatureExtractor.from_pretrained(str(folder))
    return Gemma4AudioFeatureExtractor(feature_size=_audio_config(config).subsampling_conv_channels[0])


def audio_spec(config: Any, extractor: Gemma4AudioFeatureExtractor) -> AudioSpec:
    """25 tokens a second as released, clips of up to 30 s.

    Raises:
        ModelError: if the model has no audio encoder, or the features have another number of bins than it takes.
    """
    bins = _audio_config(config).subsampling_conv_channels[0]  # its width after both convolutions is bins / 4
    if extractor.feature_size != bins:
        raise ModelError(
            f"gemma4: features have {extractor.feature_size} mel bins, the encoder takes {bins}; "
            "take the preprocessor config from the checkpoint of the encoder"
        )
    return AudioSpec(extractor.sampling_rate, WINDOW_S, extractor.sampling_rate / (extractor.hop_length * STRIDE))


def audio_tokens(config: Any, extractor: Gemma4AudioFeatureExtractor, samples: int) -> int:
    """One token to four started mel frames; 0 if the clip is too short for a frame of real audio."""
    frames = (samples + extractor.frame_length // 2 - extractor.frame_length - 1) // extractor.hop_length + 1
    return -(-max(0, frames) // STRIDE)


def encode_audio(module: Any, extractor: Gemma4AudioFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip, `(audio_seq, encoder output dim)`, of frames that are real audio throughout."""
    tower = module.model.audio_tower
    out = extractor(list(waveforms), padding="longest", truncation=False, return_tensors="pt")
    weight = tower.output_proj.weight
    states = tower(out.input_features.to(weight), out.input_features_mask.to(weight.device))
    return [row[mask] for row, mask in zip(states.last_hidden_state, states.attention_mask, strict=True)]


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """`(audio_seq, dim + layers * per-layer dim)` per clip: see point 1 of the module."""
    embedder, text = module.model.embed_audio, module.model.language_model
    weight = embedder.embedding_projection.weight
    padding = torch.tensor([text.config.pad_token_id], device=weight.device)
    per_layer = text.get_per_layer_inputs(padding).flatten(1)
    return [torch.cat([embedder(clip.to(weight)), per_layer.expand(len(clip), -1)], 1) for clip in encoder_states]


def embed(module: Any, ids: Tensor) -> Tensor:
    """Embeddings with the per-layer embeddings appended, `(seq, dim + layers * per-layer dim)`."""
    embeddings = embed_text(module, ids)
    per_layer = module.model.language_model.get_per_layer_inputs(ids.to(embeddings.device))
    return torch.cat([embeddings, per_layer.flatten(1)], 1)


def _audio_config(config: Any) -> Any:
    """The config of the audio encoder.

    Raises:
        ModelError: if the model has none.
    """
    if config.audio_config is None:
        raise ModelError("gemma4: this checkpoint has no audio encoder; take gemma-4-E2B-it or gemma-4-E4B-it")
    return config.audio_config


ARCHITECTURE = Architecture(
    family=registry.get("gemma4"),
    label="a Gemma 4 model",
    model_class="Gemma4ForConditionalGeneration",
    placeholder="<|audio|>",
    end_tokens=("<turn|>", "<eos>"),
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
    masks_padding=True,
    removed_modules=("model.vision_tower.", "model.embed_vision."),
    embed=embed,
    decode=gemma3n.decode,
    logits=gemma3n.logits,
    attn_implementation="eager",
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
