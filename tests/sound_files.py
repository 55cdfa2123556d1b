"""Sound files made with FFmpeg's libraries (PyAV), for tests. No torch."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_with_ffmpeg(
    path: Path,
    waveform: np.ndarray,
    rate: int,
    *,
    codec: str,
    container: str | None = None,
    bit_rate: int = 128_000,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode samples `(samples,)` or `(samples, channels)` with FFmpeg's libraries.

    Args:
        path: File to write; its ending decides the container unless `container` names it.
        waveform: Samples in [-1, 1].
        rate: Sample rate in Hz.
        codec: Name of FFmpeg's encoder.
        container: Name of FFmpeg's muxer.
        bit_rate: Bits per second of lossy formats.
        options: Options of the muxer.
    """
    samples = waveform.reshape(len(waveform), -1).astype(np.float32)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if codec in ("aac", "ac3", "libmp3lame", "libopus", "mp2", "wmav2"):
            stream.bit_rate = bit_rate
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for start in range(0, len(samples), 1024):
            block = np.ascontiguousarray(samples[start : start + 1024].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for resampled in resampler.resample(frame):
                output.mux(stream.encode(resampled))
        for resampled in resampler.resample(None):
            output.mux(stream.encode(resampled))
        output.mux(stream.encode(None))
    return path
