"""Settings of completions that a policy samples in training: pause tokens in them, and confidence in them. No torch.

Names are those of the released code of HyPeR (arXiv:2604.14806) and DeepConf (arXiv:2508.15260) where these have one;
see `engine/sampling/pause.py` and `algorithms/confidence.py`.
"""

from typing import Literal

from pydantic import Field, model_validator

from earwise.config.strict import Strict


class PauseConfig(Strict):
    """Pause tokens: a token without meaning in place of one of which the policy is unsure."""

    token: str = ""
    """Text of the pause token; empty: the first row of the embedding table that the tokenizer does not use. With LoRA
    its embedding stays as it is, so name a token that the model has."""
    entropy_quantile: float = Field(0.5, gt=0, lt=1)
    """A pause is made where the entropy of the next token is at least this quantile of the latest `entropy_history`
    ones. The first step has none and makes no pause."""
    entropy_history: int = Field(1024, gt=0)
    """Number of tokens of earlier steps whose entropies the quantile is taken from."""
    max_pauses: int = Field(5, gt=0)
    """Largest number of pauses in a completion."""
    tokens_per_pause: int = Field(1, gt=0)
    """Pause tokens of a pause. They count in `max_new_tokens`."""
    mask_pause_tokens: bool = False
    """Leave pause tokens out of the loss. Otherwise the policy is rewarded for them like for its other tokens, so that
    it learns to pause by itself."""


class ConfidenceConfig(Strict):
    """What the probabilities that the policy gave to its own tokens do to its completions."""

    measure: Literal["mean", "tail", "bottom_window", "min_window"] = "min_window"
    """Confidence of a completion, by DeepConf's names: mean probability of all tokens, of the last `window_size`, of
    the least confident tenth of groups of neighbouring tokens, or of the least confident group."""
    window_size: int = Field(2048, gt=0)
    """Tokens of a group. A shorter completion is one group."""
    stride: int = Field(256, gt=0)
    """Tokens from the beginning of one group to that of the next."""
    top_p_keep: float = Field(1.0, gt=0, le=1)
    """Share of the completions of a prompt that are trained on, the most confident ones, at least one. The rewards of
    the others still count in the advantages of their group."""
    weight_advantages: bool = False
    """Multiply the advantage of a completion by half plus the sigmoid of its standardised confidence."""
    weight_clip_min: float = Field(0.5, ge=0)
    """Smallest weight."""
    weight_clip_max: float = Field(1.5, gt=0)
    """Largest weight."""
    standardize_over: Literal["batch", "group"] = "batch"
    """What a confidence is standardised over for its weight: all completions of the step, or those of its prompt."""
    recovery_bonus: float = Field(0.0, ge=0)
    """Added to the reward for each unit by which the mean probability of the last 64 tokens exceeds that of the first
    64."""

    @model_validator(mode="after")
    def _check_something_is_done(self) -> "ConfidenceConfig":
        if self.top_p_keep == 1 and not self.weight_advantages and not self.recovery_bonus:
            raise ValueError(
                "confidence does nothing: set top_p_keep below 1, weight_advantages: true or recovery_bonus above 0"
            )
        weight_keys = ("weight_clip_min", "weight_clip_max", "standardize_over")
        self.refuse_idle(self.weight_advantages, weight_keys, "set weight_advantages: true")
        is_measured = self.top_p_keep < 1 or self.weight_advantages
        self.refuse_idle(is_measured, ("measure", "window_size", "stride"), "recovery_bonus alone needs none of it")
        self.refuse_idle(self.measure != "mean", ("window_size",), "measure mean has no groups")
        self.refuse_idle(self.measure in ("min_window", "bottom_window"), ("stride",), "the measure has no groups")
        if self.weight_clip_min > self.weight_clip_max:
            raise ValueError(
                f"weight_clip_min {self.weight_clip_min:g} is above weight_clip_max {self.weight_clip_max:g}; swap them"
            )
        return self
