"""Direct preference optimisation (DPO): chosen and rejected replies to a clip in one tree, against the reference.

The data flow is that of `supervised.py` with two branches per question, the chosen reply before the rejected one. The
audio is computed once for all branches, by the policy and by the reference alike. The reference is the policy as it was
when the stage began.

Source: DPO (arXiv:2305.18290); losses and their names as in TRL 1.16. Qwen2-Audio (arXiv:2407.10759) uses DPO as its
third stage but does not publish settings.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from earwise.algorithms.losses import DpoLossType, LossOutput, dpo_loss
from earwise.config.stages import DpoConfig, Source
from earwise.data.index import ManifestRows
from earwise.errors import DataError
from earwise.forest import TokenPath
from earwise.models.memory.stage_memory import StageMemory
from earwise.models.prompt_encoding import answer_path
from earwise.prompts import target_text
from earwise.training.policy import MicroBatch, Policy
from earwise.training.stages.stage import StageContext, StepBatches
from earwise.training.stages.supervised import SupervisedPipeline, SupervisedStep
from earwise.training.trainable import Reference
from earwise.types import Example

LOSSES: dict[str, tuple[DpoLossType, bool]] = {
    "sigmoid": ("sigmoid", False),
    "sigmoid_norm": ("sigmoid", True),
    "robust": ("robust", False),
    "ipo": ("ipo", True),
}
"""TRL's name of a loss -> kind of `dpo_loss`, and whether log-ratios are means over the tokens of a reply."""
CHECKED_ROWS = 2_000
"""Number of rows of a manifest whose options `check` looks at, evenly spread."""


@dataclass(frozen=True, slots=True)
class DpoInputs:
    """Inputs of the DPO loss.

    Attributes:
        num_pairs: Number of preference pairs of the whole step.
        ref_logprobs: Log-probabilities (nats) of the trained tokens under the reference.
    """

    num_pairs: int
    ref_logprobs: Float[Tensor, "branches tokens"]


class DpoStage:
    """DPO for the trainer.

    Args:
        context: What the run gives to the stage; its model as it is now becomes the reference.
        config: Settings.
    """

    kind = "dpo"
    updates_per_rollout = 1
    decodes_in_batches = True  # the reference's log-probabilities

    def __init__(self, context: StageContext, config: DpoConfig) -> None:
        self._context, self._config = context, config
        self._pipeline = SupervisedPipeline(context, config, decodes_in_batches=self.decodes_in_batches)
        self._policy, self._reference = Policy(context.model), Reference(context.model.module)
        self._loss_kind, self._length_normalised = LOSSES[config.loss_type]

    def batches(self, step: int) -> StepBatches[DpoInputs]:
        """Draw clips and preference pairs, pack them and run the reference; see `Stage`."""
        return self._with_reference(self._pipeline.make_step(step, self._replies))

    def held_out_batches(self, step: int) -> Iterator[StepBatches[DpoInputs]]:
        """Held-out preference pairs, packed, with the reference's log-probabilities; see `Stage`."""
        yield from map(self._with_reference, self._pipeline.held_out_steps(self._replies))

    def _with_reference(self, data: SupervisedStep) -> StepBatches[DpoInputs]:
        num_pairs = data.num_branches // 2
        micro_batches = []
        for micro_batch in data.micro_batches:
            with self._context.profiler.phase("reference"):
                ref_logprobs = self._reference.logprobs(self._policy, micro_batch)
            micro_batches.append(micro_batch.with_loss_inputs(DpoInputs(num_pairs, ref_logprobs)))
        metrics = data.metrics | {"pairs": float(num_pairs)}
        return StepBatches(micro_batches, metrics, data.example_ids, float(num_pairs))

    def loss(self, logprobs: Tensor, micro_batch: MicroBatch[DpoInputs]) -> LossOutput:
        """DPO loss of the pairs of a micro-batch; see `Stage`."""
        loss_mask, inputs = micro_batch.forest.loss_mask, micro_batch.loss_inputs
        chosen, rejected = slice(0, None, 2), slice(1, None, 2)
        return dpo_loss(
            logprobs[chosen],
            logprobs[rejected],
            inputs.ref_logprobs[chosen],
            inputs.ref_logprobs[rejected],
            loss_mask[chosen],
            loss_mask[rejected],
            beta=self._config.beta,
            loss_type=self._loss_kind,
            length_normalised=self._length_normalised,
            label_smoothing=self._config.label_smoothing,
            num_pairs=float(inputs.num_pairs),
        )

    def resets_optimizer(self, step: int) -> bool:
        """Never; see `Stage`."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, and the reference; see `Stage`."""
        return {**self._pipeline.state_dict(), "reference": self._reference.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state; see `Stage`."""
        self._pipeline.load_state_dict(state)
        self._reference.load_state_dict(state["reference"])

    def _replies(self, example: Example, style: str, rng: random.Random) -> Sequence[TokenPath]:
        """Two branches: a chosen and a rejected reply."""
        replies = preference_pair(example, style, self._config.negatives, rng)
        return [answer_path(self._context.model, reply) for reply in replies]

    @staticmethod
    def trains_on_preferences(config: DpoConfig) -> bool:
        """Whether rejected replies come from the rows; see `StageClass`."""
        return config.negatives == "rows"

    @staticmethod
    def can_score(config: DpoConfig, row: Example) -> bool:
        """Whether the row has a preference; see `StageClass`."""
        if config.negatives == "options":
            return bool(row.answer) and len(row.choices) > 1
        return bool(row.rejected) and bool(row.chosen or row.answer)

    @staticmethod
    def held_out_source(config: DpoConfig) -> Source | None:
        """None; see `StageClass`."""
        return None

    @staticmethod
    def check(config: DpoConfig, rows: ManifestRows, source_name: str) -> None:
        """Refuse rows without options where wrong options are the rejected replies; see `StageClass`."""
        if config.negatives != "options":
            return
        for number in range(0, len(rows), max(1, len(rows) // CHECKED_ROWS)):
            if len(rows[number].choices) < 2:
                raise DataError(
                    f"{source_name}: row {rows[number].id!r} has no options to reject; narrow `where`, or use "
                    "negatives: rows"
                )

    @staticmethod
    def memory(config: DpoConfig, processes: int = 1) -> StageMemory:
        """The reference; see `StageClass`."""
        clips = -(-config.clips_per_step // processes)
        return StageMemory(keeps_reference=True, decodes_in_batches=DpoStage.decodes_in_batches, clips=clips)


def preference_pair(example: Example, style: str, negatives: str, rng: random.Random) -> tuple[str, str]:
    """A chosen and a rejected reply to a row's question.

    Args:
        example: The row.
        style: Prompt style, which sets the wording of replies that are bare answers.
        negatives: Source of the rejected reply: `rows` takes one of the row's `rejected`, `options` a wrong option.
        rng: Random generator for the choice where there are several.
    Raises:
        DataError: if the row has no chosen or no rejected reply.
    """
    if negatives == "options":
        wrong_options = [choice for choice in example.choices if choice not in example.answer]
        if not wrong_options or not example.answer:
            raise DataError(f"example {example.id!r} has no wrong option to reject; use `negatives: rows`")
        return target_text(example, style), target_text(example, style, rng.choice(wrong_options))
    if not example.rejected or not (example.chosen or example.answer):
        raise DataError(
            f"example {example.id!r} holds no preference; add `rejected` (`earwise build preferences`), "
            "or use `negatives: options`"
        )
    if example.chosen:
        return rng.choice(example.chosen), rng.choice(example.rejected)
    one_answer = replace(example, answer=(rng.choice(example.answer),))
    return target_text(one_answer, style), target_text(one_answer, style, rng.choice(example.rejected))
