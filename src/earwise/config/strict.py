"""Base class of everything that a recipe may contain. No torch."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of the schema: values cannot be changed, unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
