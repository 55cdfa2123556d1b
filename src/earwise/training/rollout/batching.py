"""From rollouts to micro-batches: advantages, one tree per prompt, packed forests.

The completions of a prompt are the branches of one tree, so the prompt with its audio is computed once for the whole
group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from earwise.algorithms.policy_loss import group_advantages
from earwise.config.servers import staleness
from earwise.config.stages import GrpoConfig
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.training.batches import branch_slice, build_micro_batches
from earwise.training.distributed import parallel
from earwise.training.policy import MicroBatch
from earwise.training.rollout.collect import Rollout, prompt_tokens
from earwise.training.rollout.rollout_engine import sampled_logprobs
from earwise.training.stages.stage import StageContext
from earwise.training.trainable import trains_encoder
from earwise.types import Completion, Waveform


@dataclass(frozen=True, slots=True)
class GrpoInputs:
    """Inputs of the GRPO loss.

    Attributes:
        advantages: Advantage of the completion of each branch.
        num_items: Completion tokens of the whole step.
        num_sequences: Completions of the whole step.
        old_logprobs: Log-probabilities (nats) at sampling time; None where the policy that is updated has sampled and
            is updated once, so that they are the current ones.
        ref_logprobs: Log-probabilities (nats) under the reference; None without a KL term.
        sampling_logprobs: Log-probabilities (nats) under the older weights that sampled, with `max_staleness`;
            `old_logprobs` are then those of the policy before the update.
    """

    advantages: Float[Tensor, " branches"]
    num_items: float
    num_sequences: float
    old_logprobs: Float[Tensor, "branches tokens"] | None = None
    ref_logprobs: Float[Tensor, "branches tokens"] | None = None
    sampling_logprobs: Float[Tensor, "branches tokens"] | None = None


@dataclass(frozen=True, slots=True)
class RolloutBatches:
    """This process's micro-batches of the rollouts of a step.

    Attributes:
        micro_batches: The micro-batches; a rollout server's log-probabilities are in `old_logprobs`.
        num_distinct_tokens: Distinct tokens of their forests.
        num_path_tokens: Tokens of all their paths.
    """

    micro_batches: list[MicroBatch[GrpoInputs]]
    num_distinct_tokens: int
    num_path_tokens: int


def batch_rollouts(rollouts: Sequence[Rollout], context: StageContext, config: GrpoConfig) -> RolloutBatches:
    """Pack this process's share of the rollouts of a step.

    Args:
        rollouts: Rollouts of all processes.
        context: What the run gives to the stage.
        config: Settings of the stage.
    """
    group_size, model = config.group_size, context.model
    rewards = torch.tensor([reward for rollout in rollouts for reward in rollout.rewards], dtype=torch.float64)
    advantages = group_advantages(rewards, group_size, scale_rewards=config.scale_rewards).tolist()
    num_items = float(
        sum(
            len(completion.token_ids)
            for rollout in rollouts
            for completion in rollout.completions
            if _counts(completion, config)
        )
    )
    num_sequences = float(len(rollouts) * group_size)

    groups = [advantages[start : start + group_size] for start in range(0, len(advantages), group_size)]
    trained = _local_share(rollouts, groups, model, config)
    trees, waveforms = _trees(model, [rollouts[number] for number in trained], config)
    branch_advantages = [advantage for number in trained for advantage in groups[number]]
    completions = [completion for number in trained for completion in rollouts[number].completions]
    encoder_cache = None if trains_encoder(model) else context.encoder_cache

    micro_batches = []
    first_branch = 0
    for micro_batch in build_micro_batches(model, encoder_cache, trees, waveforms, config.pack_tokens):
        server_logprobs = (
            sampled_logprobs(completions, micro_batch, first_branch) if _uses_server_logprobs(config) else None
        )
        inputs = GrpoInputs(
            advantages=branch_slice(branch_advantages, micro_batch, first_branch),
            num_items=num_items,
            num_sequences=num_sequences,
            old_logprobs=None if staleness(config.weight_sync) else server_logprobs,
            sampling_logprobs=server_logprobs if staleness(config.weight_sync) else None,
        )
        of_policy = replace(micro_batch, temperature=config.temperature, log_entropy=True)
        micro_batches.append(of_policy.with_loss_inputs(inputs))
        first_branch += len(micro_batch.forest.branch_trees)
    num_distinct = sum(len(micro_batch.forest) for micro_batch in micro_batches)
    return RolloutBatches(micro_batches, num_distinct, sum(len(path.ids) for paths in trees for path in paths))


def _flat_groups_have_no_gradient(config: GrpoConfig) -> bool:
    """Whether a group without advantage contributes nothing to the gradient. The KL term does contribute, and `bnpo`
    counts the tokens of all groups of a micro-batch in its denominator."""
    return not config.beta and config.loss_type != "bnpo"


def _uses_server_logprobs(config: GrpoConfig) -> bool:
    """Whether a rollout server's log-probabilities are those of the old policy. They are at temperature 1; at another
    one the policy's own before the update take their place (`GrpoConfig` sees to equal weights)."""
    return config.rollout_server is not None and config.temperature == 1


def _counts(completion: Completion, config: GrpoConfig) -> bool:
    """Whether a completion is trained on."""
    return not (config.mask_truncated_completions and completion.finish_reason == "length")


def _local_share(
    rollouts: Sequence[Rollout], groups: Sequence[Sequence[float]], model: AudioLM, config: GrpoConfig
) -> list[int]:
    """Numbers of the rollouts that this process trains on.

    Args:
        rollouts: Rollouts of all processes.
        groups: Advantages of each rollout.
        model: The model, for the number of audio tokens.
        config: Settings of the stage. Groups without advantage are left out where they have no gradient, and so are
            groups whose completions are all masked.
    """
    leave_out_flat = _flat_groups_have_no_gradient(config)
    numbers = [
        number
        for number, group in enumerate(groups)
        if (any(group) or not leave_out_flat)
        and any(_counts(completion, config) for completion in rollouts[number].completions)
    ]
    sizes = [
        prompt_tokens(model, rollouts[number].prompt)
        + sum(len(completion.token_ids) for completion in rollouts[number].completions)
        for number in numbers
    ]
    return [numbers[place] for place in parallel.assigned_items(sizes)]


def _trees(
    model: AudioLM, rollouts: Sequence[Rollout], config: GrpoConfig
) -> tuple[list[list[TokenPath]], dict[int, Waveform]]:
    """Token paths of each rollout's tree, one per completion, and clip number -> waveform. The path of a completion
    that is not trained on is the prompt alone."""
    trees: list[list[TokenPath]] = []
    waveforms: dict[int, Waveform] = {}
    for rollout in rollouts:
        prompt = rollout.prompt
        clips = range(len(waveforms), len(waveforms) + len(prompt.waveforms))
        waveforms |= dict(zip(clips, prompt.waveforms, strict=True))
        num_samples = [len(waveform) for waveform in prompt.waveforms]
        prompt_path = conversation_path(model, prompt.turns, clips, num_samples, generate=True)
        trees.append(
            [
                prompt_path + completion_path(completion.token_ids) if _counts(completion, config) else prompt_path
                for completion in rollout.completions
            ]
        )
    return trees, waveforms
