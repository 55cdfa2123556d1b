"""The few frozen values that everything else passes around. No torch, no files.

Lowest layer. One row of data is an `Example`; what a model says to it is a `Completion`; what a scorer says to that is
a `Score`.
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
    """A text part of a turn."""

    text: str


@dataclass(frozen=True, slots=True)
class Audio:
    """An audio part of a turn: where the sound lies (absolute, or relative to the manifest's folder)."""

    path: str


Part = Text | Audio


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a manifest. Unknown fields of the row are kept in `meta`."""

    id: str
    turns: tuple[Turn, ...]
    answer: tuple[str, ...] = ()
    """Accepted answers: the option's text where there are choices, any of several free texts otherwise; empty:
    unlabelled."""
    choices: tuple[str, ...] = ()
    reasoning: str | None = None
    task: str = "open"
    category: str = ""
    difficulty: str | None = None
    source: str = ""
    licence: str = ""
    group: str = ""
    """The unit that never crosses a split (a recording, a speaker)."""
    split: str = "train"
    language: str = "en"
    chosen: tuple[str, ...] = ()
    """Whole replies that are better than those of `rejected`, word for word as the model should say them."""
    rejected: tuple[str, ...] = ()
    """What lost: whole replies where there are `chosen` ones, else answers like `answer`, worded as it is worded."""
    root: Path = Path()
    """Folder that relative audio paths start from; not part of the row."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def audio_paths(self) -> tuple[Path, ...]:
        """The files of all audio parts, in the order of the conversation."""
        return tuple(self.root / part.path for turn in self.turns for part in turn.parts if isinstance(part, Audio))

    @property
    def question(self) -> str:
        """The text of the last user turn."""
        user = [turn for turn in self.turns if turn.role == "user"]
        return "\n".join(part.text for part in user[-1].parts if isinstance(part, Text)) if user else ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model sampled for one prompt."""

    text: str
    """The decoded tokens without the end token."""
    token_ids: tuple[int, ...] = ()
    """The sampled ids, the end token included when it was drawn."""
    logprobs: tuple[float, ...] = ()
    """Natural-log probability of each id under the distribution it was drawn from (temperature 1)."""
    finish_reason: Literal["stop", "length"] = "stop"
    reasoning_tokens: int | None = None
    """Tokens before the answer began (all of them where it never did); None: the engine does not say."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A completion taken apart; nothing in here is ever guessed."""

    reasoning: str | None
    answer: str | None
    choice: int | None
    """Index of the option that the answer names, if there are options and it names exactly one."""
    status: Status


@dataclass(frozen=True, slots=True)
class Score:
    """The verdicts on one sample; all three stand side by side in every result."""

    official: float
    strict: float
    lenient: float
    status: Status
    answer: str | None = None
    explanation: str = ""
