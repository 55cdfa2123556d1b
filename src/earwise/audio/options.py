"""What a caller may ask of the decoder, and what a model accepts: sample rate, longest clip, channels."""

from dataclasses import dataclass
from typing import Literal

from earwise.audio.mixing import CHANNELS, Channel
from earwise.errors import ConfigError

LongAudio = Literal["error", "truncate", "chunk"]
"""Policy for a clip longer than the model accepts: refuse it, use its beginning, or split it into chunks."""
LONG_AUDIO: tuple[LongAudio, ...] = ("error", "truncate", "chunk")
LONG_AUDIO_REMEDY = "cut it, or set long_audio (in a recipe) or --long-audio (on the command line) to truncate or chunk"
"""End of every message about a clip that is too long."""


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """The audio input of a model."""

    sample_rate: int
    """Hz."""
    max_s: float
    """Longest clip that the model accepts, in seconds."""
    tokens_per_s: float
    """Audio tokens per second."""
    long_audio: LongAudio = "error"
    """What to do with a longer clip."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How a sound becomes a waveform."""

    sample_rate: int = 16000
    """Sample rate of the result, in Hz."""
    long_audio: LongAudio = "error"
    """For a sound longer than `max_s`: `error` refuses it, `truncate` decodes its first `max_s` seconds, `chunk`
    decodes all of it, to be split by `chunks`."""
    max_s: float | None = None
    """Longest clip in seconds; None for no limit."""
    channel: Channel = "mean"
    """`mean` of all channels (the loudest where they cancel each other), or the `first` channel, as R1-AQA's released
    data loader does."""
    long_audio_remedy: str = LONG_AUDIO_REMEDY
    """End of the message about a sound that is too long."""

    def __post_init__(self) -> None:
        if self.long_audio not in LONG_AUDIO:
            raise ConfigError(f"long_audio {self.long_audio!r} is none of {', '.join(LONG_AUDIO)}")
        if self.channel not in CHANNELS:
            raise ConfigError(f"channel {self.channel!r} is none of {', '.join(CHANNELS)}")


def too_long_message(duration_s: float | None, name: str, options: DecodeOptions) -> str:
    """Message about a clip that is too long; `duration_s` None: its whole length is not known."""
    max_s = options.max_s or 0.0
    length = f"more than {max_s:g}" if duration_s is None else _longer_than(duration_s, max_s)
    return f"{name}: lasts {length} s, the longest allowed is {max_s:g} s; {options.long_audio_remedy}"


def _longer_than(duration_s: float, max_s: float) -> str:
    """Seconds with two decimals, or as many as it takes to show that they are more than `max_s`.

    >>> _longer_than(41.918, 30), _longer_than(30 + 1 / 16000, 30)
    ('41.92', '30.0001')
    """
    texts = (f"{duration_s:.{digits}f}" for digits in range(2, 9))
    return next((text for text in texts if float(text) > max_s), f"{duration_s!r}")
