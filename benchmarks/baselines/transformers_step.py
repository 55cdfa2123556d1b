"""The GRPO step as a plain loop with transformers, as in R1-AQA's trainer.

A group is generated with transformers. Then every completion is a sequence of its own: its clip is padded to 30 s and
encoded again in the reference pass and in the policy's, with logits over the whole vocabulary at every position.

In favour of this implementation: mel features are computed once per prompt, the reference is the policy with its old
weights (no second model), and there is no activation checkpointing. `rows` sequences go through one forward pass (1:
one by one, with the least memory; the group size: as one batch).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from baselines.hf_models import HFModel
from baselines.implementation import BETA, NEVER, TEMPERATURE, Ids, adamw, cut_at_end, update_weights
from baselines.models import trained_parameters
from baselines.timing import PhaseTimer
from baselines.workload import Workload
from earwise.algorithms.policy_loss import group_advantages, grpo_loss
from earwise.models.base import AudioLM
from earwise.training.trainable import Reference


class TransformersStep:
    """A loop over sequences as a `StepImplementation`. Make it before the weights move away from the reference.

    Args:
        model: Model to train.
        work: Prompts of the step.
        hf_model: The model behind transformers' interface.
        rows: Sequences per forward pass.
    """

    def __init__(self, model: AudioLM, work: Workload, hf_model: HFModel, *, rows: int = 1) -> None:
        self._work, self._hf_model, self._rows, self._ends = work, hf_model, rows, model.eos_ids
        self._reference = Reference(hf_model.module)
        self._parameters = list(trained_parameters(model).values())
        self._optimizer = adamw(self._parameters)

    def rollout(self, timer: PhaseTimer, *, full: bool, seed: int) -> list[list[list[int]]]:
        """See `StepImplementation`; one prompt at a time, its group as one batch."""
        torch.manual_seed(seed)
        shape = self._work.shape
        config = generation_config(shape.max_new_tokens, () if full else self._ends, pad=self._ends[0])
        groups = []
        for number, path in enumerate(self._work.paths):
            with timer("rollout"), torch.no_grad():
                ids = torch.tensor([path.ids])
                out = self._hf_model.module.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config,
                    num_return_sequences=shape.group, **self._hf_model.features(self._work.waveforms[number]),
                )[:, ids.shape[1] :]  # fmt: skip
            groups.append([row if full else cut_at_end(row, self._ends) for row in out.tolist()])
        return groups

    def train(self, timer: PhaseTimer, groups: Sequence[Sequence[Ids]], *, update: bool = True) -> None:
        """See `StepImplementation`."""
        rewards = torch.tensor(self._work.rewards, dtype=torch.float64)
        advantages = group_advantages(rewards, self._work.shape.group).float()
        start = 0
        for number, (path, group) in enumerate(zip(self._work.paths, groups, strict=True)):
            with timer("listen"):
                features = self._hf_model.features(self._work.waveforms[number])
            for first in range(0, len(group), self._rows):
                completions = group[first : first + self._rows]
                with timer("reference"), self._reference.active():
                    reference, mask = self._logprobs(path.ids, completions, features)
                with timer("loss"):
                    policy, mask = self._logprobs(path.ids, completions, features)
                    row_advantages = advantages[start : start + len(completions)]
                    grpo_loss(
                        policy, None, reference, row_advantages, mask, beta=BETA, num_sequences=len(advantages)
                    ).loss.backward()
                start += len(completions)
        if update:
            with timer("optimizer"):
                update_weights(self._optimizer, self._parameters)

    def _logprobs(self, prompt: Ids, completions: Sequence[Ids], features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the completions' tokens, and the mask of real tokens, both `(rows, tokens)`."""
        padded = pad_sequence([torch.tensor(ids) for ids in completions], batch_first=True)
        lengths = torch.tensor([len(ids) for ids in completions])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        prompts = torch.tensor([prompt]).expand(len(padded), -1)
        logits = self._hf_model.module(
            input_ids=torch.cat([prompts, padded], 1),
            attention_mask=torch.cat([torch.ones_like(prompts), mask.long()], 1),
            **{name: value.expand(len(padded), *value.shape[1:]) for name, value in features.items()},
        ).logits
        logprobs = logits[:, :-1].log_softmax(-1).gather(2, torch.cat([prompts, padded], 1)[:, 1:, None])[..., 0]
        return logprobs[:, len(prompt) - 1 :], mask


def generation_config(max_new_tokens: int, ends: Sequence[int], *, pad: int) -> GenerationConfig:
    """transformers' config for sampling from the whole distribution.

    Args:
        max_new_tokens: Longest completion.
        ends: Ids of end tokens. If there are none, completions never end: transformers would replace None by the
            model's own end tokens, so an id that is no token stands for it.
        pad: Id of the padding token.
    """
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
        eos_token_id=list(ends) or NEVER, pad_token_id=pad,
    )  # fmt: skip
