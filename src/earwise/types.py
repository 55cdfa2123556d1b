"""The frozen data types that all other modules exchange. No torch, no files.

Lowest layer. A row of data is an `Example`, a model's output for it is a `Completion`, which is taken apart into a
`Parsed` and scored as a `Score`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]  # mono, (samples,), in [-1, 1]
Role = Literal["system", "user", "assistant"]
Status = Literal["ok", "unparsed", "ambiguous", "error"]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Text:
    """Text in a turn of a conversation."""

    text: str


@dataclass(frozen=True, slots=True)
class Audio:
    """Audio in a turn of a conversation: a file, or a segment of it."""

    path: str
    """Path of the file, absolute or relative to the manifest's folder."""
    start: float | None = None
    """Where the segment begins in the file, in seconds; None for the beginning of the file."""
    end: float | None = None
    """Where the segment ends in the file, in seconds; None for the end of the file."""


@dataclass(frozen=True, slots=True)
class AudioClip:
    """What is decoded for an audio part: a file, or a segment of it."""

    path: Path
    """The file, with the folder of its manifest."""
    start: float = 0.0
    """Where the segment begins in the file, in seconds."""
    end: float | None = None
    """Where the segment ends in the file, in seconds; None for the end of the file."""

    @property
    def is_segment(self) -> bool:
        """Whether this is only a part of the file."""
        return self.start > 0 or self.end is not None

    def __str__(self) -> str:
        """The path, with the seconds of a segment: `talk.wav [12.5-17 s]`."""
        end = "end" if self.end is None else f"{self.end:g} s"
        return f"{self.path} [{self.start:g}-{end}]" if self.is_segment else str(self.path)


Part = Text | Audio


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a manifest."""

    id: str
    turns: tuple[Turn, ...]
    answer: tuple[str, ...] = ()
    """Accepted answers: the text of the right option where there are `choices`, otherwise one or several free texts;
    empty for an unlabelled row."""
    choices: tuple[str, ...] = ()
    """Option texts of a multiple-choice question; empty for an open question."""
    reasoning: str | None = None
    """Reference reasoning that leads to the answer, for training."""
    task: str = "open"
    category: str = ""
    difficulty: str | None = None
    source: str = ""
    licence: str = ""
    group: str = ""
    """Rows of one group (a recording, a speaker) are never divided between splits."""
    split: str = "train"
    language: str = "en"
    chosen: tuple[str, ...] = ()
    """Preferred replies for preference training, word for word as the model should write them."""
    rejected: tuple[str, ...] = ()
    """Rejected replies for preference training. If `chosen` is empty these are bare answers, and get the same template
    as `answer`."""
    text_only: bool = False
    """Whether the row is declared to have no sound. A row without clips that does not say so is refused."""
    root: Path = Path()
    """Folder that relative audio paths start from; not stored in the row."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the row that have no attribute here."""

    @property
    def field(self) -> str:
        """What a row of `earwise build labels` asks for ("instrument", "emotion"); empty for rows that do not say."""
        return str(self.meta.get("field") or "")

    @property
    def audio_parts(self) -> tuple[Audio, ...]:
        """All audio parts, in the order of the conversation."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Audio))

    @property
    def audio_paths(self) -> tuple[Path, ...]:
        """The files of all audio parts, in the order of the conversation."""
        return tuple(self.root / part.path for part in self.audio_parts)

    @property
    def clips(self) -> tuple[AudioClip, ...]:
        """The files of all audio parts with their segments, in the order of the conversation."""
        return tuple(AudioClip(self.root / part.path, part.start or 0.0, part.end) for part in self.audio_parts)

    @property
    def question(self) -> str:
        """Text of the last user turn."""
        user = [turn for turn in self.turns if turn.role == "user"]
        return "\n".join(part.text for part in user[-1].parts if isinstance(part, Text)) if user else ""


@dataclass(frozen=True, slots=True)
class Completion:
    """The output of a model for one prompt."""

    text: str
    """The decoded tokens, without the end token."""
    token_ids: tuple[int, ...] = ()
    """The sampled token ids, with the end token if it was sampled."""
    logprobs: tuple[float, ...] = ()
    """Natural-log probability of each id under the model at temperature 1."""
    finish_reason: Literal["stop", "length"] = "stop"
    reasoning_tokens: int | None = None
    """Number of tokens before the answer (all tokens if there is none); None if the engine does not report it."""
    entropies: tuple[float, ...] = ()
    """Entropy of the next token in the place of each id, at temperature 1, in nats; kept where pauses are made."""
    confidences: tuple[float, ...] = ()
    """For each id the mean of -log P over the likeliest tokens in its place, in nats, if it was asked for (DeepConf's
    token confidence): large where one token stands out, small where many are alike."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """The parts of a completion; a part that cannot be read unambiguously is None, never a guess."""

    reasoning: str | None
    answer: str | None
    choice: int | None
    """Index of the option that the answer names; None without options, or if it names none or several."""
    status: Status


@dataclass(frozen=True, slots=True)
class Score:
    """The result of scoring one completion: named values side by side, and how its answer was read."""

    values: Mapping[str, float]
    """Value of each score by name, for example `official`, `strict` and `lenient`; 1 is a correct answer, 0 a wrong
    one. The names are those of the task (`evaluation.task.Task.score_notes`)."""
    status: Status
    """Whether an answer could be read from the completion; `error`: there is no completion."""
    answer: str | None = None
    """The answer that was read; None if there is none."""
    explanation: str = ""
    """Why the answer could not be read, or the error; empty for a readable answer."""
    counts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What adds up over items where a figure of a corpus is no mean of its items (edits and reference words of an error
    rate, matched n-grams of BLEU), by name of the score."""
