"""Formats x rates x channels x lengths: the decoded length and sound are those of the source.

Files are written by FFmpeg's libraries and by libsndfile; what is compared is the sound that went in.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from earwise import audio
from sound_files import write_with_ffmpeg

CODECS = {
    "m4a": ("aac", None), "mp4": ("aac", None), "mov": ("pcm_s16le", None), "aac": ("aac", "adts"),
    "webm": ("libopus", None), "mka": ("libopus", "matroska"), "mkv": ("flac", "matroska"), "opus": ("libopus", "ogg"),
    "wma": ("wmav2", "asf"), "mp3": ("libmp3lame", None), "mp2": ("mp2", None),
    "flac": ("flac", None), "alac.m4a": ("alac", "ipod"), "wav": ("pcm_s24le", None), "aiff": ("pcm_s16be", None),
    "caf": ("pcm_s16le", None), "au": ("pcm_s16be", None), "ac3": ("ac3", None), "wv": ("wavpack", None),
}  # fmt: skip
"""Ending -> encoder and muxer."""
EXACT = ("mov", "flac", "alac.m4a", "wav", "aiff", "caf", "au", "wv", "mkv")
"""Formats that keep every sample."""
STATES_DELAY = ("m4a", "mp4", "webm", "opus", "mka", "mp3", *EXACT)
"""Formats that say how many samples the encoder added before and after the sound."""
PADDING_S = 0.15
"""Other formats are longer than the sound by less than this: up to two frames before and after it."""


def melody(duration_s: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Tones below 1 kHz that change every 50 ms, `(samples, channels)`: shifts and missing parts are seen."""
    rng = np.random.default_rng(seed)
    count = round(duration_s * rate)
    steps = rng.uniform(150, 900, int(duration_s / 0.05) + 1)
    frequency = np.repeat(steps, round(0.05 * rate) + 1)[:count]
    wave = 0.4 * np.sin(2 * np.pi * np.cumsum(frequency) / rate)
    return np.stack([wave * (1 - 0.3 * number / channels) for number in range(channels)], axis=1).astype(np.float32)


def similarity(decoded: np.ndarray, source: np.ndarray, max_lag: int) -> float:
    """Largest correlation of the source with the decoded samples, shifted by up to `max_lag`."""
    size = 1 << (len(decoded) + len(source)).bit_length()
    product = np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(source, size)), size)
    lag = int(np.argmax(np.concatenate([product[: max_lag + 1], product[-max_lag:]])))
    lag = lag if lag <= max_lag else lag - 2 * max_lag - 1
    shifted = decoded[max(0, lag) :]
    other = source[max(0, -lag) :]
    count = min(len(shifted), len(other))
    return float(np.corrcoef(shifted[:count], other[:count])[0, 1])


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize(("duration_s", "rate", "channels"), [(1.3, 16000, 1), (2.0371, 44100, 2), (0.4, 48000, 1)])
def test_length_and_sound_are_those_of_the_source(
    tmp_path: Path, ending: str, duration_s: float, rate: int, channels: int
) -> None:
    codec, container = CODECS[ending]
    if ending in ("ac3", "mp2") and rate == 16000:
        rate = 32000
    if codec == "libopus":
        rate = 48000
    source = melody(duration_s, rate, channels)
    path = write_with_ffmpeg(tmp_path / f"a.{ending}", source, rate, codec=codec, container=container)
    decoded = audio.decode(path)
    expected = soxr.resample(source.mean(axis=1), rate, 16000)
    extra_s = (len(decoded) - len(expected)) / 16000
    if ending in STATES_DELAY:
        assert abs(extra_s) <= (1.5 / 16000 if ending in EXACT else 0.001), extra_s
    else:
        # FFmpeg's WMA encoder leaves out the end of the sound, less than a frame of 2048 samples.
        assert (-2048 / rate if ending == "wma" else 0) <= extra_s < PADDING_S, extra_s
    assert similarity(decoded, expected, round(0.08 * 16000)) > (0.999 if ending in EXACT else 0.97)
    info = audio.probe(path)
    assert info.channels == channels and abs(info.duration_s - len(decoded) / 16000) < 0.001
    assert audio.decode_bytes(path.read_bytes()).tobytes() == decoded.tobytes()


@pytest.mark.parametrize("ending", ["m4a", "webm", "wma", "mp3", "aac", "opus", "flac", "wv"])
def test_blocks_truncation_and_limits_are_the_same_for_every_decoder(tmp_path: Path, ending: str) -> None:
    codec, container = CODECS[ending]
    path = write_with_ffmpeg(tmp_path / f"a.{ending}", melody(2.0, 48000), 48000, codec=codec, container=container)
    whole = audio.decode(path)
    truncated = audio.decode(path, max_s=1.25, long_audio="truncate")
    assert len(truncated) == 20000
    np.testing.assert_allclose(truncated[:-200], whole[: len(truncated) - 200], atol=1e-4)
    np.testing.assert_array_equal(audio.decode(path, max_s=1.25, long_audio="chunk"), whole)
    with pytest.raises(audio.decoding.AudioError, match=r"the longest allowed is 1\.25 s"):
        audio.decode(path, max_s=1.25)
    assert len(audio.decode(path, max_s=len(whole) / 16000 + 0.001)) == len(whole)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "CAF", "AU", "RF64"])
@pytest.mark.parametrize(
    ("rate", "channels", "count"), [(8000, 1, 1), (11025, 2, 997), (44100, 6, 44101), (96000, 1, 9)]
)
def test_any_number_of_samples(kind: str, rate: int, channels: int, count: int) -> None:
    if kind == "MP3" and (channels > 2 or rate > 48000):
        pytest.skip("MP3 has at most two channels and 48 kHz")
    samples = melody(count / rate, rate, channels)[:count]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    decoded = audio.decode_bytes(buffer.getvalue())
    if kind != "MP3":
        assert len(decoded) == max(1, audio.num_samples(count / rate, 16000))
    else:
        assert 0 <= len(decoded) - audio.num_samples(count / rate, 16000) <= 0.2 * 16000
