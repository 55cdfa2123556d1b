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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from earwise.errors import DataError, ModelError
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.training import checkpoints
from earwise.training.checkpoints import load_checkpoint, save_checkpoint
from earwise.training.control.evaluation import HeldOutEvaluation
from earwise.training.control.model_selection import ModelSelection
from earwise.training.control.start_checks import StartChecks
from earwise.training.control.step_guard import StepGuard, Verdict
from earwise.training.control.trainer_options import TrainerOptions as TrainerOptions
from earwise.training.distributed import parallel, sharding
from earwise.training.logging.step_log import LogFiles, StepLog, StepRecord
from earwise.training.logging.throughput import Throughput
from earwise.training.optimization.lr_schedule import learning_rate_factor
from earwise.training.optimization.master_weights import MasterWeights
from earwise.training.optimization.optimizer import build_optimizer
from earwise.training.policy import MicroBatch, Policy
from earwise.training.profiler import Profiler
from earwise.training.signals import StopRequest, before_error
from earwise.training.stages.stage import Notify, Stage

GUARD, SELECTION, REGULAR_STEP = "step_guard", "model_selection", "regular_step"
"""Keys in a checkpoint: the states of `StepGuard` and `ModelSelection`, and where a rollback leads."""


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
        evaluation: Evaluates the model on held-out rows; None: no evaluation.
        selection: Chooses the best of the evaluated checkpoints, and ends a stage without improvement.
        throughput: What the work of a step is measured against in the log.
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
        evaluation: HeldOutEvaluation | None = None,
        selection: ModelSelection | None = None,
        throughput: Throughput | None = None,
    ) -> None:
        self._evaluation = evaluation
        self._selection = selection or ModelSelection("loss", greater_is_better=False)
        self._guard = StepGuard(options.failure_policy)
        self._model, self._stage, self._options = model, stage, options
        self._folder, self._notify = folder, notify
        self._profiler = profiler or Profiler()
        self._step_log = StepLog(
            log_files,
            stage.kind,
            folder.name,
            max_steps=options.max_steps,
            profiler=self._profiler,
            profile=options.profile,
            notify=notify,
            throughput=throughput,
        )
        self._accelerator = Accelerator(cpu=parallel.on_cpu())
        self._policy = Policy(model)
        self._start_checks = StartChecks(self._policy, encoder_cache, options.forest_tolerance, notify)
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
        self._saved_step = -1 if options.failure_policy.rolls_back else 0
        self._regular_step = 0
        """Step of the newest checkpoint that does not stem from an interrupt: where a rollback leads."""
        self._checks_done = False
        self._checkpoint_state: dict[str, Any] | None = None
        """State of the stage that belongs to the current weights; None while no checkpoint of them is possible."""
        self._stop = StopRequest(notify)
        self._began = 0.0
        """When training began in this process, in seconds."""

    def train(self) -> int:
        """Train until `max_steps` or `max_minutes`, from the newest checkpoint if there is one.

        Returns:
            Number of finished steps.
        Raises:
            ModelError: if the forest is not exact on this model, the audio does not reach the loss, or too many steps
                are bad.
            KeyboardInterrupt: if the run was asked to stop; everything is saved.
        """
        self._restore()
        self._began = time.monotonic()
        with self._stop as stop, before_error(self._save_before_error):
            while self._step < self._options.max_steps:
                self._prepare_checkpoint()
                if self._must_stop(stop):
                    break
                if self._stage.resets_optimizer(self._step):
                    self._optimizer.state.clear()
                with self._step_log.recorded():
                    step = self._make_batches()
                    self._set_learning_rate(step)
                    self._forward_backward(step)
                    self._clip_gradients(step)
                    verdict = self._judge(step)
                    if verdict == "rollback":
                        self._roll_back(step)
                        continue
                    self._update(step, takes_step=verdict == "accept")
                    self._step_log.write(self._step, step.record)
            self._checkpoint_state = self._current_state()
            self._evaluate(is_last=True)
            self._save()
            self._load_best(is_finished=not parallel.any_process(stop.requested))
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
            self._load_control_state(state)
            self._start_checks.checkpoint = checkpoints.checkpoint_folder(self._folder, self._step)
            self._notify(f"{kind}: resumed after step {self._step}")
        if self._step_log.delete_after(self._step) and checkpoint is None:
            self._notify(f"{kind}: no checkpoint yet (save_steps: {self._options.save_steps}), starts from step 1")

    def _prepare_checkpoint(self) -> None:
        """Take the stage's state where a checkpoint is possible, and save it where one is due."""
        updates_per_rollout = self._stage.updates_per_rollout
        interval = math.ceil(self._options.save_steps / updates_per_rollout) * updates_per_rollout
        at_rollout = self._step % updates_per_rollout == 0
        self._checkpoint_state = self._current_state() if at_rollout else None
        is_best = at_rollout and self._evaluate()
        if self._step % interval == 0 or is_best:
            self._regular_step = self._step
            self._save()

    def _evaluate(self, *, is_last: bool = False) -> bool:
        """Evaluate where it is due, once a step; returns whether the result is the best and its checkpoint is kept.

        The finished steps are in `_checkpoint_state`, so an interrupt loses none. A stopped run evaluates when resumed.
        """
        if self._evaluation is None or self._options.eval_steps is None or self._selection.last_step == self._step:
            return False
        updates_per_rollout = self._stage.updates_per_rollout
        interval = math.ceil(self._options.eval_steps / updates_per_rollout) * updates_per_rollout
        if not self._step or (self._step % interval and not is_last) or parallel.any_process(self._stop.requested):
            return False
        with self._stop.immediate():
            metrics = self._evaluation.measure(self._step, self._policy, self._sharded.layers)
        is_best = self._selection.observe(self._step, metrics)
        self._step_log.write_evaluation(self._step, metrics, is_best=is_best)
        self._checkpoint_state = self._current_state()
        return is_best and self._selection.keeps_best

    def _current_state(self) -> dict[str, Any]:
        control = {GUARD: self._guard.state_dict(), SELECTION: self._selection.state_dict()}
        return self._stage.state_dict() | control

    def _load_control_state(self, state: dict[str, Any]) -> None:
        """Continue counting bad steps and evaluations; checkpoints of earlier versions have neither count."""
        if GUARD in state:
            self._guard.load_state_dict(state[GUARD])
            self._selection.load_state_dict(state[SELECTION])
            self._regular_step = state[REGULAR_STEP]

    def _save(self, *, before_error: bool = False) -> None:
        """Write a checkpoint of the current weights, if due; before an error the newest regular one stays beside it."""
        keeps_regular = before_error or self._guard.policy.rolls_back
        if self._checkpoint_state is not None and self._step > self._saved_step:
            save_checkpoint(
                self._folder,
                self._masters.trained,
                self._optimizer,
                self._step,
                self._checkpoint_state | {REGULAR_STEP: self._regular_step},
                save_total_limit=self._options.save_total_limit,
                keep={self._selection.kept_step, self._regular_step if keeps_regular else None},
            )
            self._saved_step = self._step

    def _load_best(self, *, is_finished: bool) -> None:
        """At the end of the stage, take the weights of the best checkpoint, if the recipe asks for them."""
        best_step = self._selection.best_step
        if is_finished and self._options.load_best_model_at_end and best_step not in (None, self._step):
            load_checkpoint(self._folder, self._masters.trained, self._optimizer, step=best_step)
            self._masters.round_to_module()
            self._notify(
                f"{self._stage.kind}: the weights of step {best_step} are taken, the best by {self._selection.metric} "
                f"({self._selection.best_value:.4f})"
            )

    def _save_before_error(self) -> None:
        """Save the finished steps before an error goes on. Sharded parameters cannot be saved then, since all processes
        would have to take part."""
        if not self._sharded.layers:
            with suppress(DataError):  # a full disk may be the reason for the error
                self._save(before_error=True)

    def _must_stop(self, stop: StopRequest) -> bool:
        """Whether to end before the next step: asked to, or out of time, in any process; only between rollouts."""
        max_minutes = self._options.max_minutes
        is_late = bool(max_minutes and time.monotonic() - self._began > 60 * max_minutes)
        if self._checkpoint_state is not None and self._selection.should_stop:
            self._notify(
                f"{self._stage.kind}: ends after step {self._step}, {self._selection.without_improvement} evaluations "
                f"in a row without a better {self._selection.metric} (early_stopping_patience)"
            )
            return True
        return self._checkpoint_state is not None and parallel.any_process(is_late or stop.requested)

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
                    hearing = self._start_checks.run(batches.micro_batches)
            metrics |= {} if hearing is None else {"hearing": hearing}
        passes = parallel.all_gather(len(batches.micro_batches))
        if not self._checks_done:
            self._checks_done = parallel.any_process(hearing is not None)
            if any(passes) and not self._checks_done:
                self._start_checks.refuse_steps_without_clip(self._stage.kind, self._options.max_steps)
        return _Step(batches.micro_batches, passes, StepRecord(started, data_ready, metrics, batches.example_ids))

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
        """Log-probabilities (or divergences from a teacher), and the mean entropy per token if it is to be logged."""
        if (targets := micro_batch.teacher_targets) is not None:
            return self._prepared_policy(*micro_batch.policy_inputs, teacher_targets=targets), {}
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

    def _judge(self, step: _Step) -> Verdict:
        """Decide what happens to a step, and end the run if its loss is bad and the recipe allows no other way."""
        loss, grad_norm = step.record.sums.get("loss", 0.0), step.record.grad_norm
        verdict, metrics = self._guard.judge(loss, grad_norm)
        step.record.metrics |= metrics
        if verdict == "stop":
            raise ModelError(self._guard.explain(self._step + 1, loss, grad_norm, self._folder, self._regular_step))
        return verdict

    def _roll_back(self, step: _Step) -> None:
        """Restore the newest regular checkpoint, and go on from there with the rows that come next.

        A checkpoint that an interrupt left in between is not used, so that an interrupted run goes back to the same
        step as one that was not.
        """
        target, bad_step, rollbacks = self._regular_step, self._step + 1, self._guard.rollbacks + 1
        checkpoints.delete_checkpoints_after(self._folder, target)
        restored = load_checkpoint(self._folder, self._masters.trained, self._optimizer, step=target)
        if restored is None:
            raise ModelError(f"{self._folder}: the checkpoint of step {target} is gone; start the stage anew")
        self._masters.round_to_module()
        self._prepared_optimizer.zero_grad()
        self._model.module.eval()
        self._step, state = restored
        self._saved_step = self._step
        self._load_control_state(state)  # not the stage's: its position in the data stays after the bad step
        self._guard.rollbacks = rollbacks
        self._step_log.delete_after(self._step)
        self._step_log.count_rollback()
        self._notify(
            f"{self._stage.kind}: step {bad_step} has loss {step.record.sums.get('loss', 0.0):g} and gradient norm "
            f"{step.record.grad_norm:g}; back at step {self._step} (rollback {rollbacks}), the rows in between are left"
        )

    def _update(self, step: _Step, *, takes_step: bool) -> None:
        """Take the optimizer step, unless it is to be skipped."""
        self._checkpoint_state = None
        if any(step.passes):
            with self._profiler.phase("optimizer"):
                if takes_step:
                    self._prepared_optimizer.step()
                    self._masters.round_to_module()
                self._prepared_optimizer.zero_grad()
        self._model.module.eval()
        self._step += 1
