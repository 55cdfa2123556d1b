"""The GRPO step of earwise, by its public functions: one token tree per prompt, reference and loss on packed trees."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from baselines.implementation import BETA, TEMPERATURE, Ids, adamw, update_weights
from baselines.models import trained_parameters
from baselines.timing import PhaseTimer
from baselines.workload import Workload
from earwise.algorithms.policy_loss import group_advantages, grpo_loss
from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import completion_path
from earwise.training.batches import branch_slice, build_micro_batches
from earwise.training.policy import Policy
from earwise.training.trainable import Reference

PACK_TOKENS = 1024
"""Tokens per micro batch; the recipes' default."""


class EarwiseStep:
    """earwise as a `StepImplementation`.

    Every rollout starts with an empty encoder cache. In training, clips are encoded in the rollout only; the time that
    encoding takes is reported as the phase `listen` of `train`, so that it can be counted or left out.

    Args:
        model: Model to train.
        work: Prompts of the step.
    """

    def __init__(self, model: AudioLM, work: Workload) -> None:
        self._model, self._work = model, work
        self._engine = LocalEngine(model)
        self._policy, self._reference = Policy(model), Reference(model.module)
        self._parameters = list(trained_parameters(model).values())
        self._optimizer = adamw(self._parameters)
        self.distinct_share = 1.0
        """Tokens of the last trees, divided by those of their paths."""
        self.passes = 0
        """Number of decoding passes of the last rollout."""
        self.forest_tokens: list[int] = []
        """Positions of all tokens of the last packed trees, from which the lower bound is computed."""
        self.sources = 0
        """Number of positions of the last packed trees whose logits were needed."""

    def rollout(self, timer: PhaseTimer, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `StepImplementation`; the trained weights count as changed since the last rollout, as after an update."""
        self._engine.encoder_cache = EncoderCache(self._model)
        with torch.no_grad():
            for weight in self._parameters:
                weight.mul_(1)
        before = self._engine.stats.forward_passes
        sampling_params = SamplingParams(self._work.shape.max_new_tokens, TEMPERATURE, seed=seed)
        with without_end_tokens(self._model) if full else nullcontext(), timer("rollout"):
            groups = self._engine.generate(self._work.prompts, sampling_params, self._work.shape.group)
        self.passes = self._engine.stats.forward_passes - before
        return [[list(completion.token_ids) for completion in group] for group in groups]

    def train(self, timer: PhaseTimer, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `StepImplementation`."""
        encoder_cache = EncoderCache(self._model)
        with timer("listen"):
            encoder_cache.encoder_states(list(self._work.waveforms.values()))
        with timer("loss"):
            trees = [
                [prompt + completion_path(ids) for ids in group]
                for prompt, group in zip(self._work.paths, groups, strict=True)
            ]
            micro_batches = build_micro_batches(self._model, encoder_cache, trees, self._work.waveforms, PACK_TOKENS)
            rewards = torch.tensor(self._work.rewards, dtype=torch.float64)
            advantages = group_advantages(rewards, self._work.shape.group).tolist()
        start = 0
        self.forest_tokens, self.sources = [], 0
        for micro_batch in micro_batches:
            with timer("reference"), self._reference.active():
                ref_logprobs = self._policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
            with timer("loss"):
                logprobs = self._policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms)
                loss = grpo_loss(
                    logprobs, None, ref_logprobs,
                    branch_slice(advantages, micro_batch, start).float(), micro_batch.forest.loss_mask,
                    beta=BETA, num_sequences=len(advantages),
                ).loss  # fmt: skip
                loss.backward()
            start += len(micro_batch.forest.branch_trees)
            self.forest_tokens += micro_batch.forest.positions.tolist()
            self.sources += len(micro_batch.forest.source_indices)
        self.distinct_share = len(self.forest_tokens) / sum(len(path.ids) for tree in trees for path in tree)
        if update:
            with timer("optimizer"):
                update_weights(self._optimizer, self._parameters)


@contextmanager
def without_end_tokens(model: AudioLM) -> Iterator[None]:
    """Let no token end a completion inside the block."""
    eos_ids = model.eos_ids
    try:
        model.eos_ids = ()
        yield
    finally:
        model.eos_ids = eos_ids
