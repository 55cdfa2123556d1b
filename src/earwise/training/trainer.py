"""The training loop of all stages: micro-batches, loss, optimizer step, log, checkpoint, exact resume. On accelerate.

A stage (`stages/stage.py`) makes the micro-batches of a step and computes the loss; the trainer does everything else.
Random numbers are drawn from `(seed, step)`; the global generator, from which dropout draws, is seeded with them. So
a step is the same whether or not the run was interrupted before it. Whatever ends a run, the finished steps are saved
first.

Gradients are not synchronised by DDP but added once per step, after the last micro-batch, because processes may have
different numbers of micro-batches, or none (`distributed/parallel.py`).
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from earwise.config.optimizer import OptimizerConfig
from earwise.errors import DataError, ModelError
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.training.checkpoints import load_checkpoint, save_checkpoint
from earwise.training.distributed import parallel, sharding
from earwise.training.logging.step_log import LogFiles, StepLog, StepRecord
from earwise.training.optimization.lr_schedule import learning_rate_factor
from earwise.training.optimization.master_weights import MasterWeights
from earwise.training.optimization.optimizer import build_optimizer
from earwise.training.policy import MicroBatch, Policy, check_forest, check_hearing
from earwise.training.profiler import Profiler
from earwise.training.signals import StopRequest
from earwise.training.stages.stage import Notify, Stage

SKIPPED_STEPS = "bad_steps"
"""Key in a checkpoint: consecutive steps, up to it, without a finite loss."""

MAX_STEPS_WITHOUT_CLIP = 10
"""Number of first steps without any clip that ends a run."""


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """Settings of the loop; most are those of a recipe's stage (`config/stages.py`).

    Attributes:
        optimizer: AdamW and its schedule.
        max_steps: Optimizer steps in all.
        save_steps: Steps from one checkpoint to the next; rounded up to whole rollouts.
        save_total_limit: Number of checkpoints that are kept.
        max_minutes: Wall-clock limit of this process; None: no limit.
        max_skipped_steps: Number of consecutive steps whose loss or gradient may be non-finite; their update is
            skipped. One more ends the run.
        profile: Whether the seconds of each phase are logged, and described at intervals.
        forest_tolerance: Limit of `check_forest`, in nats.
        seed: Seed of the dropout of LoRA (`lora_dropout`), which is drawn anew at each step.
    """

    optimizer: OptimizerConfig
    max_steps: int
    save_steps: int
    save_total_limit: int = 1
    max_minutes: float | None = None
    max_skipped_steps: int = 0
    profile: bool = False
    forest_tolerance: float = 1e-4
    seed: int = 0


@dataclass(slots=True)
class _Step:
    """A step under way.

    Attributes:
        micro_batches: This process's micro-batches.
        passes: Number of micro-batches of each process.
        record: What is logged of the step.
    """

    micro_batches: list[MicroBatch[Any]]
    passes: list[int]
    record: StepRecord


class Trainer:
    """Trains a model in one stage.

    Args:
        model: The model, prepared by `trainable.set_trainable`; trained in place.
        stage: The stage.
        options: Settings of the loop.
        folder: Folder of the stage, for its checkpoints; a run continues from the newest one.
        log_files: Log files.
        encoder_cache: Encoder states, for the check under silence.
        start_values: Exact float32 values of parameters, from `set_trainable`.
        profiler: Measures the phases of a step; shared with the stage.
        notify: Receives progress.
    """

    def __init__(
        self,
        model: AudioLM,
        stage: Stage[Any],
        options: TrainerOptions,
        *,
        folder: Path,
        log_files: LogFiles,
        encoder_cache: EncoderCache,
        start_values: Mapping[str, Tensor] | None = None,
        profiler: Profiler | None = None,
        notify: Notify = lambda line: None,
    ) -> None:
        self._model, self._stage, self._options = model, stage, options
        self._folder, self._encoder_cache, self._notify = folder, encoder_cache, notify
        self._profiler = profiler or Profiler()
        self._step_log = StepLog(
            log_files,
            stage.kind,
            folder.name,
            max_steps=options.max_steps,
            profiler=self._profiler,
            profile=options.profile,
            notify=notify,
        )
        self._accelerator = Accelerator(cpu=parallel.on_cpu())
        self._policy = Policy(model)
        self._sharded = sharding.shard_decoder(model, start_values or {})
        self._masters = MasterWeights(model.module, start_values or {})
        self._optimizer = build_optimizer(
            model, options.optimizer, sharded=bool(self._sharded.layers), trained=self._masters.trained
        )
        self._learning_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        self.float32_values: dict[str, Tensor] = {}
        """After `train`: exact values of the parameters of which the model has the roundings."""
        # Prepared for evaluation, so that accelerate does not wrap it in DDP: see the module docstring.
        self._prepared_policy = self._accelerator.prepare_model(self._policy, evaluation_mode=True)
        self._prepared_optimizer = self._accelerator.prepare_optimizer(self._optimizer)
        self._step = 0
        self._saved_step = 0
        self._skipped_in_a_row = 0
        self._checks_done = False
        self._steps_without_clip = 0
        self._checkpoint_state: dict[str, Any] | None = None
        """State of the stage that belongs to the current weights; None while no checkpoint of them is possible."""
        self._began = 0.0
        """Time at which training began in this process, in seconds, for `max_minutes`."""

    def train(self) -> int:
        """Train until `max_steps` or `max_minutes`, from the newest checkpoint if there is one.

        Returns:
            Number of finished steps.
        Raises:
            ModelError: if the forest is not exact on this model, the audio does not reach the loss, or too many losses
                are not finite.
            KeyboardInterrupt: if the run was asked to stop; everything is saved.
        """
        self._restore()
        self._began = time.monotonic()
        with StopRequest(self._notify) as stop, _before_error(self._save_before_error):
            while self._step < self._options.max_steps:
                self._prepare_checkpoint()
                if self._must_stop(stop):
                    break
                self._reset_optimizer()
                step = self._make_batches()
                self._set_learning_rate(step)
                self._forward_backward(step)
                self._clip_gradients(step)
                self._check_finite(step)
                self._update(step)
                self._step_log.write(self._step, step.record)
            self._checkpoint_state = self._current_state()
            self._save()
        self._step_log.report(self._step)
        self.float32_values = self._masters.values | sharding.unshard_parameters(self._model, self._sharded)
        if parallel.any_process(stop.requested):
            self._notify(f"{self._stage.kind}: stopped after step {self._step}, saved; continue with --resume")
            raise KeyboardInterrupt
        return self._step

    def _restore(self) -> None:
        """Continue from the newest checkpoint, and delete the log rows of steps after it."""
        kind = self._stage.kind
        checkpoint = load_checkpoint(self._folder, self._masters.trained, self._optimizer)
        if checkpoint is not None:
            self._masters.round_to_module()
            self._step, state = checkpoint
            self._saved_step = self._step
            self._stage.load_state_dict(state)
            self._skipped_in_a_row = state.get(SKIPPED_STEPS, 0)
            self._notify(f"{kind}: resumed after step {self._step}")
        if self._step_log.delete_after(self._step) and checkpoint is None:
            self._notify(f"{kind}: no checkpoint yet (save_steps: {self._options.save_steps}), starts from step 1")

    def _prepare_checkpoint(self) -> None:
        """Take the stage's state where a checkpoint is possible, and save it where one is due."""
        updates_per_rollout = self._stage.updates_per_rollout
        interval = math.ceil(self._options.save_steps / updates_per_rollout) * updates_per_rollout
        at_rollout = self._step % updates_per_rollout == 0
        self._checkpoint_state = self._current_state() if at_rollout else None
        if self._step % interval == 0:
            self._save()

    def _current_state(self) -> dict[str, Any]:
        return self._stage.state_dict() | {SKIPPED_STEPS: self._skipped_in_a_row}

    def _save(self) -> None:
        """Write a checkpoint of the current weights, if possible and not yet done."""
        if self._checkpoint_state is not None and self._step > self._saved_step:
            save_checkpoint(
                self._folder,
                self._masters.trained,
                self._optimizer,
                self._step,
                self._checkpoint_state,
                save_total_limit=self._options.save_total_limit,
            )
            self._saved_step = self._step

    def _save_before_error(self) -> None:
        """Save the finished steps before an error goes on. Sharded parameters cannot be saved then, since all processes
        would have to take part."""
        if not self._sharded.layers:
            with suppress(DataError):  # a full disk may be the reason for the error
                self._save()

    def _must_stop(self, stop: StopRequest) -> bool:
        """Whether to end before the next step: asked to, or out of time, in any process; only between rollouts."""
        max_minutes = self._options.max_minutes
        is_late = bool(max_minutes and time.monotonic() - self._began > 60 * max_minutes)
        return self._checkpoint_state is not None and parallel.any_process(is_late or stop.requested)

    def _reset_optimizer(self) -> None:
        """Clear the optimizer's state where the stage asks for it."""
        if self._stage.resets_optimizer(self._step):
            self._optimizer.state.clear()

    def _make_batches(self) -> _Step:
        """Have the stage make the micro-batches of the next step; the first ones are used for the checks."""
        started = time.monotonic()
        self._profiler.split()
        gathers_layers = self._stage.decodes_in_batches or not self._checks_done
        with sharding.unsharded_layers(self._sharded.layers if gathers_layers else ()):
            batches = self._stage.batches(self._step)
            data_ready = time.monotonic()
            metrics = dict(batches.metrics)
            hearing = None
            # A first step whose groups are all flat has no micro-batches; then the next step is checked.
            if batches.micro_batches and not self._checks_done:
                with self._profiler.phase("checks"):
                    hearing = self._check_model(batches.micro_batches)
            if hearing is not None:
                metrics["hearing"] = hearing
        passes = parallel.all_gather(len(batches.micro_batches))
        if not self._checks_done:
            self._checks_done = parallel.any_process(hearing is not None)
            self._refuse_steps_without_clip(any(passes))
        return _Step(batches.micro_batches, passes, StepRecord(started, data_ready, metrics, batches.example_ids))

    def _check_model(self, micro_batches: Sequence[MicroBatch[Any]]) -> float | None:
        """Check that the forest is exact on this model and that the audio reaches the loss.

        Returns:
            The result of `check_hearing`; None if no micro-batch has a clip, so that a later step must be checked.
        """
        micro_batch = next((batch for batch in micro_batches if batch.forest.audio_clips), micro_batches[0])
        difference = check_forest(self._policy, micro_batch, tolerance=self._options.forest_tolerance)
        if not micro_batch.forest.audio_clips:
            return None
        silent_states = {}
        if micro_batch.encoder_states:
            clips = sorted(set(micro_batch.forest.audio_clips))
            states = self._encoder_cache.encoder_states([micro_batch.waveforms[clip] * 0 for clip in clips])
            silent_states = dict(zip(clips, states, strict=True))
        hearing = check_hearing(self._policy, micro_batch, silent_states)
        self._notify(
            f"checks: packed forest equals single sequences within {difference:.1e} nats; "
            f"silence changes the log-probability by {-hearing:+.3f} nats per token"
        )
        return hearing

    def _refuse_steps_without_clip(self, has_passes: bool) -> None:
        """End a run that trains and trains without ever having a clip that could be compared with silence.

        Args:
            has_passes: Whether the step has micro-batches in any process.
        """
        if self._checks_done or not has_passes:
            return
        self._steps_without_clip += 1
        if self._steps_without_clip >= min(MAX_STEPS_WITHOUT_CLIP, self._options.max_steps):
            raise ModelError(
                f"{self._stage.kind}: no row of the first {self._steps_without_clip} steps has a clip, so it cannot be "
                "checked that the audio reaches the loss; raise the weight of the manifests with sound"
            )

    def _set_learning_rate(self, step: _Step) -> None:
        """Set the learning rates of the step by the schedule."""
        factor = learning_rate_factor(self._step, self._options.max_steps, self._options.optimizer)
        for group, learning_rate in zip(self._optimizer.param_groups, self._learning_rates, strict=True):
            group["lr"] = learning_rate * factor
        step.record.learning_rate = self._learning_rates[0] * factor

    def _forward_backward(self, step: _Step) -> None:
        """Add up loss and gradients over the micro-batches of the step."""
        self._model.module.train()
        # Dropout draws from the global generator; seeded by the step, a resumed run draws the same.
        torch.manual_seed(random.Random(f"{self._options.seed} {self._step} {parallel.rank()}").getrandbits(63))
        sums: dict[str, float] = {}
        for micro_batch in step.micro_batches:
            with self._profiler.phase("forward"):
                logprobs, metrics = self._logprobs(micro_batch)
                output = self._stage.loss(logprobs, micro_batch)
            if output.loss.requires_grad:  # text without audio gives a connector that is trained alone no gradient
                with self._profiler.phase("backward"):
                    self._accelerator.backward(output.loss)
            sums["loss"] = sums.get("loss", 0.0) + float(output.loss.detach())
            for name, value in (metrics | output.metrics).items():
                sums[name] = sums.get(name, 0.0) + float(value) * (1 / sum(step.passes))
        if self._sharded.layers:
            self._run_empty_passes(max(step.passes) - len(step.micro_batches))
        step.record.sums = sums

    def _logprobs(self, micro_batch: MicroBatch[Any]) -> tuple[Tensor, dict[str, float]]:
        """Log-probabilities of a micro-batch, and the mean entropy over its trained tokens if it is to be logged."""
        if not micro_batch.log_entropy:
            return self._prepared_policy(*micro_batch.policy_inputs), {}
        logprobs, entropies = self._prepared_policy(*micro_batch.policy_inputs, with_entropy=True)
        return logprobs, {"entropy": float(entropies.sum() / micro_batch.forest.loss_mask.sum().clamp_min(1))}

    def _run_empty_passes(self, count: int) -> None:
        """Forward and backward passes without effect: all processes must gather sharded layers equally often."""
        for _ in range(count):
            empty = sharding.filler_micro_batch(self._model)
            logprobs = self._prepared_policy(*empty.policy_inputs)
            self._accelerator.backward(0.0 * logprobs.sum())

    def _clip_gradients(self, step: _Step) -> None:
        """Add the gradients of all processes and clip their norm; add up the metrics likewise."""
        with self._profiler.phase("optimizer"):
            parallel.all_reduce_gradients(sharding.replicated_parameters(self._trained))
            if any(step.passes):
                step.record.grad_norm = sharding.clip_grad_norm(self._trained, self._options.optimizer.max_grad_norm)
        num_tokens = float(sum(len(micro_batch.forest) for micro_batch in step.micro_batches))
        step.record.sums = parallel.all_sum(step.record.sums | {"tokens": num_tokens})

    def _check_finite(self, step: _Step) -> None:
        """Count consecutive steps whose loss or gradient is not finite, and end the run after too many."""
        self._skipped_in_a_row = 0 if step.record.is_finite else self._skipped_in_a_row + 1
        if self._skipped_in_a_row > self._options.max_skipped_steps:
            in_a_row = f", {self._skipped_in_a_row} such steps in a row" if self._skipped_in_a_row > 1 else ""
            loss, grad_norm = step.record.sums["loss"], step.record.grad_norm
            raise ModelError(
                f"{self._stage.kind}: loss {loss:g} and gradient norm {grad_norm:g} at step "
                f"{self._step + 1}{in_a_row}; lower optimizer.learning_rate or set on_nonfinite_loss: skip in "
                f"{self._folder.parent / 'recipe.json'}, then --resume"
            )

    def _update(self, step: _Step) -> None:
        """Take the optimizer step, unless loss or gradients are not finite."""
        self._checkpoint_state = None
        if any(step.passes):
            with self._profiler.phase("optimizer"):
                if step.record.is_finite:
                    self._prepared_optimizer.step()
                    self._masters.round_to_module()
                self._prepared_optimizer.zero_grad()
        self._model.module.eval()
        self._step += 1


@contextmanager
def _before_error(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` before any error or interrupt inside the block goes on."""
    try:
        yield
    except BaseException:
        action()
        raise
