"""The checks before a stage's first update: the forest is exact on this model, and the audio reaches the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.errors import ModelError
from earwise.models.encoder_cache import EncoderCache
from earwise.training.policy import MicroBatch, Policy, check_forest, check_hearing

MAX_STEPS_WITHOUT_CLIP = 10
"""Number of first steps without any clip that ends a run."""


@dataclass(slots=True)
class StartChecks:
    """Checks a model on the first micro-batches of a stage.

    Attributes:
        policy: The model.
        encoder_cache: Encoder states, for the check under silence.
        forest_tolerance: Limit of `check_forest`, in nats.
        notify: Receives the result.
        steps_without_clip: Steps so far that had nothing to compare with silence.
        checkpoint: Folder of the checkpoint that the weights come from; None at the start of a stage.
    """

    policy: Policy
    encoder_cache: EncoderCache
    forest_tolerance: float
    notify: Callable[[str], None]
    steps_without_clip: int = 0
    checkpoint: Path | None = None

    def refuse_steps_without_clip(self, kind: str, max_steps: int) -> None:
        """Count a step without a clip, and end a run that never has one that could be compared with silence.

        Args:
            kind: Kind of the stage, for the message.
            max_steps: Optimizer steps of the stage.
        Raises:
            ModelError: after `MAX_STEPS_WITHOUT_CLIP` such steps.
        """
        self.steps_without_clip += 1
        if self.steps_without_clip >= min(MAX_STEPS_WITHOUT_CLIP, max_steps):
            raise ModelError(
                f"{kind}: no row of the first {self.steps_without_clip} steps has a clip, so it cannot be "
                "checked that the audio reaches the loss; raise the weight of the manifests with sound"
            )

    def run(self, micro_batches: Sequence[MicroBatch[Any]]) -> float | None:
        """Check that the forest is exact on this model and that the audio reaches the loss.

        Args:
            micro_batches: Micro-batches of a step, at least one.
        Returns:
            The result of `check_hearing`; None if no micro-batch has a clip, so that a later step must be checked.
        Raises:
            ModelError: if one of the checks fails.
        """
        try:
            return self._run(micro_batches)
        except ModelError as error:
            if self.checkpoint is None:
                raise
            raise ModelError(
                f"{self.checkpoint}: {error}. If its last steps went wrong (loss and grad_norm in metrics.jsonl), "
                "delete it, and --resume goes on from the one before, or from the start"
            ) from error

    def _run(self, micro_batches: Sequence[MicroBatch[Any]]) -> float | None:
        """As `run`, without regard to where the weights come from."""
        micro_batch = next((batch for batch in micro_batches if batch.forest.audio_clips), micro_batches[0])
        difference = check_forest(self.policy, micro_batch, tolerance=self.forest_tolerance)
        if not micro_batch.forest.audio_clips:
            return None
        silent_states = {}
        if micro_batch.encoder_states:
            clips = sorted(set(micro_batch.forest.audio_clips))
            states = self.encoder_cache.encoder_states([micro_batch.waveforms[clip] * 0 for clip in clips])
            silent_states = dict(zip(clips, states, strict=True))
        hearing = check_hearing(self.policy, micro_batch, silent_states)
        self.notify(
            f"checks: packed forest equals single sequences within {difference:.1e} nats; "
            f"silence changes the log-probability by {-hearing:+.3f} nats per token"
        )
        return hearing
