"""Base class of everything that a recipe may contain. No torch."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from earwise.files import expand_home

UserPath = Annotated[str, AfterValidator(expand_home)]
"""A text that may be a path; `~` at its beginning is the user's home folder."""


class Strict(BaseModel):
    """Base of the schema: values cannot be changed, unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def is_set(self, key: str) -> bool:
        """Whether a key has another value than its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True))

    def refuse_idle(self, acts: bool, keys: tuple[str, ...], remedy: str) -> None:
        """Refuse keys that have a value and cannot act.

        Args:
            acts: Whether the keys act with the other settings as they are.
            keys: The keys.
            remedy: What to set, or that the keys are to be left out; the end of the message.
        Raises:
            ValueError: naming the first key that has another value than its default.
        """
        if not acts and (idle := [key for key in keys if self.is_set(key)]):
            raise ValueError(f"{idle[0]} {getattr(self, idle[0])!r} does nothing here; {remedy}")
