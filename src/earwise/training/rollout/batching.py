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
from earwise.engine.sampling.pause import pause_token_id
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.training.batches import branch_slice, build_micro_batches
from earwise.training.distributed import parallel
from earwise.training.policy import MicroBatch
from earwise.training.rollout.collect import Rollout, prompt_tokens
from earwise.training.rollout.rollout_engine import sampled_logprobs
from earwise.training.rollout.selection import Selection, select_completions
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
        metrics: What confidence and pauses did to the completions of all processes, to be logged.
    """

    micro_batches: list[MicroBatch[GrpoInputs]]
    num_distinct_tokens: int
    num_path_tokens: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Which completions of a step are trained on, and which of their tokens.

    Attributes:
        counts: Whether each completion of each rollout is trained on.
        pause: The pause token, if it is left out of the loss.
    """

    counts: list[list[bool]]
    pause: int | None

    def path(self, completion: Completion) -> TokenPath:
        """The tokens of a completion."""
        path = completion_path(completion.token_ids)
        return path if self.pause is None else replace(path, trained=tuple(token != self.pause for token in path.ids))

    def num_items(self, rollouts: Sequence[Rollout]) -> int:
        """Number of trained tokens of all rollouts."""
        return sum(
            sum(self.path(completion).trained)
            for rollout, counts in zip(rollouts, self.counts, strict=True)
            for completion, is_trained in zip(rollout.completions, counts, strict=True)
            if is_trained
        )


def batch_rollouts(rollouts: Sequence[Rollout], context: StageContext, config: GrpoConfig) -> RolloutBatches:
    """Pack this process's share of the rollouts of a step.

    Args:
        rollouts: Rollouts of all processes.
        context: What the run gives to the stage.
        config: Settings of the stage.
    """
    group_size, model = config.group_size, context.model
    selection = select_completions([rollout.completions for rollout in rollouts], config.confidence)
    rewards = [
        reward + bonus
        for rollout, bonuses in zip(rollouts, selection.bonuses, strict=True)
        for reward, bonus in zip(rollout.rewards, bonuses, strict=True)
    ]
    advantages = group_advantages(
        torch.tensor(rewards, dtype=torch.float64), group_size, scale_rewards=config.scale_rewards
    ).tolist()
    groups = [
        [advantages[number * group_size + place] * weight for place, weight in enumerate(weights)]
        for number, weights in enumerate(selection.weights)
    ]
    tokens = _trained_tokens(rollouts, selection, model, config)
    num_items = float(tokens.num_items(rollouts))
    num_sequences = float(sum(map(sum, selection.kept)))

    trained = _local_share(rollouts, groups, tokens, model, config)
    trees, waveforms = _trees(model, rollouts, trained, tokens)
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
    num_path_tokens = sum(len(path.ids) for paths in trees for path in paths)
    return RolloutBatches(micro_batches, num_distinct, num_path_tokens, _metrics(rollouts, selection, model, config))


def _metrics(rollouts: Sequence[Rollout], selection: Selection, model: AudioLM, config: GrpoConfig) -> dict[str, float]:
    """Pauses per completion, mean confidence, and means of the bonuses, where they are in use."""
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    metrics: dict[str, float] = {}
    if config.pause is not None and completions:
        token = pause_token_id(model, config.pause.token)
        num_tokens = sum(completion.token_ids.count(token) for completion in completions)
        metrics["pauses"] = num_tokens / config.pause.tokens_per_pause / len(completions)
    if selection.confidence is not None:
        metrics["confidence"] = selection.confidence
    if config.confidence is not None and config.confidence.recovery_bonus and completions:
        metrics["recovery_bonus"] = sum(map(sum, selection.bonuses)) / len(completions)
    return metrics


def _trained_tokens(
    rollouts: Sequence[Rollout], selection: Selection, model: AudioLM, config: GrpoConfig
) -> TrainedTokens:
    """Which completions are trained on: those that confidence keeps, without those that were cut where they are masked;
    and the pause token, where it is left out."""
    counts = [
        [is_kept and _counts(completion, config) for completion, is_kept in zip(rollout.completions, kept, strict=True)]
        for rollout, kept in zip(rollouts, selection.kept, strict=True)
    ]
    if config.pause is None or not config.pause.mask_pause_tokens:
        return TrainedTokens(counts, None)
    return TrainedTokens(counts, pause_token_id(model, config.pause.token))


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
    rollouts: Sequence[Rollout],
    groups: Sequence[Sequence[float]],
    tokens: TrainedTokens,
    model: AudioLM,
    config: GrpoConfig,
) -> list[int]:
    """Numbers of the rollouts that this process trains on.

    Args:
        rollouts: Rollouts of all processes.
        groups: Advantages of each rollout.
        tokens: What is trained on.
        model: The model, for the number of audio tokens.
        config: Settings of the stage. Groups without advantage are left out where they have no gradient, and so are
            groups of which no completion is trained on.
    """
    leave_out_flat = _flat_groups_have_no_gradient(config)
    numbers = []
    for number, (group, counts) in enumerate(zip(groups, tokens.counts, strict=True)):
        advantages = [advantage for advantage, is_trained in zip(group, counts, strict=True) if is_trained]
        if any(advantages) or (advantages and not leave_out_flat):
            numbers.append(number)
    sizes = [
        prompt_tokens(model, rollouts[number].prompt)
        + sum(len(completion.token_ids) for completion in rollouts[number].completions)
        for number in numbers
    ]
    return [numbers[place] for place in parallel.assigned_items(sizes)]


def _trees(
    model: AudioLM, rollouts: Sequence[Rollout], trained: Sequence[int], tokens: TrainedTokens
) -> tuple[list[list[TokenPath]], dict[int, Waveform]]:
    """Token paths of the tree of each rollout in `trained`, one per completion, and clip number -> waveform. The path
    of a completion that is not trained on is the prompt alone."""
    trees: list[list[TokenPath]] = []
    waveforms: dict[int, Waveform] = {}
    for number in trained:
        prompt = rollouts[number].prompt
        clips = range(len(waveforms), len(waveforms) + len(prompt.waveforms))
        waveforms |= dict(zip(clips, prompt.waveforms, strict=True))
        num_samples = [len(waveform) for waveform in prompt.waveforms]
        prompt_path = conversation_path(model, prompt.turns, clips, num_samples, generate=True)
        trees.append(
            [
                prompt_path + tokens.path(completion) if is_trained else prompt_path
                for completion, is_trained in zip(rollouts[number].completions, tokens.counts[number], strict=True)
            ]
        )
    return trees, waveforms
