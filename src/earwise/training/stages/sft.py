"""Supervised fine-tuning (SFT): log-likelihood of the answers, all chosen questions about a clip in one tree.

The data flow is that of `supervised.py`; the reply to a row is its answer in the wording of the prompt style. The loss
is the mean over all trained tokens of a step.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from earwise.algorithms.losses import LossOutput, sft_loss
from earwise.config.stages import SftConfig, Source
from earwise.data.index import ManifestRows
from earwise.forest import TokenPath
from earwise.models.memory.stage_memory import StageMemory
from earwise.models.prompt_encoding import answer_path
from earwise.prompts import target_text
from earwise.training.policy import MicroBatch
from earwise.training.stages import ridge
from earwise.training.stages.stage import StageContext, StepBatches
from earwise.training.stages.supervised import SupervisedPipeline, SupervisedStep, can_score_reply, check_reasoning
from earwise.types import Example


@dataclass(frozen=True, slots=True)
class SftInputs:
    """Inputs of the SFT loss: `num_tokens` is the number of trained tokens of the whole step."""

    num_tokens: float


class SftStage:
    """SFT for the trainer.

    Args:
        context: What the run gives to the stage.
        config: Settings.
    """

    kind = "sft"
    updates_per_rollout = 1
    decodes_in_batches = False

    def __init__(self, context: StageContext, config: SftConfig) -> None:
        self._model = context.model
        self._pipeline = SupervisedPipeline(context, config, decodes_in_batches=self.decodes_in_batches)
        if config.connector_init == "ridge" and not context.resumed:
            ridge.init_connector(context)

    def batches(self, step: int) -> StepBatches[SftInputs]:
        """Draw clips and questions and pack them; see `Stage`."""
        return self._with_inputs(self._pipeline.make_step(step, self._replies))

    def held_out_batches(self, step: int) -> Iterator[StepBatches[SftInputs]]:
        """Held-out rows, packed; see `Stage`."""
        yield from map(self._with_inputs, self._pipeline.held_out_steps(self._replies))

    def _with_inputs(self, data: SupervisedStep) -> StepBatches[SftInputs]:
        inputs = SftInputs(data.num_trained_tokens)
        micro_batches = [micro_batch.with_loss_inputs(inputs) for micro_batch in data.micro_batches]
        return StepBatches(micro_batches, data.metrics, data.example_ids, data.num_trained_tokens)

    def loss(self, logprobs: Tensor, micro_batch: MicroBatch[SftInputs]) -> LossOutput:
        """Negative log-likelihood per trained token of the step; see `Stage`."""
        return sft_loss(logprobs, micro_batch.forest.loss_mask, denominator=micro_batch.loss_inputs.num_tokens)

    def resets_optimizer(self, step: int) -> bool:
        """Never; see `Stage`."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Position in the data; see `Stage`."""
        return self._pipeline.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position in the data; see `Stage`."""
        self._pipeline.load_state_dict(state)

    def _replies(self, example: Example, style: str, rng: random.Random) -> Sequence[TokenPath]:
        """One branch: one of the accepted answers, worded as the style asks."""
        answer = rng.choice(example.answer) if example.answer else None
        return [answer_path(self._model, target_text(example, style, answer))]

    @staticmethod
    def trains_on_preferences(config: SftConfig) -> bool:
        """No: rows need an answer; see `StageClass`."""
        return False

    @staticmethod
    def can_score(config: SftConfig, row: Example) -> bool:
        """Whether the row has the reply that is asked for; see `StageClass`."""
        return can_score_reply(config, row)

    @staticmethod
    def held_out_source(config: SftConfig) -> Source | None:
        """None; see `StageClass`."""
        return None

    @staticmethod
    def check(config: SftConfig, rows: ManifestRows, source_name: str) -> None:
        """Refuse rows without reasoning where the style asks for it; see `StageClass`."""
        check_reasoning(config, rows, source_name)

    @staticmethod
    def memory(config: SftConfig, processes: int = 1) -> StageMemory:
        """Nothing beside the forward pass; see `StageClass`."""
        clips = -(-(config.rows_per_step or config.clips_per_step) // processes)
        return StageMemory(decodes_in_batches=SftStage.decodes_in_batches, clips=clips)
