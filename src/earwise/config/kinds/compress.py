"""Settings of training on chains of reasoning that get shorter (`kind: compress`). No torch."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from earwise.config.stages import Source, SupervisedConfig


class CompressConfig(SupervisedConfig):
    """Semi-implicit reasoning: supervised training on chains of reasoning that get shorter as training goes on."""

    measures_at_eval_steps: ClassVar[bool] = True  # token delay

    kind: Literal["compress"]
    clips_per_step: int = Field(8, gt=0)
    """Clips per optimizer step."""
    unit: Literal["sentences", "tokens"] = "sentences"
    """What is removed from a chain: sentences, each leaving a stub, or tokens, leaving nothing."""
    stub_groups: int = Field(3, ge=0)
    """Groups of words that remain of a removed sentence, with unit `sentences`; 0: none."""
    words_per_group: int = Field(1, gt=0)
    """Words in a group of a stub."""
    ellipsis: str = "..."
    """A stub is the first `stub_groups` groups of `words_per_group` words, followed by the ellipsis."""
    order: Literal["left", "right", "random"] = "left"
    """Which units are removed first."""
    schedule_ratio: float = Field(0.8, gt=0, le=1)
    """Share of the steps after which `cutover` is reached, where neither `units_per_epoch` nor `steps_per_unit` is
    set."""
    units_per_epoch: float | None = Field(None, gt=0)
    """Additional units removed per epoch, in place of `schedule_ratio`."""
    steps_per_unit: int | None = Field(None, gt=0)
    """Remove one more unit every this many steps, in place of `schedule_ratio`."""
    cutover: int | None = Field(None, ge=0)
    """Number of removed units from which the whole chain is removed; None: the 95th percentile of sentences per chain,
    or never where the unit is tokens."""
    smoothing: float | None = Field(None, gt=0)
    """Remove n extra units at random, with P(n) proportional to exp(-smoothing * n); None: no extra units."""
    reset_optimizer: bool = False
    """Clear the optimizer's state each time one more unit is removed."""
    held_out: Source | None = None
    """Rows on which token delay is measured, and whose answers are logged in place of those of
    `log_completions_steps`; None: token delay is not measured."""
    held_out_limit: int = Field(8, gt=0)
    """Number of held-out rows that are used."""
    eval_steps: int | None = Field(25, gt=0)
    """Steps between measurements of token delay, and between evaluations on `eval_dataset`."""
    max_new_tokens: int = Field(256, gt=0)
    """Longest answer to a held-out row, in tokens."""

    @model_validator(mode="after")
    def _check_chains(self) -> "CompressConfig":
        if without_chain := set(self.data.styles) - {"think", "short-think", "xs-cot"}:
            raise ValueError(
                f"data.styles: {min(without_chain)!r} has no chain to shorten; use think, short-think or xs-cot"
            )
        if self.unit == "tokens" and self.order == "random":
            raise ValueError("order random removes sentences; with unit tokens the order is left or right")
        stub_keys = ("stub_groups", "words_per_group", "ellipsis")
        self.refuse_idle(self.unit == "sentences", stub_keys, "unit tokens leaves no stub")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> "CompressConfig":
        if self.units_per_epoch and self.steps_per_unit:
            raise ValueError("units_per_epoch and steps_per_unit exclude each other; leave one out")
        has_rate = bool(self.units_per_epoch or self.steps_per_unit)
        self.refuse_idle(not has_rate, ("schedule_ratio",), "leave out units_per_epoch and steps_per_unit")
        if self.unit == "tokens" and self.cutover is None and not has_rate:
            raise ValueError("unit tokens needs cutover, units_per_epoch or steps_per_unit: chains differ in length")
        return self

    @model_validator(mode="after")
    def _check_held_out(self) -> "CompressConfig":
        self.refuse_idle(self.held_out is not None, ("held_out_limit", "max_new_tokens"), "set held_out")
        return self
