"""The plain way, as R1-AQA's trainer goes it: generate a group with transformers, then every completion is a sequence
of its own, its clip padded to 30 s and encoded again in the reference pass and in the policy's, logits over the whole
vocabulary at every position.

In its favour: mel features are made once per prompt, the reference is the policy with its old weights switched in (no
second model), and no activation checkpointing. `rows` sequences go through one forward pass (1: one by one, least
memory; the group size: as one batch).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from earwise.algorithms.losses import group_advantages, grpo_loss
from earwise.models.base import AudioLM
from earwise.train.trainable import Reference
from ways.hears import Hearing
from ways.models import trained
from ways.shapes import Workload
from ways.timing import Clock
from ways.way import BETA, NEVER, TEMPERATURE, Ids, adamw, cut, update_weights


class Plain:
    """`Way` of a loop over sequences; made before the weights move away from the reference."""

    def __init__(self, model: AudioLM, work: Workload, ears: Hearing, *, rows: int = 1) -> None:
        self._work, self._ears, self._rows, self._ends = work, ears, rows, model.eos_ids
        self._reference = Reference(ears.module)
        self._parameters = list(trained(model).values())
        self._optimizer = adamw(self._parameters)

    def rollout(self, clock: Clock, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `Way`; one prompt at a time, its group as one batch."""
        torch.manual_seed(seed)
        shape = self._work.shape
        config = sampling(shape.max_new_tokens, () if full else self._ends, pad=self._ends[0])
        groups = []
        for number, trunk in enumerate(self._work.trunks):
            with clock("rollout"), torch.no_grad():
                ids = torch.tensor([trunk.ids])
                out = self._ears.module.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config,
                    num_return_sequences=shape.group, **self._ears.features(self._work.waves[number]),
                )[:, ids.shape[1] :]  # fmt: skip
            groups.append([row if full else cut(row, self._ends) for row in out.tolist()])
        return groups

    def train(self, clock: Clock, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `Way`."""
        rewards = torch.tensor(self._work.rewards, dtype=torch.float64)
        advantages = group_advantages(rewards, self._work.shape.group).float()
        start = 0
        for number, (trunk, group) in enumerate(zip(self._work.trunks, groups, strict=True)):
            with clock("listen"):
                features = self._ears.features(self._work.waves[number])
            for first in range(0, len(group), self._rows):
                some = group[first : first + self._rows]
                with clock("reference"), self._reference.active():
                    reference, mask = self._logprobs(trunk.ids, some, features)
                with clock("loss"):
                    policy, mask = self._logprobs(trunk.ids, some, features)
                    some_advantages = advantages[start : start + len(some)]
                    grpo_loss(
                        policy, None, reference, some_advantages, mask, beta=BETA, num_sequences=len(advantages)
                    ).loss.backward()
                start += len(some)
        if update:
            with clock("optimizer"):
                update_weights(self._optimizer, self._parameters)

    def _logprobs(self, prompt: Ids, completions: Sequence[Ids], features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the completions' tokens and their mask, `(rows, tokens)`."""
        said = pad_sequence([torch.tensor(ids) for ids in completions], batch_first=True)
        lengths = torch.tensor([len(ids) for ids in completions])
        mask = torch.arange(said.shape[1]) < lengths[:, None]
        prompts = torch.tensor([prompt]).expand(len(said), -1)
        scores = self._ears.module(
            input_ids=torch.cat([prompts, said], 1),
            attention_mask=torch.cat([torch.ones_like(prompts), mask.long()], 1),
            **{name: value.expand(len(said), *value.shape[1:]) for name, value in features.items()},
        ).logits
        every = scores[:, :-1].log_softmax(-1).gather(2, torch.cat([prompts, said], 1)[:, 1:, None])[..., 0]
        return every[:, len(prompt) - 1 :], mask


def sampling(max_new_tokens: int, ends: Sequence[int], *, pad: int) -> GenerationConfig:
    """Plain sampling from the whole distribution, ending at `ends` (none: never, which must be said by an id that is no
    token: transformers replaces None by the model's own end marks)."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
        eos_token_id=list(ends) or NEVER, pad_token_id=pad,
    )  # fmt: skip
