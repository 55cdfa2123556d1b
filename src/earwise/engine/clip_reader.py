"""Read the clips that rows and requests are about: each is decoded once, and the last few stay in memory.

The one way from a file to the waveforms that a model receives, in training, evaluation and `earwise ask`. Requests ask
for clips from several threads: when two threads want one clip at the same time, the first decodes it and the other
waits for the result. Hashes and lengths are remembered for every clip, so that a reader shared between runs over the
same clips (an evaluation and its blind controls) looks at a file's length and bytes once.
"""

import math
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from threading import Lock

from earwise.audio import (
    Channel,
    DecodeOptions,
    LongAudio,
    chunks,
    clip_duration,
    clip_sha256,
    decode_clip,
    is_silent,
    num_samples,
)
from earwise.engine.base import Engine
from earwise.errors import AudioError
from earwise.types import AudioClip, Waveform

CACHED_CLIPS = 32
"""Decoded clips kept in memory, because neighbouring requests often concern one clip; 2 MB each at 30 s and 16 kHz."""


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """One decoded clip."""

    waveform: Waveform
    """Mono float32 at the reader's sample rate; the whole clip, or its beginning under `truncate`."""
    is_silent: bool
    """Whether no sample is louder than -80 dBFS."""
    is_long: bool
    """Whether the clip lasts longer than the model accepts."""


class ClipReader:
    """Decodes clips for one model and caches the result.

    Args:
        sample_rate: Sample rate of the model's audio input, in Hz.
        max_s: Longest clip that the model accepts, in seconds; infinite if there is no limit.
        long_audio: What to do with a longer clip: `error` refuses it, `truncate` keeps its beginning, `chunk` keeps all
            of it for `split`.
        channel: What several channels become, see `audio.DecodeOptions`.
    """

    def __init__(
        self, sample_rate: int, max_s: float, *, long_audio: LongAudio = "error", channel: Channel = "mean"
    ) -> None:
        self.long_audio, self.channel = long_audio, channel
        self.sample_rate = sample_rate
        self.max_s = max_s if math.isfinite(max_s) else None
        """Longest clip that the model accepts, in seconds; None if there is no limit."""
        self._options = DecodeOptions(sample_rate, long_audio, self.max_s, channel)
        self._lock = Lock()
        self._recent: OrderedDict[AudioClip, Future[DecodedClip]] = OrderedDict()
        self.sha256 = cache(clip_sha256)
        """SHA-256 of a file's bytes (and of the seconds of a segment), hexadecimal, computed once per clip."""
        self.is_long = cache(self._is_long)
        """Whether a clip lasts longer than the model accepts, looked up once per clip. A file that cannot be read is
        not long; decoding it raises the error."""

    @classmethod
    def for_engine(cls, engine: Engine, long_audio: LongAudio = "error", channel: Channel = "mean") -> "ClipReader":
        """A reader for an engine, which sets the sample rate and the longest clip."""
        return cls(engine.sample_rate, engine.max_audio_s, long_audio=long_audio, channel=channel)

    def read(self, clip: AudioClip) -> DecodedClip:
        """Decode a clip, or return the cached result.

        Raises:
            AudioError: if the file cannot be read, or the clip is too long and `long_audio` is `error`.
        """
        with self._lock:
            future = self._recent.get(clip)
            is_new = future is None
            if future is None:
                future = self._recent[clip] = Future()
                if len(self._recent) > CACHED_CLIPS:
                    self._recent.popitem(last=False)
            else:
                self._recent.move_to_end(clip)
        if is_new:
            try:
                future.set_result(self._decode(clip))
            except BaseException as error:
                future.set_exception(error)
                with self._lock:  # a failure is not cached: the file may be repaired and asked for again
                    if self._recent.get(clip) is future:
                        del self._recent[clip]
        return future.result()

    def split(self, waveform: Waveform) -> list[Waveform]:
        """The waveforms that the model receives for one clip: several consecutive ones under `chunk`, else one."""
        if self.long_audio != "chunk" or self.max_s is None:
            return [waveform]
        return chunks(waveform, self.sample_rate, self.max_s)

    def _decode(self, clip: AudioClip) -> DecodedClip:
        sound = decode_clip(clip, self._options)
        exceeds_window = self.max_s is not None and len(sound.waveform) > num_samples(self.max_s, self.sample_rate)
        return DecodedClip(sound.waveform, is_silent(sound.waveform), sound.is_truncated or exceeds_window)

    def _is_long(self, clip: AudioClip) -> bool:
        try:
            return self.max_s is not None and clip_duration(clip) > self.max_s
        except AudioError:
            return False
