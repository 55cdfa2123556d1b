"""Short trainings of a tiny family on one batch, with the trainer that users run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from earwise.algorithms.losses import LossOutput, sft_loss
from earwise.config.stages import OptimizerConfig
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.training.batches import build_micro_batches
from earwise.training.logging.step_log import LogFiles
from earwise.training.policy import MicroBatch
from earwise.training.stages.stage import StepBatches
from earwise.training.trainer import Trainer, TrainerOptions
from earwise.types import Waveform
from families.forests import trees

Loss = Callable[[Tensor, MicroBatch], LossOutput]


@dataclass
class FixedBatchStage:
    """A stage that trains on the same micro-batches at every step."""

    micro_batches: list[MicroBatch]
    loss: Loss
    kind = "test"
    updates_per_rollout = 1
    decodes_in_batches = False

    def batches(self, step: int) -> StepBatches:
        return StepBatches(self.micro_batches, {}, [])

    def resets_optimizer(self, step: int) -> bool:
        return False

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        raise AssertionError("there is no checkpoint to load")


def train(model: AudioLM, micro_batches: list[MicroBatch], loss: Loss, out: Path, steps: int) -> None:
    """Train on one batch, with the checks of forest and hearing before the first step."""
    optimizer = OptimizerConfig(learning_rate=5e-3, lr_scheduler_type="constant")
    messages: list[str] = []
    Trainer(
        model, FixedBatchStage(micro_batches, loss), TrainerOptions(optimizer, max_steps=steps, save_steps=100),
        folder=out, log_files=LogFiles(out / "metrics.jsonl"), encoder_cache=EncoderCache(model),
        notify=messages.append,
    ).train()  # fmt: skip
    assert any(line.startswith("checks: packed forest equals single sequences") for line in messages)


def train_sft(model: AudioLM, waveforms: dict[int, Waveform], out: Path, steps: int) -> list[float]:
    """SFT on two trees in one pass; the loss of each step."""
    (micro_batch,) = build_micro_batches(model, EncoderCache(model), trees(model, waveforms)[:2], waveforms, 4096)
    losses: list[float] = []

    def loss(logprobs: Tensor, micro_batch: MicroBatch) -> LossOutput:
        output = sft_loss(logprobs, micro_batch.forest.loss_mask)
        losses.append(float(output.loss.detach()))
        return output

    train(model, [micro_batch], loss, out, steps)
    return losses
