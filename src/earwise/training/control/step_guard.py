"""Judges every step before its update: losses that are not finite, spikes of loss and gradient, and what to do then.

The trainer asks `judge` once per step, with figures that are equal in all processes. A spike is a loss or gradient norm
far above those of the last accepted steps, as in OLMo's optimizer that skips such steps (a rolling mean and standard
deviation over 128 steps, six deviations). Ours: the deviation counts as at least a tenth of the mean, so that a run
whose figures hardly vary sees no spikes in rounding.

Everything is in the checkpoint, so a resumed run judges like one that was not interrupted.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

from earwise.training.checkpoints import checkpoint_folder

Verdict = Literal["accept", "skip", "rollback", "stop"]
"""What happens to a step: its update is taken, or left out, or the newest checkpoint is restored, or the run ends."""

WINDOW = 128
"""Number of accepted steps that a spike is compared with."""
MIN_STEPS = 32
"""Number of accepted steps from which spikes are looked for."""
MIN_RELATIVE_STD = 0.1
"""Smallest standard deviation that is counted, as a share of the mean."""


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What to do about bad steps; the settings of the same names are in `config/control/run_control.py`."""

    on_nonfinite_loss: Literal["stop", "skip", "rollback"] = "stop"
    on_loss_spike: Literal["log", "stop", "skip", "rollback"] = "log"
    spike_std: float = 6.0
    max_skipped_steps: int = 10
    max_rollbacks: int = 3

    @property
    def rolls_back(self) -> bool:
        """Whether a step may lead back to a checkpoint."""
        return "rollback" in (self.on_nonfinite_loss, self.on_loss_spike)


@dataclass(slots=True)
class StepGuard:
    """The judge of a stage's steps.

    Attributes:
        policy: What to do about bad steps.
        skipped_in_a_row: Consecutive steps, up to the last one, whose update was left out.
        rollbacks: Rollbacks of the stage so far.
        history: Loss and gradient norm of the last accepted steps.
    """

    policy: FailurePolicy
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    history: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def judge(self, loss: float, grad_norm: float) -> tuple[Verdict, dict[str, float]]:
        """Judge a step.

        Args:
            loss: Loss of the step, over all processes.
            grad_norm: Norm of its gradients before clipping.
        Returns:
            What to do, and what is logged of it: `bad_loss` or `spike`, each 1 where it occurred.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return self._verdict(self.policy.on_nonfinite_loss), {"bad_loss": 1.0}
        if self._is_spike(loss, grad_norm):
            if self.policy.on_loss_spike != "log":
                return self._verdict(self.policy.on_loss_spike), {"spike": 1.0}
            self._accept(loss, grad_norm)
            return "accept", {"spike": 1.0}
        self._accept(loss, grad_norm)
        return "accept", {}

    def explain(self, step: int, loss: float, grad_norm: float, stage_folder: Path, regular_step: int) -> str:
        """Why the run ends at a step that was judged `stop`, and what can be done.

        Args:
            step: Number of the step, from 1.
            loss: Loss of the step.
            grad_norm: Norm of its gradients before clipping.
            stage_folder: Folder of the stage, in that of the run.
            regular_step: Step of the newest regular checkpoint; 0 if there is none. The steps up to the bad one are
                saved beside it.
        """
        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        setting = "on_loss_spike" if is_finite else "on_nonfinite_loss"
        counts = f", {self.skipped_in_a_row} such steps in a row" if self.skipped_in_a_row > 1 else ""
        counts += f", after {self.rollbacks} rollbacks" if self.rollbacks else ""
        changes = {"skip": "raise max_skipped_steps", "rollback": "raise max_rollbacks"}
        change = changes.get(getattr(self.policy, setting), f"set {setting}: skip")
        back = f"step {regular_step}" if regular_step else "the start"
        newest = checkpoint_folder(stage_folder, step - 1)
        spoilt = f" (if the weights are spoilt already, delete {newest} first: back to {back})" if step > 1 else ""
        return (
            f"{stage_folder.name}: {'spike: ' if is_finite else ''}loss {loss:g} and gradient norm {grad_norm:g} at "
            f"step {step}{counts}; "
            f"lower optimizer.learning_rate or {change} in {stage_folder.parent / 'recipe.json'}, then --resume{spoilt}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Counts and history, as plain values."""
        return {
            "skipped_in_a_row": self.skipped_in_a_row,
            "rollbacks": self.rollbacks,
            "history": [list(figures) for figures in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.skipped_in_a_row, self.rollbacks = state["skipped_in_a_row"], state["rollbacks"]
        self.history = deque(((loss, norm) for loss, norm in state["history"]), maxlen=WINDOW)

    def _accept(self, loss: float, grad_norm: float) -> None:
        self.skipped_in_a_row = 0
        self.history.append((loss, grad_norm))

    def _verdict(self, action: Literal["stop", "skip", "rollback"]) -> Verdict:
        """The action of the policy, or `stop` where its limit is reached."""
        if action == "skip":
            self.skipped_in_a_row += 1
            return "stop" if self.skipped_in_a_row > self.policy.max_skipped_steps else "skip"
        if action == "rollback":
            return "stop" if self.rollbacks >= self.policy.max_rollbacks else "rollback"
        return "stop"

    def _is_spike(self, loss: float, grad_norm: float) -> bool:
        """Whether the loss or the gradient norm lies far above those of the last accepted steps."""
        if len(self.history) < MIN_STEPS:
            return False
        for value, values in zip((loss, grad_norm), zip(*self.history, strict=True), strict=True):
            mean = fmean(values)
            deviation = max(pstdev(values, mean), MIN_RELATIVE_STD * abs(mean))
            if value > mean + self.policy.spike_std * deviation:
                return True
        return False
