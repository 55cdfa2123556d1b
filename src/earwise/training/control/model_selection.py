"""Which checkpoint is the best one, and whether a stage should end because nothing improves any more.

Fed with the metrics of every evaluation during a stage (`control/evaluation.py`); the trainer keeps the best checkpoint
and asks `should_stop`. As transformers' Trainer and its EarlyStoppingCallback: the best value is the best of all
evaluations, and an evaluation counts as an improvement if it exceeds the best value so far by more than the threshold.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from earwise.config.stages import StageConfig
from earwise.errors import ConfigError


@dataclass(slots=True)
class ModelSelection:
    """The best evaluation of a stage so far.

    Attributes:
        metric: Metric that decides.
        greater_is_better: Whether larger values are better.
        patience: Evaluations in a row without an improvement after which the stage ends; None: never.
        threshold: Improvement below which an evaluation counts as none.
        keeps_best: Whether the checkpoint of the best evaluation is kept.
        best_step: Step of the best evaluation; None before the first one.
        best_value: Its value.
        without_improvement: Evaluations in a row without an improvement.
        last_step: Step of the newest evaluation; None before the first one.
    """

    metric: str
    greater_is_better: bool
    patience: int | None = None
    threshold: float = 0.0
    keeps_best: bool = False
    best_step: int | None = None
    best_value: float = 0.0
    without_improvement: int = 0
    last_step: int | None = None

    @classmethod
    def of(cls, config: StageConfig, error_metrics: Collection[str] = ()) -> "ModelSelection":
        """The selection that a recipe's stage asks for.

        Args:
            config: The stage.
            error_metrics: Metrics of its evaluations for which less is better; `greater_is_better` of the stage, where
                it is set, counts more.
        """
        counts_errors = config.greater_is_better is None and config.best_metric in error_metrics
        return cls(
            config.best_metric, config.best_is_greatest and not counts_errors, config.early_stopping_patience,
            config.early_stopping_threshold, config.keeps_best,
        )  # fmt: skip

    @property
    def should_stop(self) -> bool:
        """Whether the stage should end."""
        return self.patience is not None and self.without_improvement >= self.patience

    @property
    def kept_step(self) -> int | None:
        """Step of the checkpoint that must not be deleted."""
        return self.best_step if self.keeps_best else None

    def observe(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in an evaluation.

        Args:
            step: Number of finished steps.
            metrics: Metrics of the evaluation.
        Returns:
            Whether it is the best one so far.
        Raises:
            ConfigError: if a checkpoint is to be chosen and the metric is none of those that were measured.
        """
        self.last_step = step
        value = metrics.get(self.metric)
        if value is None:
            if self.keeps_best or self.patience is not None:
                raise ConfigError(
                    f"metric_for_best_model {self.metric!r} is none of those that were measured "
                    f"({', '.join(metrics)}); name one of them"
                )
            return False
        gain = (value - self.best_value) * (1 if self.greater_is_better else -1)
        is_first = self.best_step is None
        self.without_improvement = 0 if is_first or gain > self.threshold else self.without_improvement + 1
        if is_first or gain > 0:
            self.best_step, self.best_value = step, value
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation and the counts, as plain values."""
        names = ("best_step", "best_value", "without_improvement", "last_step")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        for name, value in state.items():
            setattr(self, name, value)
