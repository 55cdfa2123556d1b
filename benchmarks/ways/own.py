"""earwise's way, by its public calls: the engine samples, one tree per prompt, reference and loss on packed forests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from earwise.algorithms.losses import group_advantages, grpo_loss
from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import completion_path
from earwise.train.batches import assemble, per_branch
from earwise.train.policy import Policy
from earwise.train.trainable import Reference
from ways.models import trained
from ways.shapes import Workload
from ways.timing import Clock
from ways.way import BETA, TEMPERATURE, Ids, adamw, update_weights

PACK_TOKENS = 1024  # the recipes' default


class Own:
    """`Way` of earwise.

    Every rollout starts with new `Ears`, as if the sounds had never been heard. A real step listens in the rollout and
    never again: `listen` is what that would have cost `train`, told apart so that it can be counted or not.
    """

    def __init__(self, model: AudioLM, work: Workload) -> None:
        self._model, self._work = model, work
        self._engine = LocalEngine(model)
        self._policy, self._reference = Policy(model), Reference(model.module)
        self._parameters = list(trained(model).values())
        self._optimizer = adamw(self._parameters)
        self.distinct_share = 1.0
        """Tokens of the last trees per token of their paths."""
        self.passes = 0
        """Decoding passes of the last rollout."""
        self.forest_tokens: list[int] = []
        """Positions of all tokens of the last forests: what the floor is reckoned from."""
        self.sources = 0
        """Positions of the last forests whose logits were needed."""

    def rollout(self, clock: Clock, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `Way`; the trained weights count as changed since the last rollout, as after an update."""
        self._engine.encoder_cache = EncoderCache(self._model)
        with torch.no_grad():
            for weight in self._parameters:
                weight.mul_(1)
        before = self._engine.stats.forward_passes
        sampling_params = SamplingParams(self._work.shape.max_new_tokens, TEMPERATURE, seed=seed)
        with endless(self._model) if full else _as_it_is(), clock("rollout"):
            groups = self._engine.generate(self._work.prompts, sampling_params, self._work.shape.group)
        self.passes = self._engine.stats.forward_passes - before
        return [[list(completion.token_ids) for completion in group] for group in groups]

    def train(self, clock: Clock, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `Way`."""
        encoder_cache = EncoderCache(self._model)
        with clock("listen"):
            encoder_cache.encoder_states(list(self._work.waveforms.values()))
        with clock("loss"):
            trees = [
                [trunk + completion_path(ids) for ids in group]
                for trunk, group in zip(self._work.trunks, groups, strict=True)
            ]
            micros = assemble(self._model, encoder_cache, trees, self._work.waveforms, PACK_TOKENS)
            rewards = torch.tensor(self._work.rewards, dtype=torch.float64)
            advantages = group_advantages(rewards, self._work.shape.group).tolist()
        start = 0
        self.forest_tokens, self.sources = [], 0
        for micro in micros:
            with clock("reference"), self._reference.active():
                ref_logprobs = self._policy(micro.forest, micro.heard, micro.waveforms)
            with clock("loss"):
                loss = grpo_loss(
                    self._policy(micro.forest, micro.heard, micro.waveforms), None, ref_logprobs,
                    per_branch(advantages, micro, start).float(), micro.forest.loss_mask,
                    beta=BETA, num_sequences=len(advantages),
                ).loss  # fmt: skip
                loss.backward()
            start += len(micro.forest.branch_trees)
            self.forest_tokens += micro.forest.positions.tolist()
            self.sources += len(micro.forest.source_indices)
        self.distinct_share = len(self.forest_tokens) / sum(len(path.ids) for tree in trees for path in tree)
        if update:
            with clock("optimizer"):
                update_weights(self._optimizer, self._parameters)


@contextmanager
def endless(model: AudioLM) -> Iterator[None]:
    """Inside the block no token ends a completion."""
    ends = model.eos_ids
    try:
        model.eos_ids = ()
        yield
    finally:
        model.eos_ids = ends


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
