"""HTSAT, the audio tagger that is Mellow's encoder: log-mel at 32 kHz, a Swin transformer, AudioSet scores over time.

The Swin layers are transformers' own (`ClapAudioEncoder` is HTSAT: normalised mel bins, the time axis stretched to the
width of an image by bicubic interpolation, folded into a square, shifted windows). The front end and the class scores
over time, which CLAP leaves out, are here. A golden test compares every stage with the official implementation.

Source: HTS-AT (arXiv:2202.00874); Mellow (arXiv:2503.08540), section 3, and its released code.
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
FLOOR = 1e-10  # smallest mel power, -100 dB


def config(**sizes: object) -> ClapAudioConfig:
    """Config of an encoder without dropout; `sizes` replace those of the released one."""
    return ClapAudioConfig(hidden_dropout_prob=0.0, drop_path_rate=0.0, **sizes)


def mel_filters(mels: int) -> Float[Tensor, "bins mels"]:
    """Triangular mel filters on Slaney's scale, each of unit area."""
    low, high = MEL_RANGE_HZ
    filters = mel_filter_bank(N_FFT // 2 + 1, mels, low, high, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).float()


class Htsat(nn.Module):
    """The encoder: waveforms of one length -> states and class scores over time.

    Args:
        sizes: See `config`. `spec_size` and `num_mel_bins` determine the longest waveform, `num_classes` the number of
            class scores.
    """

    window: Tensor
    mel: Tensor

    def __init__(self, sizes: ClapAudioConfig) -> None:
        super().__init__()
        self.clap = ClapAudioEncoder(sizes)
        self.classes: int = sizes.num_classes
        self.dim: int = self.clap.num_features
        folds = sizes.spec_size // sizes.num_mel_bins  # pieces of the time axis that are stacked into a square image
        grid = self.clap.input_resolutions[-1][0]
        self.frames: int = grid * folds
        """Time steps of the output, for waveforms of any length."""
        self.max_samples: int = (sizes.spec_size * folds - 1) * HOP_SAMPLES
        """Length of the longest waveform."""
        rows = grid // folds  # remaining steps of the mel axis, all of which the class convolution covers
        self.tscam_conv = nn.Conv2d(self.dim, self.classes, (rows, 3), padding=(0, 1))
        # Constants, so not part of a checkpoint, and on the CPU even if the weights are on the meta device.
        self.register_buffer("window", torch.hann_window(N_FFT, device="cpu"), persistent=False)
        self.register_buffer("mel", mel_filters(sizes.num_mel_bins), persistent=False)

    def train(self, mode: bool = True) -> "Htsat":
        """Set the training mode, except for the batch norm, whose statistics stay those of the checkpoint.

        The released trainer lets the statistics of a frozen encoder drift.
        """
        super().train(mode)
        self.clap.batch_norm.eval()
        return self

    def power(self, waveforms: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips frames bins"]:
        """Power spectra every 10 ms, with centred windows and reflected ends."""
        spectrum = torch.stft(waveforms, N_FFT, HOP_SAMPLES, window=self.window, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square()).mT

    def log_mel(self, power: Float[Tensor, "clips frames bins"]) -> Float[Tensor, "clips frames mels"]:
        """Mel power in dB, at least -100 dB."""
        return 10 * (power @ self.mel).clamp_min(FLOOR).log10()

    def states(self, waveforms: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips dim rows frames"]:
        """The states of the last layer, as a grid of mel axis by time.

        Raises:
            ValueError: if the waveforms are longer than `max_samples`.
        """
        if waveforms.shape[1] > self.max_samples:
            raise ValueError(
                f"waveforms of {waveforms.shape[1]} samples, the encoder takes {self.max_samples}; cut them"
            )
        grid: Tensor = self.clap(self.log_mel(self.power(waveforms.float()))[:, None]).last_hidden_state
        return grid

    def class_scores(self, states: Float[Tensor, "clips dim rows frames"]) -> Float[Tensor, "clips frames classes"]:
        """Score (before the sigmoid) of every class at every time step."""
        scores: Tensor = self.tscam_conv(states)
        return scores[:, :, 0].mT
