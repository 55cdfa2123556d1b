"""Every broken file raises an error of one line that names the file and the remedy. The files are made here."""

import numpy as np
import pytest
import soundfile

from earwise import audio
from earwise.audio import readers
from earwise.errors import AudioError


def noise(samples=16000, channels=1):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)


def cut(path, keep=0.6):
    soundfile.write(path, noise(), 16000)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def missing(folder):
    return folder / "missing.wav"


def a_folder(folder):
    return folder


def empty(folder):
    path = folder / "empty.wav"
    path.touch()
    return path


def truncated_wav(folder):
    return cut(folder / "cut.wav")


def truncated_flac(folder):
    return cut(folder / "cut.flac")


def truncated_ogg(folder):
    return cut(folder / "cut.ogg")


def truncated_aiff(folder):
    return cut(folder / "cut.aiff")


def truncated_header(folder):
    return cut(folder / "head.wav", keep=0.0005)


def no_samples(folder):
    path = folder / "nothing.wav"
    soundfile.write(path, noise(0), 16000)
    return path


def not_a_number(folder):
    waveform = noise(channels=2)
    waveform[9000, 1] = np.nan
    soundfile.write(folder / "nan.wav", waveform, 16000, subtype="FLOAT")
    return folder / "nan.wav"


def infinite(folder):
    waveform = noise()
    waveform[5] = -np.inf
    soundfile.write(folder / "inf.wav", waveform, 16000, subtype="FLOAT")
    return folder / "inf.wav"


def unscaled(folder):
    soundfile.write(folder / "loud.wav", noise() * 65535, 16000, subtype="FLOAT")
    return folder / "loud.wav"


def text(folder):
    path = folder / "notes.mp3"
    path.write_text("these are no sounds\n" * 100)
    return path


def picture(folder):
    path = folder / "picture.wav"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    return path


def raw(folder):
    path = folder / "samples.raw"
    path.write_bytes(noise().tobytes())
    return path


CASES = [
    (missing, "no such file"),
    (a_folder, "is a folder"),
    (empty, "is empty"),
    (truncated_wav, "is truncated"),
    (truncated_flac, "is truncated"),
    (truncated_ogg, "is truncated"),
    (truncated_aiff, "is truncated"),
    (truncated_header, "is truncated"),
    (no_samples, "holds no samples"),
    (not_a_number, "NaN or infinite"),
    (infinite, "NaN or infinite"),
    (unscaled, "divide by full scale"),
    (text, "is no audio"),
    (picture, "is no audio"),
    (raw, "is no audio"),
]


@pytest.mark.parametrize(("make", "words"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_one_clear_line(tmp_path, make, words):
    path = make(tmp_path)
    with pytest.raises(AudioError) as caught:
        audio.decode(path, 16000, max_s=30)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message and ";" in message


@pytest.mark.parametrize("make", [truncated_wav, truncated_flac, truncated_ogg, no_samples, text, picture])
def test_uploads_are_checked_like_files(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(AudioError, match=r"^upload: "):
        audio.decode_bytes(path.read_bytes())


def test_empty_upload():
    with pytest.raises(AudioError, match=r"^clip: is empty"):
        audio.decode_bytes(b"", "clip")


def test_one_hour_is_refused_without_being_decoded(tmp_path, monkeypatch):
    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", samplerate=1000, channels=1, subtype="PCM_U8") as sound:
        sound.write(np.zeros(3_600_000, dtype=np.float32))

    def never(*_):
        raise AssertionError("was decoded")

    monkeypatch.setattr(readers.SoundfileReader, "blocks", never)
    with pytest.raises(AudioError, match=r"lasts 3600\.00 s, the longest allowed is 30 s"):
        audio.decode(path, max_s=30)


def test_every_cut_inside_an_ogg_page_is_refused(tmp_path):
    """A cut inside a page is refused; a cut exactly between pages gives a valid, shorter file."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, noise(), 16000)
    whole = path.read_bytes()
    pages = {start for start in range(len(whole)) if whole[start : start + 5] == b"OggS\x00"}
    for keep in range(len(whole) // 2, len(whole), 97):
        if keep not in pages:
            with pytest.raises(AudioError):
                audio.decode_bytes(whole[:keep])
