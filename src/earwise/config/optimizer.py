"""Schema of a stage's optimizer and learning-rate schedule. No torch."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from earwise.config.strict import Strict

LrSchedulerType = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr", "cosine_with_restarts", "polynomial",
    "inverse_sqrt",
]  # fmt: skip


class LrSchedulerConfig(Strict):
    """Settings of single schedules; names as in transformers' `lr_scheduler_kwargs`."""

    min_lr: float | None = Field(None, ge=0)
    """For `cosine_with_min_lr`: lowest learning rate of the decoder; other rates fall by the same factor."""
    min_lr_rate: float | None = Field(None, ge=0, le=1)
    """For `cosine_with_min_lr`, in place of `min_lr`: lowest rate as a share of the highest."""
    num_cycles: int = Field(1, gt=0)
    """For `cosine_with_restarts`: number of cosines."""
    lr_end: float = Field(1e-7, ge=0)
    """For `polynomial`: last learning rate of the decoder."""
    power: float = Field(1.0, gt=0)
    """For `polynomial`: the exponent."""
    timescale: int | None = Field(None, gt=0)
    """For `inverse_sqrt`: steps after which the rate has fallen to 1 / sqrt(2); None: `warmup_steps`, or 10,000."""


SCHEDULER_KEYS: dict[str, tuple[str, ...]] = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
}
"""Schedule -> its keys of `LrSchedulerConfig`."""


class OptimizerConfig(Strict):
    """The optimizer and its learning-rate schedule; names as in transformers' TrainingArguments."""

    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` stores AdamW's two moments in 8 bits (bitsandbytes): 2 bytes per trained parameter in place of 8."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of the decoder."""
    encoder_learning_rate: float | None = Field(None, gt=0)
    """None: `learning_rate`."""
    connector_learning_rate: float | None = Field(None, gt=0)
    """None: `learning_rate`."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay; biases and the weights of norms have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the running means of gradients and squared gradients."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly to its full value."""
    lr_scheduler_type: LrSchedulerType = "linear"
    """Course of the learning rate after the warm-up; `linear` and `cosine` reach 0 at the end of the schedule."""
    lr_scheduler_steps: int | None = Field(None, gt=0)
    """Steps of the whole schedule, warm-up included, where the stage ends before it; None: `max_steps`."""
    lr_scheduler_kwargs: LrSchedulerConfig = LrSchedulerConfig()
    """Settings of some schedules."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm where theirs is larger."""

    @model_validator(mode="after")
    def _check_schedule(self) -> "OptimizerConfig":
        kwargs, default = self.lr_scheduler_kwargs, LrSchedulerConfig()
        acting = SCHEDULER_KEYS.get(self.lr_scheduler_type, ())
        for key in LrSchedulerConfig.model_fields:
            if key not in acting and getattr(kwargs, key) != getattr(default, key):
                raise ValueError(f"lr_scheduler_kwargs.{key} does nothing in schedule {self.lr_scheduler_type}")
        if self.lr_scheduler_type == "cosine_with_min_lr" and (kwargs.min_lr is None) == (kwargs.min_lr_rate is None):
            raise ValueError("schedule cosine_with_min_lr needs lr_scheduler_kwargs with min_lr or min_lr_rate")
        for key in ("min_lr", "lr_end"):
            if key in acting and (getattr(kwargs, key) or 0) > self.learning_rate:
                raise ValueError(f"lr_scheduler_kwargs.{key} is larger than learning_rate {self.learning_rate:g}")
        if self.lr_scheduler_steps is not None and self.warmup_steps > self.lr_scheduler_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} is more than the {self.lr_scheduler_steps} of lr_scheduler_steps"
            )
        return self

    def refuse_idle_rates(self, modes: Mapping[str, str]) -> None:
        """Refuse learning rates of frozen parts.

        Args:
            modes: For encoder, connector and decoder, how it is trained; "frozen" is not at all.
        Raises:
            ValueError: naming the first rate that nothing uses.
        """
        own_rates = {"encoder": self.encoder_learning_rate, "connector": self.connector_learning_rate}
        for part, rate in own_rates.items():
            if modes[part] == "frozen" and rate is not None:
                raise ValueError(
                    f"optimizer.{part}_learning_rate is set, but trainable.{part} is frozen; leave one of them out"
                )
        shared = [part for part, rate in own_rates.items() if modes[part] != "frozen" and rate is None]
        if modes["decoder"] == "frozen" and not shared and self.is_set("learning_rate"):
            raise ValueError(
                "optimizer.learning_rate is set, but trainable.decoder is frozen and the trained parts have rates of "
                "their own; leave it out"
            )
