"""Which settings belong to the `kind` of a stage: those of the package, or those that a user's own class brings.

A stage outside the package is named as `file.py:name` or `module:name`, as rewards and tasks are. Its class has the
attribute `settings`, a pydantic model derived from `StageConfig`, so that a recipe's keys are checked before a model is
loaded. No torch here, but the user's module may import it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, SerializeAsAny, WrapValidator

from earwise.config.kinds.compress import CompressConfig
from earwise.config.kinds.gkd import GkdConfig
from earwise.config.resolve import resolve_entry
from earwise.config.stages import DpoConfig, GrpoConfig, SftConfig, StageConfig
from earwise.errors import ConfigError

STAGE_CONFIGS: dict[str, type[StageConfig]] = {
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "dpo": DpoConfig,
    "compress": CompressConfig,
    "gkd": GkdConfig,
}
"""Kind of a stage -> its settings. The classes of the stages themselves are in `training/stages/table.py`."""


def own_kinds(stages: object) -> list[str]:
    """The stages outside the package that a recipe's `stages`, as read from YAML or JSON, names as `kind`."""
    mappings = [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list | tuple) else []
    return [stage["kind"] for stage in mappings if isinstance(stage.get("kind"), str) and ":" in stage["kind"]]


def settings_class(kind: str) -> type[StageConfig]:
    """The settings of a stage outside the package; its module is imported by this call.

    Args:
        kind: The stage as `file.py:name` or `module:name`.
    Raises:
        ConfigError: if there is no such module or class, or the class has no settings that can be used.
    """
    stage = resolve_entry({}, kind, "stage")
    if not isinstance(stage, type):
        raise ConfigError(f"stage {kind!r} is a {type(stage).__name__}, not a class; see docs/extend/stage.md")
    settings = getattr(stage, "settings", None)
    if not (isinstance(settings, type) and issubclass(settings, StageConfig)):
        raise ConfigError(
            f"stage {kind!r} has no settings; give the class `settings = SETTINGS`, a class derived from "
            "earwise.config.stages.StageConfig or SupervisedConfig"
        )
    annotation = settings.model_fields["kind"].annotation
    if get_origin(annotation) is Literal and kind not in get_args(annotation):
        raise ConfigError(
            f"stage {kind!r}: its settings {settings.__name__} take the kind {get_args(annotation)[0]!r} only; write "
            "`kind: str` into the class"
        )
    return settings


def _validate_stage(value: Any, validate: Any) -> StageConfig:
    """The settings of a stage, checked by the class that belongs to its kind."""
    if isinstance(value, StageConfig):
        return value
    if own_kinds([value]):
        return settings_class(value["kind"]).model_validate(value)
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(kind, str) and kind in STAGE_CONFIGS:
        return STAGE_CONFIGS[kind].model_validate(value)
    return validate(value)  # type: ignore[no-any-return]  # says what is wrong


# For type checkers a stage has what all kinds share. pydantic describes the package's kinds in the JSON schema, and
# writes every key of a stage, also of one whose settings are none of these.
if TYPE_CHECKING:
    AnyStageConfig = StageConfig
else:
    _BuiltIn = Annotated[SftConfig | GrpoConfig | DpoConfig | CompressConfig | GkdConfig, Field(discriminator="kind")]
    AnyStageConfig = Annotated[SerializeAsAny[_BuiltIn], WrapValidator(_validate_stage)]
    """A stage of a recipe."""
