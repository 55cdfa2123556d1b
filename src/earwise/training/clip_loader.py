"""Decoding the clips of training rows for one model: length limits, and rows whose audio cannot be read.

Used by all stages before a row is tokenised. Clips are decoded by `engine.clip_reader`, as in evaluation; this module
adds what a recipe says about files that cannot be read (`data.on_bad_row`).
"""

from dataclasses import dataclass, replace

from earwise.audio import Channel, LongAudio
from earwise.engine.clip_reader import ClipReader
from earwise.errors import AudioError
from earwise.models.base import AudioLM
from earwise.prompts import repeat_audio_parts
from earwise.types import AudioClip, Example, Waveform

MAX_UNREADABLE_ROWS = 1000
"""Number of consecutive rows without readable audio that ends a run with `on_bad_row: skip`, which would otherwise
search for a readable row forever."""


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """Rows that share their clips, and these clips decoded.

    Attributes:
        rows: The rows. Where a long clip was cut into chunks, they have an audio part for each chunk.
        waveforms: One waveform per audio part, in the order of the conversation.
    """

    rows: tuple[Example, ...]
    waveforms: list[Waveform]


class ClipLoader:
    """Decodes the clips of rows.

    Args:
        model: The model, which sets the sample rate and the longest clip.
        long_audio: Treatment of clips longer than the model's audio window: `error`, `truncate` or `chunk`.
        on_bad_row: Treatment of rows whose audio cannot be read: `stop` raises an error, `skip` counts and reports.
        channel: What the channels of a clip become: their `mean`, or the `first`.
    """

    def __init__(self, model: AudioLM, *, long_audio: LongAudio, on_bad_row: str, channel: Channel = "mean") -> None:
        self._reader = ClipReader(model.spec.sample_rate, model.spec.max_s, long_audio=long_audio, channel=channel)
        self._skip_unreadable = on_bad_row == "skip"
        self._consecutive_unreadable = 0
        self.skipped: dict[AudioClip, str] = {}
        """Files that could not be read -> the reason."""
        self.long_clips: set[AudioClip] = set()
        """Clips longer than the model's audio window, which were truncated or cut into chunks."""

    def load_rows(self, rows: tuple[Example, ...]) -> LoadedRows | None:
        """Decode the clips of rows that share them.

        Returns:
            The rows and waveforms; None if a clip cannot be read and such rows are skipped.
        Raises:
            AudioError: if a clip cannot be read and such rows stop the run; names the row and the file.
        """
        chunks_of_clips = self._decode_clips(rows[0])
        if chunks_of_clips is None:
            return None
        num_chunks = [len(clip_chunks) for clip_chunks in chunks_of_clips]
        if max(num_chunks, default=1) > 1:
            rows = tuple(replace(row, turns=repeat_audio_parts(row.turns, num_chunks)) for row in rows)
        return LoadedRows(rows, [chunk for clip_chunks in chunks_of_clips for chunk in clip_chunks])

    def load(self, example: Example) -> list[Waveform] | None:
        """Decode the clips of one row; returns and raises as `load_rows`, waveforms only."""
        loaded = self.load_rows((example,))
        return None if loaded is None else loaded.waveforms

    def _decode_clips(self, example: Example) -> list[list[Waveform]] | None:
        """The chunks of each clip of a row; a clip is a single chunk unless `long_audio` is `chunk`."""
        chunks_of_clips = []
        for clip in example.clips:
            try:
                decoded = self._reader.read(clip)
            except AudioError as error:
                if not self._skip_unreadable:
                    raise AudioError(f"example {example.id!r}: {error}") from error
                self._count_unreadable(clip, example, error)
                return None
            if decoded.is_long:
                self.long_clips.add(clip)
            chunks_of_clips.append(self._reader.split(decoded.waveform))
        self._consecutive_unreadable = 0
        return chunks_of_clips

    def _count_unreadable(self, clip: AudioClip, example: Example, error: AudioError) -> None:
        """Remember a file that could not be read, and end the run when too many follow one another."""
        self.skipped[clip] = str(error)
        self._consecutive_unreadable += 1
        if self._consecutive_unreadable >= MAX_UNREADABLE_ROWS:
            raise AudioError(
                f"the audio of {self._consecutive_unreadable} consecutive rows cannot be read, the last is "
                f"{example.id!r}: {error}; repair the data (`earwise build scan` reads all of it), then --resume"
            ) from error
