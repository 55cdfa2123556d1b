"""Audio Flamingo 3: a row of the native table.

Qwen2-Audio's shape with a two-layer projector, and clips of up to ten minutes: a clip is cut into windows of 30 s that
are encoded apart and laid end to end. The encoder masks padding, so the last window is trimmed to its real frames and
the convolutions' margin, as in Qwen2-Audio, with the same numbers.

Source: transformers 5 `models/audioflamingo3` and its conversion script (chat format).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import WhisperFeatureExtractor

from earwise.audio import AudioSpec
from earwise.errors import ModelError
from earwise.models.families.native import Row, forest_attention, sliding_window
from earwise.models.families.qwen2_audio import encoder_states, token_count
from earwise.models.parts import mel
from earwise.models.parts.whisper import HOP_SAMPLES
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

WINDOWS = 20
"""Windows of 30 s that the released processor takes of one clip; what lies behind them it cuts off."""

TEMPLATE = ChatTemplate(
    "audio-flamingo-3", "<|im_start|>{role}\n", "<|im_end|>", "", "", "You are a helpful assistant."
)  # fmt: skip


def window_frames(config: Any) -> int:
    """Mel frames of a window: as many as the encoder has positions for, 3000 as released."""
    return 2 * int(config.audio_config.max_source_positions)


def extractor(folder: Path | None, config: Any) -> WhisperFeatureExtractor:
    """The checkpoint's feature extractor; windows as long as the encoder's where it has none."""
    return mel.load_feature_extractor(folder, config.audio_config.num_mel_bins, window_frames(config) // 100)


def spec(config: Any, features: WhisperFeatureExtractor) -> AudioSpec:
    """25 tokens a second, twenty windows.

    Raises:
        ModelError: if the features are not what the encoder was made for.
    """
    mel.check_features(features, config.audio_config.num_mel_bins, "audio_flamingo3")
    window = window_frames(config)
    if features.nb_max_frames != window:
        raise ModelError(
            f"audio_flamingo3: features have windows of {features.nb_max_frames} frames, the encoder of {window}; "
            "take both from one checkpoint"
        )
    window_s = window * HOP_SAMPLES / mel.SAMPLE_RATE
    return AudioSpec(sample_rate=mel.SAMPLE_RATE, max_s=WINDOWS * window_s, tokens_per_s=25.0)


def tokens(config: Any, features: WhisperFeatureExtractor, samples: int) -> int:
    """Audio tokens (40 ms) of a clip: windows hold whole tokens, so a clip counts as in Qwen2-Audio."""
    return token_count(mel.frame_count(samples))


def encode_audio(module: Any, features: WhisperFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Pooled, normed encoder states of each clip, `(audio_seq, encoder dim)`: the class's own for real frames."""
    window = window_frames(module.config)
    step = window * HOP_SAMPLES
    cut = [[wave[at : at + step] for at in range(0, len(wave), step)] for wave in waveforms]
    states = iter(_windows(module.model.audio_tower, features, [piece for pieces in cut for piece in pieces], window))
    return [torch.cat([next(states) for _ in pieces]) for pieces in cut]


def _windows(tower: Any, features: WhisperFeatureExtractor, pieces: list[Waveform], window: int) -> list[Tensor]:
    """The tower's own layers on the longest window's real states; per window `(audio_seq, encoder dim)`."""
    frames = [mel.frame_count(len(piece)) for piece in pieces]
    # State s - 1 sees first-convolution outputs up to 2s - 1, and these see mel frames up to 2s.
    kept = [min(window, 2 * encoder_states(count) + 1) for count in frames]
    mels = [mel.unpadded_log_mel(piece, features, count).T for piece, count in zip(pieces, kept, strict=True)]
    weight = tower.conv1.weight
    states = torch.tensor([encoder_states(count) for count in frames], device=weight.device)
    longest = int(states.max())
    batch = nn.utils.rnn.pad_sequence(mels, batch_first=True).mT.to(weight)
    hidden = gelu(tower.conv2(gelu(tower.conv1(batch)))).mT[:, :longest]
    hidden = hidden + tower.embed_positions.weight[:longest]
    seen = (torch.arange(longest, device=weight.device) < states[:, None])[:, None, None].expand(-1, 1, longest, -1)
    mask = None if bool(seen.all()) else seen
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    normed = tower.layer_norm(tower.avg_pooler(hidden.mT).mT)
    return [row[: token_count(count)] for row, count in zip(normed, frames, strict=True)]


def project_audio(module: Any, heard: Sequence[Tensor]) -> list[Tensor]:
    """The projector, `(audio_seq, dim)` a clip."""
    projector = module.model.multi_modal_projector
    return [projector(clip.to(projector.linear_1.weight)) for clip in heard]


def attend(module: Any, language: str) -> None:
    """The forest's attention for the text model; the encoder's own takes the boolean mask that it is given here."""
    module.model.audio_tower.config._attn_implementation = "sdpa"
    forest_attention(module, language)


ROW = Row(
    family="audio_flamingo3",
    what="an Audio Flamingo 3 model",
    hub="nvidia/audio-flamingo-3-hf",
    model_class="AudioFlamingo3ForConditionalGeneration",
    types={"audioflamingo3": ""},
    mark="<sound>",
    end_marks=("<|im_end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=("model.audio_tower.",),
    connector=("model.multi_modal_projector.",),
    decoder=("model.language_model.", "lm_head."),
    language="model.language_model",
    placeholder_id=lambda config: config.audio_token_id,
    extractor=extractor,
    spec=spec,
    tokens=tokens,
    encode_audio=encode_audio,
    project_audio=project_audio,
    trims=True,
    masks=True,
    attend=attend,
    longest=sliding_window,
)
