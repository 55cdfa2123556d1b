"""The table of stages: kind in a recipe -> class. Importing it loads no torch.

To add a stage: its settings in `config/stages.py`, a class in this folder (see `stage.py` for the interface), and a row
here. The run, the recipe check, the memory plan and the report read this table.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from earwise.config.resolve import resolve_entry
from earwise.config.stages import StageConfig

if TYPE_CHECKING:
    from earwise.training.stages.stage import StageClass


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
}


def stage_class(config: StageConfig) -> "StageClass[Any]":
    """The class of a stage; it is imported by this call."""
    implementations = {kind: entry.implementation for kind, entry in STAGES.items()}
    return cast("StageClass[Any]", resolve_entry(implementations, config.kind, "stage"))
