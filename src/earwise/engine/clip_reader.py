"""Read the clips that requests are about: each file is decoded and hashed once, and the last few stay in memory.

Below `engine.request_pipeline`, which asks for clips from several threads: when two threads want one file at the same
time, the first decodes it and the other waits for the result. Hashes and lengths are remembered for every file, so that
a reader shared between runs over the same clips (an evaluation and its blind controls) looks at a file's header and
bytes once.
"""

import math
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

from earwise.audio import LongAudio, audio_sha256, chunks, decode, is_silent, probe
from earwise.engine.base import Engine
from earwise.errors import AudioError
from earwise.types import Waveform

CACHED_CLIPS = 32
"""Decoded clips kept in memory, because neighbouring requests often concern one clip; 2 MB each at 30 s and 16 kHz."""


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """One decoded file."""

    waveform: Waveform
    """Mono float32 at the engine's sample rate; the whole file, or its beginning under `truncate`."""
    sha256: str
    """SHA-256 of the file's bytes, hexadecimal."""
    is_silent: bool
    """Whether no sample is louder than -80 dBFS."""


class ClipReader:
    """Decodes files for one engine and caches the result.

    Args:
        engine: The engine that will receive the waveforms; it sets the sample rate and the longest clip.
        long_audio: What to do with a clip longer than the engine accepts: `error` refuses it, `truncate` keeps its
            beginning, `chunk` keeps all of it for `split`.
    """

    def __init__(self, engine: Engine, long_audio: LongAudio = "error") -> None:
        self.long_audio = long_audio
        self.sample_rate = engine.sample_rate
        self.max_s = engine.max_audio_s if math.isfinite(engine.max_audio_s) else None
        """Longest clip that the engine accepts, in seconds; None if there is no limit."""
        self._lock = Lock()
        self._recent: OrderedDict[Path, Future[DecodedClip]] = OrderedDict()
        self.sha256 = cache(audio_sha256)
        """SHA-256 of a file's bytes, hexadecimal, computed once per path."""
        self.is_long = cache(self._is_long)
        """Whether a file lasts longer than the engine accepts, read from its header once per path. A file that cannot
        be read is not long; decoding it raises the error."""

    def read(self, path: Path) -> DecodedClip:
        """Decode a file, or return the cached result.

        Raises:
            AudioError: if the file cannot be read, or is too long and `long_audio` is `error`.
        """
        with self._lock:
            future = self._recent.get(path)
            is_new = future is None
            if future is None:
                future = self._recent[path] = Future()
                if len(self._recent) > CACHED_CLIPS:
                    self._recent.popitem(last=False)
            else:
                self._recent.move_to_end(path)
        if is_new:
            try:
                future.set_result(self._decode(path))
            except BaseException as error:
                future.set_exception(error)
                with self._lock:  # a failure is not cached: the file may be repaired and asked for again
                    if self._recent.get(path) is future:
                        del self._recent[path]
        return future.result()

    def split(self, waveform: Waveform) -> list[Waveform]:
        """The waveforms that the engine receives for one clip: several consecutive ones under `chunk`, else one."""
        if self.long_audio != "chunk" or self.max_s is None:
            return [waveform]
        return chunks(waveform, self.sample_rate, self.max_s)

    def _decode(self, path: Path) -> DecodedClip:
        waveform = decode(path, self.sample_rate, long_audio=self.long_audio, max_s=self.max_s)
        return DecodedClip(waveform, self.sha256(path), is_silent(waveform))

    def _is_long(self, path: Path) -> bool:
        try:
            return self.max_s is not None and probe(path).duration_s > self.max_s
        except AudioError:
            return False
