"""Decoding: the right samples and the right length for any sample rate, number of channels and file format."""

import numpy as np
import pytest
import soundfile

from earwise import audio
from earwise.audio import readers
from earwise.errors import AudioError, ConfigError


def tone(duration_s=1.0, rate=16000, hz=440.0, peak=0.5):
    time = np.arange(audio.num_samples(duration_s, rate)) / rate
    return (peak * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def save(path, waveform, rate=16000, **format_options):
    soundfile.write(path, waveform, rate, **format_options)
    return path


def test_same_rate_is_untouched(tmp_path):
    path = save(tmp_path / "a.wav", tone(), subtype="FLOAT")
    waveform = audio.decode(path)
    assert waveform.dtype == np.float32 and waveform.shape == (16000,)
    np.testing.assert_array_equal(waveform, tone())


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 192000])
def test_resampled_tone_is_the_tone(tmp_path, rate):
    waveform = audio.decode(save(tmp_path / "a.flac", tone(1.0, rate), rate))
    assert len(waveform) == 16000
    np.testing.assert_allclose(waveform[800:-800], tone()[800:-800], atol=2e-3)


def test_reading_in_blocks_changes_nothing(tmp_path, monkeypatch):
    path = save(tmp_path / "a.wav", np.stack([tone(1, 44100), tone(1, 44100, 880)], 1), 44100, subtype="FLOAT")
    expected = audio.decode(path)
    monkeypatch.setattr(readers, "BLOCK_SAMPLES", 1000)
    np.testing.assert_allclose(audio.decode(path), expected, atol=1e-6)


def test_eight_channels_at_192_khz_are_averaged_or_the_first_is_taken(tmp_path):
    waveform = np.stack([tone(0.5, 192000) * (number == 0) for number in range(8)], axis=1)
    path = save(tmp_path / "a.wav", waveform, 192000, subtype="FLOAT")
    first, mean = audio.decode(path, channel="first"), audio.decode(path)
    assert len(mean) == 8000
    np.testing.assert_allclose(mean, first / 8, atol=1e-5)
    np.testing.assert_allclose(first[400:-400], tone(0.5)[400:-400], atol=2e-3)


def test_long_audio(tmp_path):
    path = save(tmp_path / "a.wav", tone(3.0), subtype="FLOAT")
    with pytest.raises(
        AudioError, match=r"a\.wav: lasts 3\.00 s, the longest allowed is 2 s; .*--long-audio .*truncate"
    ):
        audio.decode(path, max_s=2.0)
    assert audio.decode(path, max_s=3.0).shape == (48000,)
    truncated = audio.decode(path, max_s=2.0, long_audio="truncate")
    np.testing.assert_array_equal(truncated, tone(3.0)[:32000])
    parts = audio.chunks(audio.decode(path, max_s=2.0, long_audio="chunk"), 16000, 2.0)
    assert [len(part) for part in parts] == [24000, 24000]
    np.testing.assert_array_equal(np.concatenate(parts), tone(3.0))
    assert audio.probe(path).duration_s == 3.0


def test_truncating_at_another_rate_gives_the_length_of_max_s(tmp_path):
    path = save(tmp_path / "a.wav", tone(3.0, 44100), 44100)
    assert audio.decode(path, max_s=1.5, long_audio="truncate").shape == (24000,)


def test_settings_are_checked(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    with pytest.raises(ConfigError, match="long_audio 'cut' is none of error, truncate, chunk"):
        audio.decode(path, long_audio="cut")
    with pytest.raises(ConfigError, match="channel 'left'"):
        audio.decode(path, channel="left")
    with pytest.raises(ConfigError, match="max_s 0"):
        audio.chunks(tone(), 16000, 0)


def test_shortest_clip_is_one_sample(tmp_path):
    assert audio.decode(save(tmp_path / "a.wav", tone()[:1], 192000)).shape == (1,)


def test_silence_is_recognised_but_not_refused(tmp_path):
    waveform = audio.decode(save(tmp_path / "a.wav", np.zeros(1600)))
    assert audio.is_silent(waveform) and audio.is_silent(waveform[:0])
    assert not audio.is_silent(tone(peak=1e-3))


def test_encoded_files_decode_to_the_same_samples(tmp_path):
    waveform = np.concatenate([tone(2.5), np.float32([3.0])])
    assert audio.encode_wav(waveform, 16000) == audio.encode_wav(waveform, 16000)
    decoded = audio.decode_bytes(audio.encode_wav(waveform, 16000))
    np.testing.assert_allclose(decoded, np.clip(waveform, -1, 1), atol=2e-4)
    lossy = audio.decode_bytes(audio.encode_ogg(tone(2.5), 16000))
    assert len(lossy) == 40000 and np.corrcoef(lossy, tone(2.5))[0, 1] > 0.99


def test_hashes(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    copy = tmp_path / "b.wav"
    copy.write_bytes(path.read_bytes())
    assert audio.audio_sha256(path) == audio.audio_sha256(copy)
    assert audio.waveform_sha256(tone()) == audio.waveform_sha256(tone().astype(">f4"))
    assert audio.waveform_sha256(tone()) != audio.waveform_sha256(tone(hz=441))
    with pytest.raises(AudioError, match="cannot be read"):
        audio.audio_sha256(tmp_path / "none.wav")


@pytest.mark.parametrize(
    "as_array", [lambda x: x, lambda x: x.astype(np.float64), lambda x: (x * 32768).astype(np.int16)]
)
def test_arrays_of_any_type_and_layout_become_the_decoded_file(tmp_path, as_array):
    stereo = np.stack([tone(1.0, 44100), tone(1.0, 44100, 880)], axis=1)
    decoded = audio.decode(save(tmp_path / "a.wav", stereo, 44100, subtype="FLOAT"))
    for samples in (as_array(stereo), as_array(stereo).T):
        np.testing.assert_allclose(audio.to_waveform(samples, 44100, 16000), decoded, atol=1e-4)
    assert audio.to_waveform(tone(), 16000, 16000).tolist() == tone().tolist()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.float32([0, np.nan]), "NaN"),
        (np.float32([0, 20000]), "full scale"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(samples, message):
    with pytest.raises(AudioError, match=message):
        audio.to_waveform(samples, 16000, 16000)
