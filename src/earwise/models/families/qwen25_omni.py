"""Qwen2.5-Omni's thinker (3B, 7B): the part that takes audio and text and writes text.

The encoder is a Whisper large that attends within blocks of two seconds. Padding is cut off before it, so only real
frames are encoded, and since blocks never attend to each other, all blocks of all clips are one batch. Audio and text
have the same position on all three axes of the rotary embedding, one per token, so the forest's depths are the
positions (a test compares them with the class's own `get_rope_index`). The thinker is read out of a full checkpoint,
whose talker and vocoder are never opened, or from a folder that contains nothing else. Its visual tower is never
computed: it is taken out of the model, kept as it was read, and written back by `save`, in the published layout without
talker and vocoder (`enable_audio_output` is off), so that programs for the published thinker read the saved one.

Source: Qwen2.5-Omni (arXiv:2503.20215); transformers 5 `models/qwen2_5_omni`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models import registry
from earwise.models.families import transformers_audio
from earwise.models.families.qwen2_audio import state_count, token_count
from earwise.models.families.transformers_audio import Architecture
from earwise.models.parts import mel
from earwise.models.parts.whisper import run_encoder_layer
from earwise.prompts import AUDIO_PLACEHOLDER, ChatTemplate
from earwise.types import Waveform

WINDOW_S = 300
"""Longest clip of the released feature extractor, seconds."""

# The released chat template numbers no clips, unlike Qwen2-Audio's. The system line is the template's own; the longer
# one about a virtual human is needed for speech output only.
TEMPLATE = ChatTemplate(
    "qwen2.5-omni",
    "<|im_start|>{role}\n",
    "<|im_end|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "You are a helpful assistant.",
)


def feature_extractor(folder: Path | None, config: Any) -> WhisperFeatureExtractor:
    """The checkpoint's feature extractor; one for clips up to 300 s if the folder has none."""
    return mel.load_feature_extractor(folder, config.audio_config.num_mel_bins, WINDOW_S)


def audio_spec(config: Any, extractor: WhisperFeatureExtractor) -> AudioSpec:
    """25 tokens a second, clips as long as the features' window: encoder positions start anew in every block.

    Raises:
        ModelError: if the features are not those that the encoder was made for.
    """
    return mel.audio_spec(extractor, config.audio_config.num_mel_bins, "qwen25_omni", 25.0)


def audio_tokens(config: Any, extractor: WhisperFeatureExtractor, samples: int) -> int:
    """Audio tokens (40 ms each) of a clip, counted as in Qwen2-Audio: none below 20 ms."""
    return token_count(mel.frame_count(samples))


def encode_audio(module: Any, extractor: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip after pooling and norm, before the projection, `(audio_seq, encoder dim)`."""
    tower = module.model.audio_tower
    # Per clip its blocks, each (frames, mels).
    clips = [mel.unpadded_log_mel(waveform, extractor).T.split(2 * tower.n_window) for waveform in waveforms]
    blocks = [block for clip in clips for block in clip]
    weight = tower.conv1.weight
    frames = torch.tensor([len(block) for block in blocks], device=weight.device)
    batch = nn.utils.rnn.pad_sequence(blocks, batch_first=True).mT.to(weight)
    is_audio = torch.arange(batch.shape[2], device=weight.device) < frames[:, None]
    hidden = gelu(tower.conv2(gelu(tower.conv1(batch)) * is_audio[:, None])).mT
    hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]].to(hidden)
    counts = [state_count(len(block)) for block in blocks]
    lengths = torch.tensor(counts, device=weight.device)
    visible = (torch.arange(hidden.shape[1], device=weight.device) < lengths[:, None])[:, None, None]
    mask = None if bool(visible.all()) else visible
    for layer in tower.layers:
        hidden = run_encoder_layer(layer, hidden, mask)
    block_states = iter([row[:count] for row, count in zip(hidden, counts, strict=True)])
    pooled = []
    for clip in clips:
        states = torch.cat([next(block_states) for _ in clip])
        pairs = len(states) // 2
        pooled.append(tower.ln_post((states[: 2 * pairs : 2] + states[1 : 2 * pairs : 2]) / 2))
    return pooled


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """The projection at the encoder's end, `(audio_seq, dim)` per clip."""
    projection = module.model.audio_tower.proj
    return [projection(clip.to(projection.weight)) for clip in encoder_states]


ARCHITECTURE = Architecture(
    family=registry.get("qwen25_omni"),
    label="a Qwen2.5-Omni model",
    model_class="Qwen2_5OmniThinkerForConditionalGeneration",
    placeholder=AUDIO_PLACEHOLDER,
    end_tokens=("<|im_end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=tuple(f"model.audio_tower.{part}." for part in ("layers", "conv1", "conv2", "ln_post")),
    connector=("model.audio_tower.proj.",),
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
    unread_prefixes=("talker.", "token2wav."),
    # The class's own forward pass uses the encoder's two extra embeddings nowhere either.
    removed_modules=("model.visual.", "model.audio_tower.audio_bos_eos_token."),
    published_config={
        "model_type": "qwen2_5_omni",
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": False,
    },
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
