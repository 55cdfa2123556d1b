"""Settings of the training loop (`training/trainer.py`)."""

from dataclasses import dataclass, field

from earwise.config.optimizer import OptimizerConfig
from earwise.training.control.step_guard import FailurePolicy


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """Settings of the loop; most are those of a recipe's stage (`config/stages.py`).

    Attributes:
        optimizer: AdamW and its schedule.
        max_steps: Optimizer steps in all.
        save_steps: Steps from one checkpoint to the next; rounded up to whole rollouts.
        save_total_limit: Number of checkpoints that are kept.
        max_minutes: Wall-clock limit of this process; None: no limit.
        failure_policy: What to do about losses that are not finite, and about spikes.
        eval_steps: Steps from one evaluation to the next; None: no evaluation. Rounded up to whole rollouts.
        load_best_model_at_end: Whether to end with the weights of the best checkpoint.
        profile: Whether the seconds of each phase are logged, and described at intervals.
        forest_tolerance: Limit of `check_forest`, in nats.
        seed: Seed of the dropout of LoRA (`lora_dropout`), which is drawn anew at each step.
    """

    optimizer: OptimizerConfig
    max_steps: int
    save_steps: int
    save_total_limit: int = 1
    max_minutes: float | None = None
    failure_policy: FailurePolicy = field(default_factory=FailurePolicy)
    eval_steps: int | None = None
    load_best_model_at_end: bool = False
    profile: bool = False
    forest_tolerance: float = 1e-4
    seed: int = 0
