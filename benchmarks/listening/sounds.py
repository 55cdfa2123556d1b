"""What a clip looks like, measured: for readers who cannot play it, and to describe where a model fails.

The figures are those of `earwise.datasets.labels.acoustics`, and the shares of a clip's energy in three bands, which is
what a spectrogram shows at first sight.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np

from earwise.audio import decode
from earwise.datasets.labels.acoustics import ClipAcoustics, measure
from earwise.types import Waveform

SAMPLE_RATE = 16000
NOTES = Path(__file__).with_name("spectrograms.json")
"""What is seen in the spectrograms of some clips, by file name: about the recording, not about any answer."""
BANDS_HZ = (300, 2000)
BAND_NAMES = ("below 300 Hz", "between 300 and 2,000 Hz", "above 2,000 Hz")


@dataclass(frozen=True, slots=True)
class Look:
    """Measurements of a clip."""

    acoustics: ClipAcoustics
    bands: tuple[float, ...]
    """Shares of the energy in the bands of `BAND_NAMES`."""

    def __str__(self) -> str:
        """The measurements in words."""
        measured, band = self.acoustics, int(np.argmax(self.bands))
        stretches = "one stretch" if measured.bursts == 1 else f"{measured.bursts} stretches"
        pitch = f"a steady pitch of {measured.pitch_hz:.0f} Hz" if measured.pitch_hz else "no steady pitch"
        return (
            f"{measured.sounding_s:.1f} s of sound in {stretches}, {measured.loudness_lufs:.0f} LUFS, {pitch}, "
            f"{self.bands[band]:.0%} of the energy {BAND_NAMES[band]}"
        ).replace("%", " %")


def look(path: Path) -> Look:
    """Measure a clip.

    Args:
        path: Audio file.
    """
    waveform = decode(path, SAMPLE_RATE)
    return Look(measure(waveform, SAMPLE_RATE), band_shares(waveform))


def band_shares(waveform: Waveform) -> tuple[float, ...]:
    """Shares of the energy below, between and above `BANDS_HZ`; zeros for silence."""
    power = np.square(np.abs(np.fft.rfft(waveform.astype(np.float64))))
    edges = np.searchsorted(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE), BANDS_HZ)
    sums = [float(part.sum()) for part in np.split(power, edges)]
    return tuple(part / sum(sums) if sum(sums) else 0.0 for part in sums)


def middle(looks: Sequence[Look]) -> tuple[float, float, float]:
    """Medians of some clips: seconds of sound, loudness in LUFS, share of the energy below 300 Hz."""
    return (
        median(clip.acoustics.sounding_s for clip in looks),
        median(clip.acoustics.loudness_lufs for clip in looks),
        median(clip.bands[0] for clip in looks),
    )


def spectrogram_note(clip: str) -> str | None:
    """What is seen in the spectrogram of a clip; None if nobody has looked at it.

    Args:
        clip: File name of a bundled clip.
    """
    return _notes().get(clip)


@cache
def _notes() -> Mapping[str, str]:
    return json.loads(NOTES.read_text(encoding="utf-8"))
