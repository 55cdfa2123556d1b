"""The number of optimizer steps of a stage, where the recipe gives passes over the data (`num_train_epochs`)."""

import math
from collections.abc import Sequence

from earwise.config.kinds.gkd import GkdConfig
from earwise.config.stages import GrpoConfig, SftConfig, StageConfig, SupervisedConfig
from earwise.data.index import ManifestRows
from earwise.errors import ConfigError
from earwise.training.batches import group_by_clips


def steps_per_epoch(config: StageConfig, sources: Sequence[ManifestRows]) -> float:
    """Optimizer steps in which as many items are drawn as there are.

    Items are rows in grpo and with `rows_per_step`, otherwise clips (groups of rows that share them). With weights of
    its own a source may be drawn more often than its size says, so an epoch counts draws and not distinct items.

    Args:
        config: Settings of the stage.
        sources: The rows of each manifest.
    Raises:
        ConfigError: for a stage outside the package whose settings do not say what it draws in a step.
    """
    if isinstance(config, GrpoConfig):
        return max(1.0, sum(len(rows) for rows in sources) / config.prompts_per_step) * config.num_iterations
    if not isinstance(config, SupervisedConfig | GkdConfig):
        raise ConfigError(
            f"stage {config.label}: how much it draws in a step is not known, since its settings are derived from "
            "neither SupervisedConfig nor GrpoConfig; set max_steps instead of num_train_epochs"
        )
    if isinstance(config, SftConfig) and config.rows_per_step is not None:
        return max(1.0, sum(len(rows) for rows in sources) / config.rows_per_step)
    return max(1.0, sum(len(group_by_clips(rows)) for rows in sources) / config.clips_per_step)


def with_max_steps(config: StageConfig, sources: Sequence[ManifestRows]) -> StageConfig:
    """The settings of a stage with `max_steps` computed from `num_train_epochs`, unless it is set.

    Raises:
        ConfigError: if neither is set.
    """
    if config.max_steps:
        return config
    if config.num_train_epochs is None:
        raise ConfigError(f"stage {config.label}: set max_steps or num_train_epochs")
    return config.model_copy(
        update={"max_steps": math.ceil(round(config.num_train_epochs * steps_per_epoch(config, sources), 6))}
    )
