"""Schema of the servers that a GRPO stage may use: a judge, and one that samples. No torch."""

from typing import Literal

from pydantic import Field

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
