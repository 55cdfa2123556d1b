"""Granite Speech: a conformer trained with CTC (attention inside blocks of 4 s), a window Q-Former (three tokens per
0.3 s), Granite with its multipliers and, up to version 3.3, a LoRA adapter trained for audio.

Differences from transformers' class, each on purpose:
1. Scores are divided by `logits_scaling`, as Granite's own text model does and as it was trained. transformers 5 leaves
   the division out of its speech class: the same order of tokens, but log-probabilities of another temperature.
2. Clips are encoded one at a time. The encoder does not mask, so in a batch the padding of a clip would change its
   states.
3. The adapter is part of the decoder (merged into float32 weights, computed beside bfloat16 ones) and stays on for
   conversations without audio, where transformers' `generate` would switch it off: branches with and without audio
   share one decoder here.
4. Encoder and Q-Former have no dropout, and batch normalisation keeps its statistics while they are trained.

Source: Granite-speech (arXiv:2505.08699); transformers 5 `models/granite_speech`; features as torchaudio's
`MelSpectrogram` computes them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from earwise.audio import AudioSpec
from earwise.errors import ModelError
from earwise.models import lora_checkpoint, registry
from earwise.models.families import transformers_audio
from earwise.models.families.transformers_audio import Architecture, embed_text, head_logits
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

FAMILY = registry.get("granite_speech")
SYSTEM_MESSAGE = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)
TEMPLATE = ChatTemplate(
    "granite-speech", "<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>", "", "", system=SYSTEM_MESSAGE
)
PREPROCESSOR_CONFIG = "preprocessor_config.json"


@dataclass(frozen=True)
class LogMel:
    """Whisper-like log-mel features, two frames joined to one of 20 ms; equal to transformers'
    GraniteSpeechFeatureExtractor, which needs torchaudio.

    Attributes:
        sample_rate: Sample rate of the waveforms, Hz.
        n_fft: Length of the Fourier transform, samples.
        win_length: Length of the window inside it, samples.
        hop_length: Distance between frames, samples.
        n_mels: Number of mel bands; a joined frame has twice as many values.
    """

    sample_rate: int = 16000
    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 80

    @cached_property
    def filters(self) -> Tensor:
        """Triangular filters on the HTK mel scale, not normalised, `(frequencies, mels)`."""
        bank = mel_filter_bank(
            self.n_fft // 2 + 1, self.n_mels, 0.0, self.sample_rate / 2, self.sample_rate, norm=None, mel_scale="htk"
        )
        return torch.from_numpy(bank).float()

    def frames(self, samples: int) -> int:
        """Joined frames of a clip; 0 if it is too short for one window."""
        return (samples // self.hop_length + 1) // 2 if samples > self.n_fft // 2 else 0

    def __call__(self, waveform: Waveform) -> Tensor:
        """Features `(frames, 2 * n_mels)` of a clip."""
        window = torch.hann_window(self.win_length)
        samples = torch.as_tensor(waveform, dtype=torch.float32)
        spectrum = torch.stft(
            samples, self.n_fft, self.hop_length, self.win_length, window, center=True, pad_mode="reflect",
            return_complex=True,
        )  # fmt: skip
        mel = spectrum.abs().square().T @ self.filters
        log = mel.clamp_min(1e-10).log10()
        scaled = torch.maximum(log, log.max() - 8.0) / 4 + 1
        return scaled[: 2 * self.frames(len(waveform))].reshape(-1, 2 * self.n_mels)

    def save_pretrained(self, folder: Path) -> None:
        """Write the settings as transformers' extractor reads them."""
        settings = {"feature_extractor_type": "GraniteSpeechFeatureExtractor", "sampling_rate": self.sample_rate}
        content = settings | {"melspec_kwargs": asdict(self)}
        (folder / PREPROCESSOR_CONFIG).write_text(json.dumps(content, indent=1) + "\n")


def feature_extractor(folder: Path | None, config: Any) -> LogMel:
    """The checkpoint's feature extractor; one with the encoder's number of inputs if the folder has none.

    Raises:
        ModelError: if the checkpoint's settings are unknown or contradict each other.
    """
    if folder is None or not (folder / PREPROCESSOR_CONFIG).exists():
        return LogMel(n_mels=config.encoder_config.input_dim // 2)
    path = folder / PREPROCESSOR_CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        log_mel = LogMel(**content.get("melspec_kwargs", {}))
    except TypeError as error:
        raise ModelError(f"{path}: melspec_kwargs: {error}; download the file again") from error
    sampling_rate = content.get("sampling_rate", log_mel.sample_rate)
    if sampling_rate != log_mel.sample_rate:
        raise ModelError(
            f"{path}: sampling_rate is {sampling_rate}, that of melspec_kwargs {log_mel.sample_rate}; "
            "download the file again"
        )
    return log_mel


def window_tokens(config: Any) -> int:
    """Audio tokens of one Q-Former window."""
    return config.window_size // config.downsample_rate


def audio_spec(config: Any, extractor: LogMel) -> AudioSpec:
    """10 tokens a second as released; clips whose tokens fit into the decoder's positions."""
    frames_per_s = extractor.sample_rate / (2 * extractor.hop_length)
    tokens_per_s = frames_per_s * window_tokens(config) / config.window_size
    return AudioSpec(extractor.sample_rate, config.text_config.max_position_embeddings / tokens_per_s, tokens_per_s)


def audio_tokens(config: Any, extractor: LogMel, samples: int) -> int:
    """Audio tokens of a clip: those of whole Q-Former windows."""
    return -(-extractor.frames(samples) // config.window_size) * window_tokens(config)


def encode_audio(module: Any, extractor: LogMel, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip, `(frames, encoder dim)`."""
    encoder = module.model.encoder.eval()
    weight = encoder.input_linear.weight
    return [encoder(extractor(waveform)[None].to(weight)).last_hidden_state[0] for waveform in waveforms]


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """The window Q-Former, `(audio_seq, dim)` per clip."""
    projector = module.model.projector.eval()
    return [projector(clip[None].to(projector.linear.weight))[0] for clip in encoder_states]


def embed(module: Any, ids: Tensor) -> Tensor:
    """Text embeddings; the placeholder's id may be beyond the table and takes its first row instead."""
    return embed_text(module, torch.where(ids == module.config.audio_token_index, 0, ids))


def logits(module: Any, hidden: Tensor) -> Tensor:
    """Scores, divided as Granite's text model does."""
    return head_logits(module, hidden) / module.config.text_config.logits_scaling


def after_loading(module: Any, folder: Path) -> None:
    """Add the adapter that the checkpoint contains, if it has one, to the decoder; the class has none from then on."""
    if module.config.has_lora_adapter:
        lora_checkpoint.add_own(module, lora_checkpoint.read(folder), FAMILY.parameter_names, folder)
        module.config.has_lora_adapter = False


ARCHITECTURE = Architecture(
    family=FAMILY,
    label="a Granite Speech model",
    model_class="GraniteSpeechForConditionalGeneration",
    placeholder="<|audio|>",
    end_tokens=("<|end_of_text|>",),
    template=TEMPLATE,
    encoder=("model.encoder.",),
    connector=("model.projector.",),
    decoder=("model.language_model.", "lm_head."),
    language_model="model.language_model",
    placeholder_id=lambda config: config.audio_token_index,
    feature_extractor=feature_extractor,
    audio_spec=audio_spec,
    audio_tokens=audio_tokens,
    encode_audio=encode_audio,
    project_audio=project_audio,
    trims_padding=True,
    masks_padding=False,
    embed=embed,
    logits=logits,
    after_loading=after_loading,
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
