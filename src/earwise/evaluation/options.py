"""How a task is put to an engine: wording, sampling, batches, order of the options."""

from dataclasses import dataclass, field, replace

from earwise.audio import Channel, LongAudio
from earwise.engine.base import SamplingParams
from earwise.errors import ConfigError

DEFAULT_WINDOW = 2048
"""Tokens of a group of confidences."""
CONFIDENCE_TOP_K = 20
"""Likeliest tokens that make up the confidence of one (DeepConf's number, and the most that servers return)."""


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """How a task is put to an engine."""

    style: str = ""
    """Wording of the question: a key of `prompts.INSTRUCTIONS` or of the task's `prompts`; empty: the task's own."""
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    """Sampling parameters; greedy by default."""
    seed: int = 0
    """Seed of the options' order, of the controls and of the bootstrap."""
    batch: int = 16
    """Items handed to the engine at a time; changes nothing but speed."""
    shuffle_options: bool = True
    """Whether the options of a question are shuffled (by seed and id)."""
    permutations: int = 1
    """Number of orders of the options in which each item is asked. The headline is that of the first order; the mean
    over all stands beside it."""
    samples: int = 1
    """Number of completions of each item, drawn from one prefill. The headline is that of the first; pass@k and
    majority@k stand beside it (`aggregates/draws.py`)."""
    confidence_window: int = DEFAULT_WINDOW
    """Tokens of a group of the confidences that weight the votes of several completions (DeepConf's number). A shorter
    completion is one group."""
    long_audio: LongAudio = "error"
    """What to do with a clip longer than the engine accepts: `error` (the row is an error, counted as wrong),
    `truncate` (counted as such) or `chunk` (several clips one after the other, for engines that take several)."""
    channel: Channel = "mean"
    """What the channels of a clip become: their `mean` (the loudest where they cancel each other), or the `first`."""

    @property
    def request_params(self) -> SamplingParams:
        """The sampling parameters of a request: with confidences where several completions vote."""
        return replace(self.sampling_params, confidence_top_k=CONFIDENCE_TOP_K if self.samples > 1 else 0)

    def __post_init__(self) -> None:
        for name in ("batch", "permutations", "samples", "confidence_window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.samples == 1 and self.confidence_window != DEFAULT_WINDOW:
            raise ConfigError(
                f"confidence_window {self.confidence_window} is for the votes of several completions; ask for samples"
            )
        if self.samples > 1 and not self.sampling_params.temperature:
            raise ConfigError(
                f"samples {self.samples} at temperature 0 are {self.samples} times the same; set a temperature"
            )
