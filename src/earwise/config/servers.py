"""Schema of the servers that a GRPO stage may use: a judge, and one that samples. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from earwise.config.strict import Strict, UserPath


class JudgeConfig(Strict):
    """A language model behind a server that scores reasoning, for the reward `judge`."""

    server: str
    """Address as in `--model`: http://127.0.0.1:8000/v1#NAME."""
    rubric: str = (
        "You judge a short argument about a sound that you cannot hear. Is it coherent, does each step follow, and "
        "does it lead to the answer that is given? Ignore whether the answer is right."
    )
    """Instruction to the judge, before question, options, reasoning and answer."""
    max_score: int = Field(5, gt=1)
    """Best score of the scale, which begins at 1; the reward is the score mapped to [0, 1]."""


class WeightSyncConfig(Strict):
    """How newer weights are sent to the rollout server."""

    method: Literal["lora", "weights"] = "lora"
    """`lora`: the LoRA alone (vLLM, where it serves LoRA for the family; earwise serve); `weights`: all weights with
    the LoRA merged (vLLM, earwise serve)."""
    steps: int = Field(1, gt=0)
    """Steps from one version to the next; the first version is sent before the first rollout."""
    folder: UserPath | None = None
    """Folder for the versions, which this machine and the server both see; None: `sampler` in the stage's folder."""
    max_staleness: int = Field(0, ge=0, le=1)
    """By how many versions the weights that sample a rollout may be older than the policy. 1: the server samples for
    the next step while this one updates, and the loss corrects for the older weights."""
    importance_sampling_cap: float = Field(2.0, gt=0)
    """With `max_staleness: 1`: largest factor by which the loss of a token makes up for the older weights."""

    @model_validator(mode="after")
    def _check_cap(self) -> "WeightSyncConfig":
        self.refuse_idle(self.max_staleness > 0, ("importance_sampling_cap",), "it is for max_staleness: 1")
        return self

    def check_staleness(self, num_iterations: int, temperature: float) -> None:
        """Refuse settings of the stage that older weights cannot be corrected for.

        Args:
            num_iterations: Updates per rollout.
            temperature: Sampling temperature.
        Raises:
            ValueError: naming what to set.
        """
        if self.max_staleness and self.steps != num_iterations:
            raise ValueError(
                f"weight_sync.max_staleness {self.max_staleness} needs every version of the weights on the server; set "
                f"weight_sync.steps: {num_iterations}"
            )
        if self.max_staleness and temperature != 1:
            raise ValueError(
                f"weight_sync.max_staleness {self.max_staleness} with temperature {temperature:g}: servers return "
                "log-probabilities at temperature 1, which the correction needs; set temperature: 1"
            )


def staleness(weight_sync: WeightSyncConfig | None) -> int:
    """The `max_staleness` of a stage; 0 where nothing is sent to a server."""
    return 0 if weight_sync is None else weight_sync.max_staleness
