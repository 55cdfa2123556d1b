"""The interface between the trainer and a stage, and what a stage is given.

A stage makes the micro-batches of each optimizer step and computes the loss of each micro-batch. It never touches the
optimizer, and the trainer (`earwise.training.trainer`) never sees a row. All randomness of a stage is drawn from
`(seed, step)`, so that a resumed run continues exactly.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from earwise.algorithms.losses import LossOutput
from earwise.config.stages import Source
from earwise.data.index import ManifestRows
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.memory.stage_memory import StageMemory
from earwise.training.clip_loader import ClipLoader
from earwise.training.policy import MicroBatch
from earwise.training.profiler import Profiler
from earwise.types import Example

Notify = Callable[[str], None]
"""Receives one line of progress for a person to read."""
SampleLog = Callable[[dict[str, Any]], None]
"""Receives one row of `rollouts.jsonl`: a prompt with completions; see `logging/sample_log.py`."""
Inputs = TypeVar("Inputs")
Config = TypeVar("Config", contravariant=True)


@dataclass(frozen=True, slots=True)
class StageData:
    """The rows of a stage, opened and selected.

    Attributes:
        mixture: Rows and weight of each manifest of the mixture.
        held_out: Rows for measurements during the stage; empty if the stage has none.
        eval_rows: Those rows of `eval_dataset` on which the stage can compute a loss; empty without evaluations.
    """

    mixture: Sequence[tuple[Sequence[Example], float]]
    held_out: Sequence[Example] = ()
    eval_rows: Sequence[Example] = ()


@dataclass(frozen=True, slots=True)
class StageContext:
    """Everything that a run gives to a stage.

    Attributes:
        model: The policy, prepared for training (`trainable.set_trainable`); as it is now it is the reference.
        data: The rows to train on.
        encoder_cache: Encoder states of clips, shared by sampling, reference and loss.
        clip_loader: Decodes the clips of rows.
        seed: Seed of data order, choice of questions and styles, and sampling.
        folder: Folder of the stage.
        resumed: Whether the stage continues from a checkpoint.
        log_sample: Writes a row of `rollouts.jsonl`.
        notify: Receives progress.
        profiler: Measures the phases of a step.
    """

    model: AudioLM
    data: StageData
    encoder_cache: EncoderCache
    clip_loader: ClipLoader
    seed: int
    folder: Path
    resumed: bool = False
    log_sample: SampleLog = lambda row: None
    notify: Notify = lambda line: None
    profiler: Profiler = field(default_factory=Profiler)


@dataclass(frozen=True, slots=True)
class StepBatches(Generic[Inputs]):
    """The data of one optimizer step.

    Attributes:
        micro_batches: This process's micro-batches; may be empty.
        metrics: Values to log; the trainer prefixes their names with the kind of the stage.
        example_ids: Ids of the rows of the step, of all processes, in the order in which they were used.
        weight: What the loss of the step is a mean over (tokens, pairs), where it is averaged with other steps.
    """

    micro_batches: list[MicroBatch[Inputs]]
    metrics: dict[str, float]
    example_ids: list[str]
    weight: float = 1.0


class Stage(Protocol[Inputs]):
    """A training stage at work.

    Attributes:
        kind: Kind of the stage in recipes, and prefix of its log keys.
        updates_per_rollout: Optimizer steps that share the data of one call of `batches`; checkpoints are taken between
            such groups only.
        decodes_in_batches: Whether `batches` runs the model's decoder; see `StageMemory`.
    """

    kind: str
    updates_per_rollout: int
    decodes_in_batches: bool

    def batches(self, step: int) -> StepBatches[Inputs]:
        """Make the micro-batches of an optimizer step; `step` counts from 0."""
        ...

    def held_out_batches(self, step: int) -> Iterator[StepBatches[Inputs]]:
        """The rows of `StageData.eval_rows`, each once and in their order, as for a loss after `step` finished steps;
        nothing for a stage without a loss on given rows."""
        ...

    def loss(self, logprobs: Tensor, micro_batch: MicroBatch[Inputs]) -> LossOutput:
        """Loss of a micro-batch; the sum over the micro-batches of a step is minimised.

        Args:
            logprobs: Log-probabilities of the trained tokens, `(branches, tokens)`, from the policy.
            micro_batch: The micro-batch they were computed from.
        """
        ...

    def resets_optimizer(self, step: int) -> bool:
        """Whether the optimizer's state is cleared before a step; `step` counts from 0."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint (data position, reference): tensors and plain values only."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        ...


class StageClass(Protocol[Config]):
    """What the class of a stage offers before a model is loaded; the table is `stages/table.py`.

    A class outside the package has one attribute more, `settings`: the class of its settings in a recipe.
    """

    def __call__(self, context: StageContext, config: Config) -> Stage[Any]:
        """Make the stage."""
        ...

    def trains_on_preferences(self, config: Config) -> bool:
        """Whether the stage uses rows with `rejected` replies instead of rows with an answer."""
        ...

    def can_score(self, config: Config, row: Example) -> bool:
        """Whether the stage can compute its loss on a held-out row."""
        ...

    def held_out_source(self, config: Config) -> Source | None:
        """Manifest of rows for measurements during the stage."""
        ...

    def check(self, config: Config, rows: ManifestRows, source_name: str) -> None:
        """Refuse settings or rows that the stage cannot train on.

        Args:
            config: Settings of the stage.
            rows: Selected rows of one manifest.
            source_name: Name of the manifest in error messages.
        Raises:
            ConfigError: for a setting.
            DataError: for a row.
        """
        ...

    def memory(self, config: Config, processes: int = 1) -> StageMemory:
        """What the stage keeps in memory, in each of `processes` processes."""
        ...
