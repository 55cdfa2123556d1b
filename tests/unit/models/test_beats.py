"""BEATs' front end and positions, by hand; a golden test compares every stage with the official model."""

import numpy as np
import pytest
import torch

from builders import tone
from earwise.models.parts.beats import Beats, BeatsConfig, RelativePositionBias, fbank, fold_weight_norm, token_count

SMALL = BeatsConfig(patch_dim=12, layers=2, dim=24, ffn_dim=32, heads=2, conv_kernel=16, conv_groups=4)


def test_fbank_of_a_tone_and_of_silence() -> None:
    sine = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)).astype(np.float32)
    features = fbank(sine)
    assert features.shape == (98, 128)  # 1 + (16000 - 400) // 160
    # 1127 ln(1 + f / 700): 20 Hz is 31.7 mel, 8 kHz 2840.0, so a filter every 21.77 mel; 1 kHz (1000.0 mel) lies
    # between the peaks of filters 43 and 44, counted from 0.
    assert set(features.argmax(1).tolist()) <= {43, 44}
    louder = fbank(2 * sine)
    assert float((louder - features)[:, 43].mean()) == pytest.approx(np.log(4) / 13.11164, abs=1e-5)
    silence = fbank(np.zeros(400, np.float32))
    assert silence.shape == (1, 128)
    assert silence.unique().tolist() == pytest.approx([(np.log(2.0**-23) - 15.41663) / 13.11164])


def test_fbank_ignores_an_offset_and_is_independent_between_windows() -> None:
    waveform = tone(0.3)
    torch.testing.assert_close(fbank(waveform + np.float32(0.25)), fbank(waveform), atol=1e-3, rtol=0)
    torch.testing.assert_close(fbank(waveform[160:]), fbank(waveform)[1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("frames", "count"), [(15, 0), (16, 8), (98, 48), (2998, 1496)])
def test_token_count(frames: int, count: int) -> None:
    assert token_count(frames) == count


def test_buckets_of_distances() -> None:
    near = {0: 0, -1: 1, 1: 161, -79: 79, 79: 239}
    # 80 (1 + log10(distance / 80)): 252 gives 119.86, 253 gives 120.002; from 800 on the last of each half.
    far = {-80: 80, -252: 119, -253: 120, 253: 280, -799: 159, -800: 159, 5000: 319}
    expected = near | far
    assert RelativePositionBias(320, 800, 2).bucket(torch.tensor(list(expected))).tolist() == list(expected.values())


def test_fold_weight_norm_equals_torch() -> None:
    torch.manual_seed(0)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3), dim=2)
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(1.7)
    gain, direction = normed.parametrizations.weight.original0, normed.parametrizations.weight.original1
    torch.testing.assert_close(fold_weight_norm(gain, direction), normed.weight)


@torch.no_grad()
def test_padding_has_no_effect() -> None:
    torch.manual_seed(0)
    encoder = Beats(SMALL).eval()
    short, long = fbank(tone(0.8)), fbank(tone(1.5, 700.0, 1))
    batch = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    counts = torch.tensor([token_count(len(short)), token_count(len(long))])
    token_mask = torch.arange(int(counts.max())) < counts[:, None]
    together = encoder(batch, token_mask)
    for row, features in enumerate((short, long)):
        torch.testing.assert_close(together[row, : counts[row]], encoder(features[None])[0], atol=1e-5, rtol=1e-5)
    assert float((encoder(batch)[0, : counts[0]] - together[0, : counts[0]]).abs().max()) > 1e-3
