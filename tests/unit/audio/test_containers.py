"""No header is believed: files whose stated length is wrong, missing or that of a part are decoded to their end, and
files that have lost sound are refused. All files are made here."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from earwise import audio
from earwise.errors import AudioError
from sound_files import write_with_ffmpeg

RATE = 16000
SOUND = np.repeat(np.random.default_rng(3).uniform(-0.5, 0.5, 300).astype(np.float32), 100)  # 30,000 samples
SECONDS = len(SOUND) / RATE


def encoded(kind: str, samples: np.ndarray = SOUND, rate: int = RATE, **options: object) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


def mp3(*, xing: bool = True, id3: bool = False, variable: bool = False, rate: int = RATE) -> bytes:
    """An MP3 file of `SOUND`; the variable bit rate begins low, so that the first frame says little of the others."""
    buffer = io.BytesIO()
    options = {"write_xing": str(int(xing)), "id3v2_version": "3" if id3 else "0"}
    quiet = np.concatenate([np.zeros(len(SOUND) // 3, np.float32), SOUND[: -(len(SOUND) // 3)]])
    samples = quiet if variable else SOUND
    with av.open(buffer, "w", format="mp3", options=options) as output:
        stream = output.add_stream("libmp3lame", rate=rate, layout="mono")
        if variable:
            stream.codec_context.options = {"q": "2"}
            stream.codec_context.qscale = True
            stream.codec_context.global_quality = 2 * 118
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def id3v2(size: int) -> bytes:
    sizes = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + sizes + bytes(size)


def wav(riff: int | None = None, data: int | None = None, tail: bytes = b"") -> bytes:
    """A WAV file of `SOUND` with these stated sizes."""
    samples = (SOUND * 32767).astype("<i2").tobytes()
    riff = 36 + len(samples) + len(tail) if riff is None else riff
    data = len(samples) if data is None else data
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form + struct.pack("<4sI", b"data", data) + samples + tail


def unstated_flac() -> bytes:
    """FLAC whose number of samples is 0, as a pipe leaves it (36 bits from the middle of byte 21 on)."""
    data = bytearray(encoded("FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def from_ffmpeg(name: str, codec: str, container: str | None = None, **options: int) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        rate = 48000 if codec == "libopus" else RATE
        path = write_with_ffmpeg(folder / name, SOUND, rate, codec=codec, container=container, **options)
        return path.read_bytes()

    return make


TWO, WHOLE, PADDED = 2 * SECONDS, SECONDS, (SECONDS, SECONDS + 0.12)
DECODED: dict[str, tuple[bytes, float | tuple[float, float]]] = {
    "wav": (wav(), WHOLE),
    "wav, RIFF size too large by 8": (wav(riff=36 + 60000 + 8), WHOLE),
    "wav, RIFF size too large by much": (wav(riff=10**8), WHOLE),
    "wav, RIFF size 0": (wav(riff=0), WHOLE),
    "wav, data size 0": (wav(data=0), WHOLE),
    "wav, all sizes 0": (wav(riff=0, data=0), WHOLE),
    "wav, all sizes ff": (wav(riff=0xFFFFFFFF, data=0xFFFFFFFF), WHOLE),
    "wav, sizes of int max": (wav(riff=0x7FFFFFFF, data=0x7FFFFFFF - 36), WHOLE),
    "wav, sizes of sox": (wav(riff=0x7FFFF024, data=0x7FFFF000), WHOLE),
    "wav, data size of the file": (wav(data=60044), WHOLE),
    "wav, data size of the file but 8": (wav(data=60036), WHOLE),
    "wav, chunk after the samples": (wav(tail=b"LIST" + struct.pack("<I", 4) + b"INFO"), WHOLE),
    "wav, long chunk after the samples": (wav(tail=b"junk" + struct.pack("<I", 9000) + bytes(9000)), WHOLE),
    "wav, some bytes after the samples": (wav(tail=b"\1\2\3" * 7), WHOLE),
    "wav after an ID3 tag": (id3v2(1000) + wav(), WHOLE),
    "wav and wav": (wav() + wav(), TWO),
    "wav and wav of another rate": (wav() + encoded("WAV", SOUND, 8000), 3 * SECONDS),
    "rf64": (encoded("RF64"), WHOLE),
    "w64": (encoded("W64"), WHOLE),
    "aiff": (encoded("AIFF"), WHOLE),
    "aiff, FORM size too large": (encoded("AIFF")[:4] + struct.pack(">I", 10**7) + encoded("AIFF")[8:], WHOLE),
    "au of unstated size": (encoded("AU")[:8] + b"\xff" * 4 + encoded("AU")[12:], WHOLE),
    "flac": (encoded("FLAC"), WHOLE),
    "flac of unstated length": (unstated_flac(), WHOLE),
    "flac and flac": (encoded("FLAC") + encoded("FLAC"), TWO),
    "flac of unstated length, after an ID3 tag": (id3v2(50) + unstated_flac(), WHOLE),
    "ogg": (encoded("OGG", subtype="VORBIS"), WHOLE),
    "ogg and ogg": (encoded("OGG", subtype="VORBIS") + encoded("OGG", subtype="VORBIS"), TWO),
    "opus and vorbis": (encoded("OGG", subtype="OPUS") + encoded("OGG", subtype="VORBIS"), TWO),
    "mp3": (mp3(), WHOLE),
    "mp3 with ID3 tag": (mp3(id3=True), WHOLE),
    "mp3 with large ID3 tag": (id3v2(150_000) + mp3(), WHOLE),
    "mp3 with ID3v1 tag": (mp3() + b"TAG" + bytes(125), WHOLE),
    "mp3 of variable rate": (mp3(variable=True), WHOLE),
    "mp3 without Xing frame": (mp3(xing=False), PADDED),
    "mp3 without Xing frame, with large ID3 tag": (id3v2(150_000) + mp3(xing=False), PADDED),
    "mp3 without Xing frame, with ID3v1 tag": (mp3(xing=False) + b"TAG" + bytes(125), PADDED),
    "mp3 without Xing frame at 44.1 kHz": (mp3(xing=False, rate=44100), (30000 / 44100, 30000 / 44100 + 0.06)),
    "mp3 of variable rate without Xing frame": (mp3(xing=False, variable=True), PADDED),
    "mp3 and mp3": (mp3() + mp3(), TWO),
    "mp3 and mp3, both with ID3 tags": (mp3(id3=True) + b"TAG" + bytes(125) + mp3(id3=True), TWO),
    "mp3 with and without Xing frame": (mp3() + mp3(xing=False), (TWO, TWO + 0.12)),
    "mp3 without Xing frames, joined": (mp3(xing=False) * 2, (TWO, TWO + 0.24)),
    "mp3 with junk before": (b"\0junk\xff\xfb" * 40 + mp3(), PADDED),
}  # fmt: skip
"""Files that hold all of their sound, and how long they sound (or at least and at most)."""
DECODED_FFMPEG = {
    "m4a": (from_ffmpeg("a.m4a", "aac"), WHOLE),
    "webm (48 kHz)": (from_ffmpeg("a.webm", "libopus"), WHOLE / 3),
    "aac": (from_ffmpeg("a.aac", "aac", "adts"), PADDED),
    "wma": (from_ffmpeg("a.wma", "wmav2", "asf"), (WHOLE - 0.13, WHOLE + 0.12)),
}


@pytest.mark.parametrize("kind", DECODED)
def test_all_of_the_sound_is_decoded(kind: str) -> None:
    data, seconds = DECODED[kind]
    low, high = seconds if isinstance(seconds, tuple) else (seconds - 2 / RATE, seconds + 2 / RATE)
    waveform = audio.decode_bytes(data)
    assert low <= len(waveform) / RATE <= high
    if kind.startswith(("wav", "flac", "rf64", "w64", "aiff", "au")):
        np.testing.assert_allclose(waveform[: len(SOUND)], SOUND, atol=1e-4)
    elif "44.1" not in kind:
        assert np.abs(np.correlate(waveform[-4000:], waveform[-4000:])).item() > 1, "the end is not silent"


@pytest.mark.parametrize("kind", DECODED_FFMPEG)
def test_all_of_the_sound_is_decoded_by_ffmpeg(kind: str, tmp_path: Path) -> None:
    make, seconds = DECODED_FFMPEG[kind]
    low, high = seconds if isinstance(seconds, tuple) else (seconds - 2 / RATE, seconds + 2 / RATE)
    assert low <= len(audio.decode_bytes(make(tmp_path))) / RATE <= high


def without(data: bytes, first: int, count: int) -> bytes:
    return data[:first] + data[first + count :]


OGG = encoded("OGG", np.random.default_rng(0).uniform(-0.5, 0.5, 90000), subtype="VORBIS")
PAGES = [place for place in range(len(OGG)) if OGG[place : place + 5] == b"OggS\x00"]
REFUSED: dict[str, tuple[bytes, str]] = {
    "wav, cut": (wav()[:40000], r"is truncated \(39,956 of 60,000 bytes of samples\)"),
    "wav, cut in its header": (wav()[:30], "is truncated"),
    "wav and cut wav": (wav() + wav()[:40000], "is truncated"),
    "wav, data size too small": (wav(data=30000), "30,000 bytes follow that are none of its chunks"),
    "wav without samples": (wav()[:44][:40] + bytes(4), "holds no samples"),
    "aiff, cut": (encoded("AIFF")[:40000], "is truncated"),
    "w64, cut": (encoded("W64")[:40000], "is truncated"),
    "caf, cut": (encoded("CAF")[:40000], "is truncated"),
    "au, cut": (encoded("AU")[:40000], "is truncated"),
    "rf64, cut": (encoded("RF64")[:40000], "is truncated"),
    "flac, cut": (encoded("FLAC")[:2000], "truncated or damaged"),
    "flac of unstated length, cut": (unstated_flac()[:2500], "truncated or damaged"),
    "flac and cut flac": (encoded("FLAC") + encoded("FLAC")[:2000], "truncated or damaged"),
    "ogg, cut in a page": (OGG[:-100], "is truncated"),
    "ogg without a page": (without(OGG, PAGES[3], PAGES[4] - PAGES[3]), r"is damaged \(page 4 follows page 2"),
    "ogg with a broken page": (OGG[: PAGES[3]] + b"\0" * 9 + OGG[PAGES[3] + 9 :], "is damaged"),
    "mp3, cut in a frame": (mp3()[:-100], "is truncated"),
    "mp3, cut in half": (mp3()[: len(mp3()) // 2], "is truncated"),
    "mp3 without Xing frame, cut in a frame": (mp3(xing=False)[:-100], "its last frame"),
    "mp3 with a hole": (without(mp3(xing=False), 5000, 333), "is damaged after"),
    "mp3 and cut mp3": (mp3() + mp3()[:-100], "is truncated"),
    "wav of 1 Hz": (wav()[:24] + struct.pack("<I", 1) + wav()[28:], "states a sample rate of 1 Hz"),
    "a page that says not found": (b"<html><body>404</body></html>", "is a web page"),
    "a pointer to a large file": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs"),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is no audio"),
    "a playlist of segments": (
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "is no audio",
    ),
    "a list for concatenation": (b"ffconcat version 1.0\nfile /etc/hostname\n", "is no audio"),
    "a session description": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n", "is no audio"),
    "a manifest of DASH": (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', "is no audio"),
}
"""Files that have lost sound, or are none, and what is said."""


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_lost_sound_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    data, message = REFUSED[kind]
    (tmp_path / "a").write_bytes(data)
    for read in (lambda: audio.decode_bytes(data, "a"), lambda: audio.decode(tmp_path / "a", max_s=30)):
        with pytest.raises(AudioError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value) and ";" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.m4a", "aac", None), ("a.mkv", "flac", "matroska"), ("a.wma", "wmav2", "asf"), ("a.aac", "aac", "adts"),
        ("a.webm", "libopus", "webm"), ("a.wv", "wavpack", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_cut_files_of_ffmpeg_are_refused(
    tmp_path: Path, name: str, codec: str, container: str | None, keep: float
) -> None:
    rate = 48000 if codec == "libopus" else RATE
    path = write_with_ffmpeg(tmp_path / name, np.tile(SOUND, 3), rate, codec=codec, container=container)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(AudioError):
        audio.decode(path)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        pytest.param("a.m4a", "aac", {"movflags": "faststart"}, id="m4a with its index first"),
        pytest.param("a.m4a", "aac", {}, id="m4a with its index last"),
        pytest.param("a.mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}, id="fragments"),
        pytest.param("a.wma", "wmav2", {}, id="wma"),
    ],
)
def test_no_cut_is_too_small_to_be_seen(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write_with_ffmpeg(tmp_path / name, SOUND, RATE, codec=codec, options=options)
    data = path.read_bytes()
    whole = audio.decode_bytes(data)
    for lost in (1, 2, 7, 30, 100, 300, 700, 1500):
        try:
            heard = audio.decode_bytes(data[:-lost])
        except AudioError:
            continue
        np.testing.assert_array_equal(heard, whole)  # what was cut held no sound


def test_a_wav_header_without_a_number_of_bits_is_refused() -> None:
    data = wav()
    short = data[:16] + struct.pack("<I", 14) + data[20:34] + data[36:]
    with pytest.raises(AudioError, match="does not say how many bits a sample has"):
        audio.decode_bytes(short)
    bytes_form = struct.pack("<4sIHHIIH", b"fmt ", 14, 1, 1, RATE, RATE, 1)
    samples = (SOUND * 127 + 128).astype(np.uint8).tobytes()
    eight_bits = struct.pack("<4sI4s", b"RIFF", 34 + len(samples), b"WAVE") + bytes_form
    eight_bits += struct.pack("<4sI", b"data", len(samples)) + samples
    assert np.corrcoef(audio.decode_bytes(eight_bits), SOUND)[0, 1] > 0.999


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull", id="lfs"),
        pytest.param(b"<!DOCTYPE html><html>log in</html>", "is a web page", id="page"),
    ],
)
def test_what_stands_in_place_of_a_file_is_named(content: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.decode_bytes(content, "a.mp3")


def test_a_video_gives_its_sound_and_one_without_sound_is_told(tmp_path: Path) -> None:
    for has_sound in (True, False):
        path = tmp_path / f"{has_sound}.mp4"
        with av.open(str(path), "w") as output:
            video = output.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            if has_sound:
                sound = output.add_stream("aac", rate=RATE, layout="mono")
            for number in range(10):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24")
                output.mux(video.encode(picture))
            output.mux(video.encode(None))
            if has_sound:
                frame = av.AudioFrame.from_ndarray(SOUND.reshape(1, -1), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = RATE, 0
                output.mux(sound.encode(frame))
                output.mux(sound.encode(None))
    waveform = audio.decode(tmp_path / "True.mp4")
    assert abs(len(waveform) - len(SOUND)) < 20 and np.corrcoef(waveform[:29000], SOUND[:29000])[0, 1] > 0.98
    with pytest.raises(AudioError, match="holds no sound"):
        audio.decode(tmp_path / "False.mp4")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_raise_nothing_else_and_end(seed: int, tmp_path: Path) -> None:
    """Bytes are changed, taken out or put in at random places, in files of every decoder."""
    rng = np.random.default_rng(seed)
    files = [data for data, _ in DECODED.values()] + [make(tmp_path) for make, _ in DECODED_FFMPEG.values()]
    for data in files:
        damaged, place = bytearray(data), int(rng.integers(len(data)))
        if seed == 0:
            damaged[place : place + 20] = rng.bytes(20)
        elif seed == 1:
            del damaged[place : place + 500]
        else:
            for header_place in rng.integers(0, min(len(data), 200), 3):
                damaged[header_place] = rng.integers(256)
        try:
            assert len(audio.decode_bytes(bytes(damaged), max_s=30)) <= 30 * RATE
        except AudioError as error:
            assert "\n" not in str(error)
