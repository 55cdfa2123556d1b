"""The interface of an inference engine: prompts with audio in, completions out.

Evaluation, rollouts and the server depend on this file only. `engine.local.LocalEngine` runs a model in this process;
`engine.remote.client.RemoteEngine` sends the same prompts to an OpenAI-compatible server.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from earwise.types import Completion, Turn, Waveform


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation with the audio that its turns refer to.

    Attributes:
        turns: The conversation; the last turn is the user's.
        waveforms: One waveform per audio part of the turns, in order: mono float32 at the engine's sample rate.
        key: Name of the prompt. Its random draws depend on `(seed, key)` alone, never on the other prompts of the
            batch.
    """

    turns: tuple[Turn, ...]
    waveforms: tuple[Waveform, ...]
    key: str = ""


@dataclass(frozen=True, slots=True)
class PauseParams:
    """Pause tokens in completions; see `engine.sampling.pause`."""

    entropy: float
    """Entropy of the next token at temperature 1, in nats, from which a pause is made in its place."""
    token: str = ""
    """Text of the pause token; empty: the first row of the embedding table that the tokenizer does not use."""
    max_pauses: int = 3
    """Largest number of pauses in a completion."""
    tokens_per_pause: int = 1
    """Pause tokens of a pause. They count in `max_new_tokens`."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are sampled. Always explicit: a checkpoint's own generation config is never read."""

    max_new_tokens: int = 64
    """Longest completion, in tokens, the end token included."""
    temperature: float = 0.0
    """Softmax temperature; 0 is greedy decoding."""
    top_p: float = 1.0
    """Nucleus sampling: smallest set of likeliest tokens whose probabilities reach this sum; 1 keeps all tokens."""
    top_k: int = 0
    """Number of likeliest tokens to sample from; 0 keeps all tokens."""
    seed: int = 0
    """Seed of the random draws, combined with each prompt's key."""
    pause: PauseParams | None = None
    """Pause tokens where the model is unsure; None: none."""
    confidence_top_k: int = 0
    """Number of likeliest tokens whose log-probabilities make up `Completion.confidences`; 0: there are none."""

    def as_dict(self) -> dict[str, Any]:
        """The parameters as plain values, as they are stored in result rows and hashed for caches: without `pause`
        where there is none, and without `confidence_top_k`, which changes no completion."""
        values = asdict(self)
        del values["confidence_top_k"]
        if self.pause is None:
            del values["pause"]
        return values


class Engine(Protocol):
    """Anything that completes prompts and scores given continuations."""

    name: str
    """Model name, stored in result rows."""
    revision: str
    """Hash of the weights, with `+` the precision of products that are not computed in float32 (`+bfloat16`); or the
    version that a remote server reports."""
    sample_rate: int
    """Sample rate in Hz that `Prompt.waveforms` must have."""
    max_audio_s: float
    """Longest clip in seconds that the model accepts."""

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        """Sample completions; the result does not depend on how prompts are batched.

        Args:
            prompts: Prompts to complete.
            sampling_params: Length limit, temperature, truncation and seed.
            n: Number of completions per prompt.
        Returns:
            For each prompt, `n` completions.
        """
        ...

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-likelihood of given continuations.

        Args:
            prompts: Prompts that the continuations follow.
            continuations: For each prompt, the texts to score.
        Returns:
            For each prompt and text, the natural-log probability of the text and its end token, summed over tokens.
        """
        ...
