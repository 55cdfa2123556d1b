"""What every engine takes and gives. The evaluation, the rollouts and the server know only this."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from earwise.types import Completion, Turn, Waveform


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation and its sounds.

    Attributes:
        turns: The conversation, ending with the user.
        waves: One waveform per audio part, in order, mono float32 at the engine's sample rate.
        key: Names the prompt; its random draws depend on `(seed, key)` and on nothing else in the batch.
    """

    turns: tuple[Turn, ...]
    waves: tuple[Waveform, ...]
    key: str = ""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding settings, always explicit: a checkpoint's own generation config is never read."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a result row."""
        return asdict(self)


class Engine(Protocol):
    """Anything that answers prompts."""

    name: str
    """Model name for result rows."""
    revision: str
    """Hash of the weights, or what the server says of itself."""
    sample_rate: int
    """Hz that `Prompt.waves` must have."""
    max_audio_s: float
    """Longest clip that is heard whole, seconds."""

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding, n: int = 1) -> list[list[Completion]]:
        """Answer every prompt `n` times; the result does not depend on how prompts are batched."""
        ...

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Natural-log likelihood of each continuation (end mark included) after its prompt, summed over tokens."""
        ...
