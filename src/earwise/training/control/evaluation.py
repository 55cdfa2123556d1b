"""Evaluation during a stage: the loss on held-out rows, and answers to them that a task scores.

The trainer calls `HeldOutEvaluation.measure` between two steps. Nothing of the training changes by it: rows come in the
order of the manifest, answers are decoded greedily, random generators are put back, and cached encoder states are bit
for bit those of another encoder pass. A run with evaluations therefore has the same weights as one without.

Answers are scored by the program above (`apps/recipe_eval.py`), because `training` knows nothing of tasks. With several
processes all of them share the loss; the first one answers while the others wait.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from earwise.config.control.run_control import EvalConfig
from earwise.engine.local import LocalEngine
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.training.distributed import parallel, sharding
from earwise.training.policy import Policy
from earwise.training.profiler import Profiler
from earwise.training.stages.stage import Stage


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """What the program above is asked to measure.

    Attributes:
        config: The rows and how the model is asked.
        engine: The model as it is trained so far.
        folder: Empty folder for the answers.
    """

    config: EvalConfig
    engine: LocalEngine
    folder: Path


AnswerEvaluator = Callable[[AnswerRequest], dict[str, float]]
"""Answers the rows of a request and scores the answers; returns metrics by name."""


@dataclass(frozen=True, slots=True)
class HeldOutEvaluation:
    """Measures the model on the `eval_dataset` of a stage.

    Attributes:
        model: The model that is trained.
        stage: The stage, whose loss on held-out rows is measured if it has one.
        encoder_cache: Encoder states, shared with the stage.
        config: The rows and how the model is asked.
        answer_evaluator: Scores answers; None: only the loss is measured.
        folder: Folder for the answers, one folder per evaluation.
        profiler: Measures the time as `evaluation`.
        report_activity: Is told what the process does, for `earwise status`.
    """

    model: AudioLM
    stage: Stage[Any]
    encoder_cache: EncoderCache
    config: EvalConfig
    answer_evaluator: AnswerEvaluator | None
    folder: Path
    profiler: Profiler
    report_activity: Callable[[str], None] = lambda activity: None

    def measure(self, step: int, policy: Policy, sharded_layers: list[Any]) -> dict[str, float]:
        """Evaluate the model after `step` finished steps. A collective: all processes must call.

        Args:
            step: Number of finished steps.
            policy: The model behind its forward call.
            sharded_layers: Layers that FSDP2 shards, which are gathered for this.
        Returns:
            `loss` (in stages with a loss on given rows), what the answer evaluator measures (`accuracy`, `n`, ...), and
            `seconds`; the same in all processes.
        """
        started = time.monotonic()
        if parallel.is_main_process():
            self.report_activity(f"evaluating on {self.config.manifest} after step {step}")
        # One more pass must not move the random generators that dropout draws from.
        with self.profiler.phase("evaluation"), torch.random.fork_rng(), sharding.unsharded_layers(sharded_layers):
            metrics = self._loss(step, policy)
            if parallel.is_main_process():
                metrics |= self._answers(step)
            metrics = parallel.all_gather(metrics)[0]
        if parallel.is_main_process():
            self.report_activity("training")
        return metrics | {"seconds": time.monotonic() - started}

    @torch.no_grad()
    def _loss(self, step: int, policy: Policy) -> dict[str, float]:
        """The mean loss over all held-out rows, weighted by what the stage's loss is a mean of."""
        total = weight = 0.0
        for batches in self.stage.held_out_batches(step):
            for micro_batch in batches.micro_batches:
                logprobs = policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
                total += float(self.stage.loss(logprobs, micro_batch).loss) * batches.weight
            weight += batches.weight
        return {"loss": parallel.all_sum({"loss": total})["loss"] / weight} if weight else {}

    def _answers(self, step: int) -> dict[str, float]:
        """Metrics of the answers; those of an evaluation that was interrupted are made anew."""
        if self.answer_evaluator is None:
            return {}
        folder = self.folder / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)
        # Without the static cache, whose buffers would stay on the device.
        engine = LocalEngine(self.model, encoder_cache=self.encoder_cache, use_static_cache=False)
        return self.answer_evaluator(AnswerRequest(self.config, engine, folder))
