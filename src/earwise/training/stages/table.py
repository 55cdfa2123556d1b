"""The table of stages: kind in a recipe -> class. Importing it loads no torch.

To add a stage: its settings in `config/stages.py` with a row in `config/stage_kinds.py`, a class in this folder (see
`stage.py` for the interface), and a row here. The run, the recipe check, the memory plan and the report read this
table. A stage outside the package needs none of these rows: its kind is `file.py:name`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from earwise.config.resolve import resolve_entry
from earwise.config.stages import StageConfig
from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.training.stages.stage import Stage, StageClass, StageContext


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A row of the table.

    Attributes:
        implementation: The class, as `module:name`.
        main_metric: Name (without the kind) of the logged value that sums up the stage in a report. For a run with
            several stages, the report takes that of the first kind in this table.
    """

    implementation: str
    main_metric: str


STAGES = {
    "grpo": StageEntry("earwise.training.stages.grpo:GrpoStage", "reward"),
    "sft": StageEntry("earwise.training.stages.sft:SftStage", "loss"),
    "dpo": StageEntry("earwise.training.stages.dpo:DpoStage", "accuracy"),
    "compress": StageEntry("earwise.training.stages.compress:CompressStage", "loss"),
    "gkd": StageEntry("earwise.training.stages.gkd:GkdStage", "loss"),
}


def stage_class(config: StageConfig) -> "StageClass[Any]":
    """The class of a stage, of the package or a user's own; it is imported by this call.

    Raises:
        ConfigError: if a user's own cannot be imported, or lacks a method that every stage has.
    """
    implementations = {kind: entry.implementation for kind, entry in STAGES.items()}
    implementation = resolve_entry(implementations, config.kind, "stage")
    if config.kind not in STAGES:
        from earwise.training.stages.stage import Stage, StageClass

        methods = [name for protocol in (Stage, StageClass) for name in vars(protocol) if not name.startswith("_")]
        missing = [f"{name}()" for name in methods if not callable(getattr(implementation, name, None))]
        _refuse_missing(missing, config.kind)
    return cast("StageClass[Any]", implementation)


def make_stage(config: StageConfig, context: "StageContext") -> "Stage[Any]":
    """The stage at work.

    Raises:
        ConfigError: if a user's own lacks an attribute that every stage has.
    """
    stage = stage_class(config)(context, config)
    if config.kind not in STAGES:
        from earwise.training.stages.stage import Stage

        _refuse_missing([name for name in Stage.__annotations__ if not hasattr(stage, name)], config.kind)
    return stage


def _refuse_missing(names: list[str], kind: str) -> None:
    """Raise the error for what a user's class lacks, if it lacks anything."""
    if names:
        raise ConfigError(f"stage {kind!r} lacks {', '.join(names)}; docs/extend/stage.md shows what a stage has")
