"""Schema of a stage's curriculum: the order in which rows are used. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from earwise.config.strict import Strict


class BandConfig(Strict):
    """Pass counts from `low` to `high` out of `attempts`. Rows with another number of attempts are compared by rate."""

    low: int = Field(3, ge=0)
    """Smallest pass count in the band."""
    high: int = Field(6, ge=0)
    """Largest pass count in the band."""
    attempts: int = Field(8, gt=0)
    """Number of attempts that `low` and `high` refer to."""

    @model_validator(mode="after")
    def _check_order(self) -> "BandConfig":
        if not self.low <= self.high <= self.attempts:
            raise ValueError(
                f"band needs low <= high <= attempts, got low {self.low}, high {self.high}, attempts {self.attempts}"
            )
        return self


class CurriculumConfig(Strict):
    """Order in which the rows of each manifest are used. All orders but `shuffled` and `online` need rows with pass
    rates (`earwise build difficulty`)."""

    order: Literal["shuffled", "easy_to_hard", "banded", "online"] = "shuffled"
    """`banded` leaves out rows outside the band; `online` does so by pass rates that the policy's own groups keep up to
    date."""
    band: BandConfig = BandConfig()
    """Pass rates to train on, for `banded` and `online`."""
    reward: str = "accuracy"
    """For `online`: a completion counts as passed if this reward is 1."""
    exploration: float = Field(0.1, gt=0, le=1)
    """For `online`: probability of using a row that is outside the band, each time it comes up."""

    @model_validator(mode="after")
    def _check_keys_of_order(self) -> "CurriculumConfig":
        self.refuse_idle(self.order in ("banded", "online"), ("band",), "it is for order banded or online")
        self.refuse_idle(self.order == "online", ("reward", "exploration"), "it is for order online")
        return self
