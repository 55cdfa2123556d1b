"""HTSAT, the audio tagger that Mellow listens through: log-mel at 32 kHz, a Swin transformer over it, and per moment a
score for each of AudioSet's classes.

The Swin layers are transformers' own (`ClapAudioEncoder`, which is HTSAT: normalised mel bins, the time axis stretched
to the picture's width by bicubic interpolation, folded into a square, shifted windows). Ours are the front end and the
class map over time that CLAP leaves out. A test holds every stage to the official class's values.

Source: papers/mellow.md section 2; HTS-AT (arXiv:2202.00874).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ClapAudioConfig
from transformers.audio_utils import mel_filter_bank
from transformers.models.clap.modeling_clap import ClapAudioEncoder

SAMPLE_RATE = 32000
N_FFT = 1024
HOP_SAMPLES = 320  # 10 ms
MEL_RANGE_HZ = (50.0, 14000.0)
FLOOR = 1e-10  # power; -100 dB


def config(**sizes: object) -> ClapAudioConfig:
    """Sizes of an encoder, nothing dropped at random; without arguments those of the released one."""
    return ClapAudioConfig(hidden_dropout_prob=0.0, drop_path_rate=0.0, **sizes)


def mel_filters(mels: int) -> Float[Tensor, "bins mels"]:
    """Triangular filters on Slaney's scale, each of unit area."""
    low, high = MEL_RANGE_HZ
    filters = mel_filter_bank(N_FFT // 2 + 1, mels, low, high, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).float()


class Htsat(nn.Module):
    """Waveforms of one whole window -> states and class scores over time.

    Args:
        sizes: See `config`; `spec_size` and `num_mel_bins` fix the longest window, `classes` the width of the scores.
    """

    window: Tensor
    mel: Tensor

    def __init__(self, sizes: ClapAudioConfig) -> None:
        super().__init__()
        self.clap = ClapAudioEncoder(sizes)
        self.classes: int = sizes.num_classes
        self.dim: int = self.clap.num_features
        folds = sizes.spec_size // sizes.num_mel_bins  # pieces of the time axis that are stacked into the square
        grid = self.clap.input_resolutions[-1][0]
        self.frames: int = grid * folds
        """Moments of the output, whatever the window's length."""
        self.max_samples: int = (sizes.spec_size * folds - 1) * HOP_SAMPLES
        rows = grid // folds  # what is left of the mel axis; the class map takes all of it at once
        self.tscam_conv = nn.Conv2d(self.dim, self.classes, (rows, 3), padding=(0, 1))
        # Fixed, so no part of a checkpoint; on the CPU even where the weights are built on the meta device.
        self.register_buffer("window", torch.hann_window(N_FFT, device="cpu"), persistent=False)
        self.register_buffer("mel", mel_filters(sizes.num_mel_bins), persistent=False)

    def train(self, mode: bool = True) -> "Htsat":
        """Training mode, but for the batch norm: its statistics stay those of the checkpoint (the released trainer lets
        a frozen encoder's drift)."""
        super().train(mode)
        self.clap.batch_norm.eval()
        return self

    def power(self, waveforms: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips frames bins"]:
        """Power spectra every 10 ms, window centred, ends reflected."""
        spectrum = torch.stft(waveforms, N_FFT, HOP_SAMPLES, window=self.window, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square()).mT

    def log_mel(self, power: Float[Tensor, "clips frames bins"]) -> Float[Tensor, "clips frames mels"]:
        """Mel power in dB, floor at -100 dB."""
        return 10 * (power @ self.mel).clamp_min(FLOOR).log10()

    def states(self, waveforms: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips dim rows frames"]:
        """Last states on their grid: mel axis (top half, lower half) by time.

        Raises:
            ValueError: if the window is longer than the encoder's picture is wide.
        """
        if waveforms.shape[1] > self.max_samples:
            raise ValueError(f"window of {waveforms.shape[1]} samples, the encoder sees {self.max_samples}")
        grid: Tensor = self.clap(self.log_mel(self.power(waveforms.float()))[:, None]).last_hidden_state
        return grid

    def class_scores(self, states: Float[Tensor, "clips dim rows frames"]) -> Float[Tensor, "clips frames classes"]:
        """Score (before the sigmoid) of every class at every moment."""
        scores: Tensor = self.tscam_conv(states)
        return scores[:, :, 0].mT
