"""Granite Speech: a conformer trained with CTC (attention inside blocks of 4 s), a window Q-Former (three tokens per
0.3 s), Granite with its multipliers and, up to version 3.3, a LoRA adapter made for sound.

Differences from transformers' class, each on purpose:
1. Scores are divided by `logits_scaling`, as Granite's own text model does and as it was trained. transformers 5
   leaves the division out of its speech class: the same order of tokens, but log-probabilities of another temperature.
2. Clips are encoded one at a time. The encoder does not mask, so in a batch a clip would hear its neighbour's padding.
3. The adapter is merged into the decoder when a checkpoint is read, and stays on for conversations without sound,
   where transformers' `generate` would switch it off: branches with and without sound share one decoder here.
4. The encoder and the Q-Former never drop out, and batch normalisation keeps its statistics while they are trained.

Source: arXiv:2505.08699; transformers 5 `models/granite_speech`; features as torchaudio's `MelSpectrogram` makes them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from earwise.audio import AudioSpec
from earwise.errors import ModelError
from earwise.models import lora_checkpoint
from earwise.models.families.native import Row, embed_text, head_logits
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

SYSTEM = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)
TEMPLATE = ChatTemplate(
    "granite-speech", "<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>", "", "", system=SYSTEM
)
PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class LogMel:
    """Whisper-like log-mel, two frames joined to one of 20 ms; equal to transformers' GraniteSpeechFeatureExtractor,
    which needs torchaudio.

    Attributes:
        sample_rate: Hz.
        n_fft: Samples of a transform.
        win_length: Samples of the window inside it.
        hop_length: Samples.
        n_mels: Bands; a joined frame has twice as many values.
    """

    sample_rate: int = 16000
    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 80

    @cached_property
    def filters(self) -> Tensor:
        """Triangles on the HTK mel scale, not normalised, `(frequencies, mels)`."""
        bank = mel_filter_bank(
            self.n_fft // 2 + 1, self.n_mels, 0.0, self.sample_rate / 2, self.sample_rate, norm=None, mel_scale="htk"
        )
        return torch.from_numpy(bank).float()

    def frames(self, samples: int) -> int:
        """Joined frames of a clip; 0 if it is too short for one window."""
        return (samples // self.hop_length + 1) // 2 if samples > self.n_fft // 2 else 0

    def __call__(self, wave: Waveform) -> Tensor:
        """`(frames, 2 * n_mels)` of a clip."""
        window = torch.hann_window(self.win_length)
        sound = torch.as_tensor(wave, dtype=torch.float32)
        spectrum = torch.stft(
            sound, self.n_fft, self.hop_length, self.win_length, window, center=True, pad_mode="reflect",
            return_complex=True,
        )  # fmt: skip
        mel = spectrum.abs().square().T @ self.filters
        log = mel.clamp_min(1e-10).log10()
        scaled = torch.maximum(log, log.max() - 8.0) / 4 + 1
        return scaled[: 2 * self.frames(len(wave))].reshape(-1, 2 * self.n_mels)

    def save_pretrained(self, folder: Path) -> None:
        """Write the settings as transformers' extractor reads them."""
        settings = {"feature_extractor_type": "GraniteSpeechFeatureExtractor", "sampling_rate": self.sample_rate}
        (folder / PREPROCESSOR).write_text(json.dumps(settings | {"melspec_kwargs": asdict(self)}, indent=1) + "\n")


def _extractor(folder: Path | None, config: Any) -> LogMel:
    if folder is None or not (folder / PREPROCESSOR).exists():
        return LogMel(n_mels=config.encoder_config.input_dim // 2)
    read = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
    try:
        made = LogMel(**read.get("melspec_kwargs", {}))
    except TypeError as error:
        raise ModelError(f"{folder / PREPROCESSOR}: melspec_kwargs: {error}; download the file again") from error
    stated = read.get("sampling_rate", made.sample_rate)
    if stated != made.sample_rate:
        raise ModelError(
            f"{folder / PREPROCESSOR}: sampling_rate is {stated}, that of melspec_kwargs {made.sample_rate}; "
            "download the file again"
        )
    return made


def _window_tokens(config: Any) -> int:
    return config.window_size // config.downsample_rate


def _spec(config: Any, extractor: LogMel) -> AudioSpec:
    per_s = extractor.sample_rate / (2 * extractor.hop_length) * _window_tokens(config) / config.window_size
    return AudioSpec(extractor.sample_rate, config.text_config.max_position_embeddings / per_s, per_s)


def _tokens(config: Any, extractor: LogMel, samples: int) -> int:
    return -(-extractor.frames(samples) // config.window_size) * _window_tokens(config)


def _listen(module: Any, extractor: LogMel, waveforms: Sequence[Waveform]) -> list[Tensor]:
    encoder = module.model.encoder.eval()
    weight = encoder.input_linear.weight
    return [encoder(extractor(wave)[None].to(weight)).last_hidden_state[0] for wave in waveforms]


def _connect(module: Any, heard: Sequence[Tensor]) -> list[Tensor]:
    projector = module.model.projector.eval()
    return [projector(clip[None].to(projector.linear.weight))[0] for clip in heard]


def _embed(module: Any, ids: Tensor) -> Tensor:
    """Text embeddings; the placeholder may lie beyond the table and stands for its first row."""
    return embed_text(module, torch.where(ids == module.config.audio_token_index, 0, ids))


def _logits(module: Any, hidden: Tensor) -> Tensor:
    return head_logits(module, hidden) / module.config.text_config.logits_scaling


def _finish(module: Any, folder: Path) -> None:
    """Merge the adapter that lies beside the weights; the model has none from then on."""
    if module.config.has_lora_adapter:
        lora_checkpoint.merge(module, lora_checkpoint.read(folder), lora_checkpoint.PUBLISHED["granite_speech"], folder)
        module.config.has_lora_adapter = False


ROW = Row(
    family="granite_speech",
    what="a Granite Speech model",
    hub="ibm-granite/granite-speech-3.3-2b",
    model_class="GraniteSpeechForConditionalGeneration",
    types={"granite_speech": ""},
    mark="<|audio|>",
    end_marks=("<|end_of_text|>",),
    template=TEMPLATE,
    encoder=("model.encoder.",),
    connector=("model.projector.",),
    decoder=("model.language_model.", "lm_head."),
    language="model.language_model",
    placeholder_id=lambda config: config.audio_token_index,
    extractor=_extractor,
    spec=_spec,
    tokens=_tokens,
    encode_audio=_listen,
    project_audio=_connect,
    trims=True,
    masks=False,
    embed=_embed,
    logits=_logits,
    finish=_finish,
)
