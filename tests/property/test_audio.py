"""Sample counts, resampled lengths and chunks, for any duration and sample rate."""

import io

import numpy as np
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from earwise import audio

RATES = st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000])


@settings(deadline=None)
@given(st.integers(0, 10**9), RATES)
def test_samples_to_seconds_and_back_is_exact(samples, rate):
    assert audio.num_samples(audio.seconds(samples, rate), rate) == samples


@settings(deadline=None)
@given(st.floats(0, 1e5), RATES)
def test_rounding_is_to_the_nearest_sample(duration_s, rate):
    assert abs(audio.seconds(audio.num_samples(duration_s, rate), rate) - duration_s) <= 0.5000001 / rate


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20_000), RATES, st.integers(1, 3), st.integers(0, 9))
def test_decoded_length_is_the_duration(samples, rate, channels, seed):
    waveform = np.random.default_rng(seed).uniform(-1, 1, (samples, channels)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="WAV", subtype="FLOAT")
    decoded = audio.decode_bytes(buffer.getvalue(), sample_rate=16000)
    assert len(decoded) == max(1, audio.num_samples(samples / rate, 16000))
    assert decoded.dtype == np.float32 and np.isfinite(decoded).all()


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 100))
def test_concatenated_chunks_are_the_whole(samples, step):
    waveform = np.arange(samples, dtype=np.float32)
    chunks = audio.chunks(waveform, 100, step / 100)
    np.testing.assert_array_equal(np.concatenate(chunks), waveform)
    assert len(chunks) == max(1, -(-samples // step))
    assert len(chunks[0]) <= step and len(chunks[0]) - len(chunks[-1]) <= 1
