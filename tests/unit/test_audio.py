"""Decoding: right samples, right length, whatever the rate, the channels and the container."""

import numpy as np
import pytest
import soundfile

from earwise import audio
from earwise.errors import AudioError, ConfigError


def tone(duration_s=1.0, rate=16000, hz=440.0, peak=0.5):
    time = np.arange(audio.num_samples(duration_s, rate)) / rate
    return (peak * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def save(path, wave, rate=16000, **how):
    soundfile.write(path, wave, rate, **how)
    return path


def test_same_rate_is_untouched(tmp_path):
    path = save(tmp_path / "a.wav", tone(), subtype="FLOAT")
    wave = audio.decode(path)
    assert wave.dtype == np.float32 and wave.shape == (16000,)
    np.testing.assert_array_equal(wave, tone())


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 192000])
def test_resampled_tone_is_the_tone(tmp_path, rate):
    wave = audio.decode(save(tmp_path / "a.flac", tone(1.0, rate), rate))
    assert len(wave) == 16000
    np.testing.assert_allclose(wave[800:-800], tone()[800:-800], atol=2e-3)


def test_blocks_do_not_show(tmp_path, monkeypatch):
    path = save(tmp_path / "a.wav", np.stack([tone(1, 44100), tone(1, 44100, 880)], 1), 44100, subtype="FLOAT")
    whole = audio.decode(path)
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1000)
    np.testing.assert_allclose(audio.decode(path), whole, atol=1e-6)


def test_eight_channels_at_192_khz_are_averaged_or_the_first_is_taken(tmp_path):
    wave = np.stack([tone(0.5, 192000) * (number == 0) for number in range(8)], axis=1)
    path = save(tmp_path / "a.wav", wave, 192000, subtype="FLOAT")
    first, mean = audio.decode(path, channel="first"), audio.decode(path)
    assert len(mean) == 8000
    np.testing.assert_allclose(mean, first / 8, atol=1e-5)
    np.testing.assert_allclose(first[400:-400], tone(0.5)[400:-400], atol=2e-3)


def test_long_audio(tmp_path):
    path = save(tmp_path / "a.wav", tone(3.0), subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: lasts 3\.00 s, the longest allowed is 2 s; .*truncate"):
        audio.decode(path, max_s=2.0)
    assert audio.decode(path, max_s=3.0).shape == (48000,)
    cut = audio.decode(path, max_s=2.0, long_audio="truncate")
    np.testing.assert_array_equal(cut, tone(3.0)[:32000])
    pieces = audio.chunks(audio.decode(path, max_s=2.0, long_audio="chunk"), 16000, 2.0)
    assert [len(piece) for piece in pieces] == [24000, 24000]
    np.testing.assert_array_equal(np.concatenate(pieces), tone(3.0))
    assert audio.probe(path).duration_s == 3.0


def test_truncating_at_another_rate_gives_the_asked_length(tmp_path):
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


def test_silence_is_told_but_allowed(tmp_path):
    wave = audio.decode(save(tmp_path / "a.wav", np.zeros(1600)))
    assert audio.is_silent(wave) and audio.is_silent(wave[:0])
    assert not audio.is_silent(tone(peak=1e-3))


def test_encoded_files_come_back(tmp_path):
    wave = np.concatenate([tone(2.5), np.float32([3.0])])
    assert audio.encode_wav(wave, 16000) == audio.encode_wav(wave, 16000)
    back = audio.decode_bytes(audio.encode_wav(wave, 16000))
    np.testing.assert_allclose(back, np.clip(wave, -1, 1), atol=2e-4)
    lossy = audio.decode_bytes(audio.encode_ogg(tone(2.5), 16000))
    assert len(lossy) == 40000 and np.corrcoef(lossy, tone(2.5))[0, 1] > 0.99


def test_hashes(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    copy = tmp_path / "b.wav"
    copy.write_bytes(path.read_bytes())
    assert audio.audio_sha256(path) == audio.audio_sha256(copy)
    assert audio.wave_hash(tone()) == audio.wave_hash(tone().astype(">f4"))
    assert audio.wave_hash(tone()) != audio.wave_hash(tone(hz=441))
    with pytest.raises(AudioError, match="cannot be read"):
        audio.audio_sha256(tmp_path / "none.wav")
