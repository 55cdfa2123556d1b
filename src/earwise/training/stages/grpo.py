"""Group relative policy optimisation (GRPO): sampled completions, rewards, group advantages, clipped updates.

Flow of a step: collect rollouts (`rollout/collect.py`) -> advantages and one tree per prompt (`rollout/batching.py`)
-> log-probabilities under the reference, and under the old policy where a rollout is used for several updates -> loss.

Source: DeepSeekMath (arXiv:2402.03300); settings and loss of R1-AQA (arXiv:2503.11197, xiaomi-research/r1-aqa@5d24f31),
later variants as in TRL 1.16 behind `loss_type`. Deviations from R1-AQA: 1. the accuracy reward does not use
math_verify; 2. every completion is trained on the clip of its own prompt, while their batches of more than one prompt
mix up the clips.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from earwise.algorithms.losses import LossOutput
from earwise.algorithms.policy_loss import grpo_loss
from earwise.algorithms.rewards import load_reward
from earwise.config.servers import staleness
from earwise.config.stages import GrpoConfig, Source
from earwise.data.index import ManifestRows
from earwise.engine.remote.address import parse_address
from earwise.errors import ConfigError
from earwise.models.memory.stage_memory import RolloutSize, StageMemory
from earwise.training.distributed import parallel
from earwise.training.policy import MicroBatch, Policy
from earwise.training.rollout.ahead import AheadCollector
from earwise.training.rollout.batching import GrpoInputs, batch_rollouts
from earwise.training.rollout.collect import RolloutCollector
from earwise.training.stages.stage import StageContext, StepBatches
from earwise.training.trainable import Reference
from earwise.types import Example


class GrpoStage:
    """GRPO for the trainer.

    Args:
        context: What the run gives to the stage; its model as it is now becomes the reference.
        config: Settings.
    """

    kind = "grpo"

    def __init__(self, context: StageContext, config: GrpoConfig) -> None:
        self._context, self._config = context, config
        self.updates_per_rollout = config.num_iterations
        self.decodes_in_batches = _decodes_in_batches(config)
        collector = RolloutCollector(context, config)
        is_ahead = staleness(config.weight_sync) > 0
        self._collector = AheadCollector(collector, context, config) if is_ahead else collector
        self._policy, self._reference = Policy(context.model), Reference(context.model.module)
        self._last_batches: StepBatches[GrpoInputs] = StepBatches([], {}, [])

    def batches(self, step: int) -> StepBatches[GrpoInputs]:
        """Collect and pack rollouts; the data of one call is used for `num_iterations` updates. See `Stage`."""
        if step % self._config.num_iterations:
            return self._last_batches
        collected = self._collector.collect(step)
        batched = batch_rollouts(collected.rollouts, self._context, self._config)
        micro_batches = [self._with_logprobs(micro_batch) for micro_batch in batched.micro_batches]
        metrics = collected.metrics | batched.metrics
        num_tokens = parallel.all_sum({"distinct": batched.num_distinct_tokens, "all": batched.num_path_tokens})
        if num_tokens["all"]:
            metrics["distinct_share"] = num_tokens["distinct"] / num_tokens["all"]
        num_samples = sum(len(waveform) for rollout in collected.rollouts for waveform in rollout.prompt.waveforms)
        audio_s = {"audio_s": num_samples / self._context.model.spec.sample_rate}
        example_ids = [rollout.example_id for rollout in collected.rollouts]
        self._last_batches = StepBatches(micro_batches, audio_s, example_ids)
        return StepBatches(micro_batches, metrics | audio_s, example_ids)

    def held_out_batches(self, step: int) -> Iterator[StepBatches[GrpoInputs]]:
        """Nothing: the loss is one on sampled completions; see `Stage`."""
        return iter(())

    def _with_logprobs(self, micro_batch: MicroBatch[GrpoInputs]) -> MicroBatch[GrpoInputs]:
        """Add the log-probabilities under the reference and the old policy, where the loss needs them."""
        inputs = micro_batch.loss_inputs
        if self._config.beta:
            with self._context.profiler.phase("reference"):
                inputs = replace(inputs, ref_logprobs=self._reference.logprobs(self._policy, micro_batch))
        if inputs.old_logprobs is None and self._config.num_iterations > 1:
            with self._context.profiler.phase("reference"), torch.no_grad():
                old_logprobs = self._policy(*micro_batch.policy_inputs)
            inputs = replace(inputs, old_logprobs=old_logprobs)
        return micro_batch.with_loss_inputs(inputs)

    def loss(self, logprobs: Tensor, micro_batch: MicroBatch[GrpoInputs]) -> LossOutput:
        """GRPO loss of the completions of a micro-batch; see `Stage`."""
        config, inputs = self._config, micro_batch.loss_inputs
        return grpo_loss(
            logprobs,
            inputs.old_logprobs,
            inputs.ref_logprobs,
            inputs.advantages,
            micro_batch.forest.loss_mask,
            loss_type=config.loss_type,
            beta=config.beta,
            kl_estimator=config.kl_estimator,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            delta=config.delta,
            importance_sampling_level=config.importance_sampling_level,
            max_completion_length=config.max_new_tokens,
            num_items=inputs.num_items,
            num_sequences=inputs.num_sequences,
            sampling_logprobs=inputs.sampling_logprobs,
            importance_sampling_cap=config.weight_sync.importance_sampling_cap if config.weight_sync else 1.0,
        )

    def resets_optimizer(self, step: int) -> bool:
        """Never; see `Stage`."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, pass rates of the online curriculum, and the reference; see `Stage`."""
        return {**self._collector.state_dict(), "reference": self._reference.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state; see `Stage`."""
        self._collector.load_state_dict(state)
        self._reference.load_state_dict(state["reference"])

    @staticmethod
    def trains_on_preferences(config: GrpoConfig) -> bool:
        """No: rewards need an answer; see `StageClass`."""
        return False

    @staticmethod
    def can_score(config: GrpoConfig, row: Example) -> bool:
        """No: there is no loss on given rows; see `StageClass`."""
        return False

    @staticmethod
    def held_out_source(config: GrpoConfig) -> Source | None:
        """None; see `StageClass`."""
        return None

    @staticmethod
    def check(config: GrpoConfig, rows: ManifestRows, source_name: str) -> None:
        """Refuse unknown rewards, a judge whose address is wrong, and rollouts ahead of several processes; see
        `StageClass`."""
        if staleness(config.weight_sync) and parallel.world_size() > 1:
            raise ConfigError("weight_sync.max_staleness 1 is for one process; set it to 0, or start one process")
        for name in config.rewards:
            if name != "judge":
                load_reward(name)
        load_reward(config.curriculum.reward)
        if config.judge is not None:
            parse_address(config.judge.server)

    @staticmethod
    def memory(config: GrpoConfig, processes: int = 1) -> StageMemory:
        """The reference, and the rollouts of this process's share of the prompts; see `StageClass`."""
        prompts = -(-config.prompts_per_step // processes)
        return StageMemory(
            keeps_reference=True,
            rollout=RolloutSize(prompts, config.group_size, config.max_new_tokens),
            decodes_in_batches=True,
            clips=prompts,
        )


def _decodes_in_batches(config: GrpoConfig) -> bool:
    """Whether the policy samples in this process, or its reference gives log-probabilities."""
    return config.rollout_server is None or config.beta > 0
