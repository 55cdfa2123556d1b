"""Audio Flamingo 3: Qwen2-Audio's shape with a two-layer projector, and clips of up to ten minutes.

A clip is cut into windows of 30 s that are encoded separately and joined end to end. The encoder masks padding, so the
last window is trimmed to its real frames and the frames that the convolutions reach, as in Qwen2-Audio, with the same
numbers.

Source: Audio Flamingo 3 (arXiv:2507.08128); transformers 5 `models/audioflamingo3` and its conversion script (chat
format).
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
from earwise.errors import ModelError
from earwise.models import registry
from earwise.models.families import transformers_audio
from earwise.models.families.qwen2_audio import state_count, token_count, window_frames
from earwise.models.families.transformers_audio import Architecture, use_forest_attention
from earwise.models.parts import mel
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

MAX_WINDOWS = 20
"""Windows of 30 s that the released processor takes of one clip; it cuts off what follows them."""

TEMPLATE = ChatTemplate(
    "audio-flamingo-3", "<|im_start|>{role}\n", "<|im_end|>", "", "", "You are a helpful assistant."
)  # fmt: skip


def feature_extractor(folder: Path | None, config: Any) -> WhisperFeatureExtractor:
    """The checkpoint's feature extractor; one with windows as long as the encoder's if the folder has none."""
    return mel.load_feature_extractor(folder, config.audio_config.num_mel_bins, window_frames(config) // 100)


def audio_spec(config: Any, extractor: WhisperFeatureExtractor) -> AudioSpec:
    """25 tokens a second, clips of up to twenty windows.

    Raises:
        ModelError: if the features are not those that the encoder was made for.
    """
    mel.check_features(extractor, config.audio_config.num_mel_bins, "audio_flamingo3")
    window = window_frames(config)
    if extractor.nb_max_frames != window:
        raise ModelError(
            f"audio_flamingo3: features have windows of {extractor.nb_max_frames} frames, the encoder of {window}; "
            "take both from one checkpoint"
        )
    window_s = window * HOP_SAMPLES / mel.SAMPLE_RATE
    return AudioSpec(sample_rate=mel.SAMPLE_RATE, max_s=MAX_WINDOWS * window_s, tokens_per_s=25.0)


def audio_tokens(config: Any, extractor: WhisperFeatureExtractor, samples: int) -> int:
    """Audio tokens (40 ms each) of a clip: windows hold whole tokens, so a clip counts as in Qwen2-Audio."""
    return token_count(mel.frame_count(samples))


def encode_audio(module: Any, extractor: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip after pooling and norm, `(audio_seq, encoder dim)`: those that the class computes for
    real frames."""
    window = window_frames(module.config)
    step = window * HOP_SAMPLES
    clips = [[waveform[start : start + step] for start in range(0, len(waveform), step)] for waveform in waveforms]
    pieces = [piece for clip in clips for piece in clip]
    states = iter(_encode_windows(module.model.audio_tower, extractor, pieces, window))
    return [torch.cat([next(states) for _ in clip]) for clip in clips]


def _encode_windows(
    tower: Any, extractor: WhisperFeatureExtractor, pieces: list[Waveform], window: int
) -> list[Tensor]:
    """The tower's own layers on as many states as the longest piece has; per piece `(audio_seq, encoder dim)`."""
    frames = [mel.frame_count(len(piece)) for piece in pieces]
    # State s - 1 depends on outputs of the first convolution up to 2s - 1, and these on mel frames up to 2s.
    needed = [min(window, 2 * state_count(count) + 1) for count in frames]
    mels = [mel.unpadded_log_mel(piece, extractor, count).T for piece, count in zip(pieces, needed, strict=True)]
    weight = tower.conv1.weight
    lengths = torch.tensor([state_count(count) for count in frames], device=weight.device)
    longest = int(lengths.max())
    batch = nn.utils.rnn.pad_sequence(mels, batch_first=True).mT.to(weight)
    hidden = gelu(tower.conv2(gelu(tower.conv1(batch)))).mT[:, :longest]
    hidden = hidden + tower.embed_positions.weight[:longest]
    is_audio = torch.arange(longest, device=weight.device) < lengths[:, None]
    visible = is_audio[:, None, None].expand(-1, 1, longest, -1)
    mask = None if bool(visible.all()) else visible
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    normed = tower.layer_norm(tower.avg_pooler(hidden.mT).mT)
    return [row[: token_count(count)] for row, count in zip(normed, frames, strict=True)]


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """The projector, `(audio_seq, dim)` per clip."""
    projector = module.model.multi_modal_projector
    return [projector(clip.to(projector.linear_1.weight)) for clip in encoder_states]


def set_attention(module: Any, language_model: str) -> None:
    """The forest's attention for the text model; the encoder's own takes the boolean mask that it is given here."""
    module.model.audio_tower.config._attn_implementation = "sdpa"
    use_forest_attention(module, language_model)


ARCHITECTURE = Architecture(
    family=registry.get("audio_flamingo3"),
    label="an Audio Flamingo 3 model",
    model_class="AudioFlamingo3ForConditionalGeneration",
    placeholder="<sound>",
    end_tokens=("<|im_end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=("model.audio_tower.",),
    connector=("model.multi_modal_projector.",),
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
    set_attention=set_attention,
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
