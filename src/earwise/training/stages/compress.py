"""Compression: supervised training on chains of reasoning from which more and more is removed; the answer stays.

The data flow is that of `supervised.py`. A reply is head, chain and tail; the chain is shortened as
`compression_schedule.py` says. It starts whole, and then the stage is SFT token by token, so XS-CoT's second and third
stage can be one stage here. Token delay is measured on held-out rows at intervals.

Sources: XS-CoT (arXiv:2504.20835) for sentences and stubs; stepwise internalisation (arXiv:2405.14838) for tokens,
random offsets and optimizer resets. Ours where XS-CoT is silent: an epoch is as many drawn clips as there are clips.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from earwise.algorithms.losses import LossOutput, sft_loss
from earwise.config.kinds.compress import CompressConfig
from earwise.config.stages import Source
from earwise.data.index import ManifestRows
from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.forest import TokenPath
from earwise.models.memory.stage_memory import StageMemory
from earwise.models.prompt_encoding import completion_path
from earwise.training.logging.sample_log import NUM_LOGGED_ROWS, evenly_spaced_rows, prompts_for_rows, sample_row
from earwise.training.policy import MicroBatch
from earwise.training.stages.compression_schedule import answer_marker, count_chain_tokens, plan_schedule
from earwise.training.stages.stage import StageContext, StepBatches
from earwise.training.stages.supervised import SupervisedPipeline, SupervisedStep, can_score_reply, check_reasoning
from earwise.types import Example


@dataclass(frozen=True, slots=True)
class CompressInputs:
    """Inputs of the loss: `num_tokens` is the number of trained tokens of the whole step."""

    num_tokens: float


@dataclass(slots=True)
class ChainLengths:
    """Lengths of the chains of a step, in tokens, one entry per reply.

    Attributes:
        trained: Tokens of the shortened chains.
        full: Tokens of the chains as they are in the rows.
    """

    trained: list[int] = field(default_factory=list)
    full: list[int] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Mean length of the shortened chains, and their share of the full ones."""
        return {
            "chain_tokens": sum(self.trained) / len(self.trained),
            "chain_share": sum(self.trained) / max(1, sum(self.full)),
        }


class CompressStage:
    """Compression for the trainer.

    Args:
        context: What the run gives to the stage; `context.data.held_out` are the rows on which token delay is measured.
        config: Settings.
    """

    kind = "compress"
    updates_per_rollout = 1
    decodes_in_batches = True  # answers to held-out rows

    def __init__(self, context: StageContext, config: CompressConfig) -> None:
        self._context, self._config = context, config
        self._pipeline = SupervisedPipeline(
            context,
            config,
            decodes_in_batches=self.decodes_in_batches,
            log_completions=config.held_out is None,  # else the answers to the held-out rows are logged
        )
        rows = (row for source, _ in context.data.mixture for row in source)
        self._schedule = plan_schedule(config, rows, self._pipeline.num_clip_groups, context.seed)
        self._delay_meter = TokenDelayMeter(context, config)
        context.notify(self._schedule.describe())

    def batches(self, step: int) -> StepBatches[CompressInputs]:
        """Draw clips and questions, shorten the chains, pack them, and measure token delay; see `Stage`."""
        lengths = ChainLengths()
        data = self._pipeline.make_step(step, partial(self._replies, step, lengths))
        metrics = {"progress": self._schedule.removed_units(step)} | lengths.metrics()
        interval = self._config.eval_steps
        if interval is not None and (step % interval == 0 or step == self._config.max_steps - 1):
            with self._context.profiler.phase("delay"):
                metrics |= self._delay_meter.measure(step)
        return _with_inputs(data, metrics)

    def held_out_batches(self, step: int) -> Iterator[StepBatches[CompressInputs]]:
        """Held-out rows with their chains as short as at the step, packed; see `Stage`."""
        lengths = ChainLengths()
        data = self._pipeline.held_out_steps(partial(self._replies, step, lengths))
        yield from (_with_inputs(part, {}) for part in data)

    def loss(self, logprobs: Tensor, micro_batch: MicroBatch[CompressInputs]) -> LossOutput:
        """Negative log-likelihood per trained token of the step; see `Stage`."""
        return sft_loss(logprobs, micro_batch.forest.loss_mask, denominator=micro_batch.loss_inputs.num_tokens)

    def resets_optimizer(self, step: int) -> bool:
        """Where more is removed than before, if the recipe asks for it; see `Stage`."""
        return self._schedule.resets_optimizer(step)

    def state_dict(self) -> dict[str, Any]:
        """Position in the data; see `Stage`."""
        return self._pipeline.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position in the data; see `Stage`."""
        self._pipeline.load_state_dict(state)

    def _replies(
        self, step: int, lengths: ChainLengths, example: Example, style: str, rng: random.Random
    ) -> Sequence[TokenPath]:
        """One branch: head, shortened chain and tail of the row's reply; adds the chain to `lengths`."""
        model = self._context.model
        reply = self._schedule.reply(example, style, step, model)
        lengths.trained.append(reply.num_chain_tokens)
        lengths.full.append(count_chain_tokens(example, style, model))
        return [completion_path([*reply.ids, model.eos_ids[0]])]

    @staticmethod
    def trains_on_preferences(config: CompressConfig) -> bool:
        """No: rows need an answer; see `StageClass`."""
        return False

    @staticmethod
    def can_score(config: CompressConfig, row: Example) -> bool:
        """Whether the row has the reply that is asked for; see `StageClass`."""
        return can_score_reply(config, row)

    @staticmethod
    def held_out_source(config: CompressConfig) -> Source | None:
        """Rows on which token delay is measured; see `StageClass`."""
        return config.held_out

    @staticmethod
    def check(config: CompressConfig, rows: ManifestRows, source_name: str) -> None:
        """Refuse rows without reasoning; see `StageClass`."""
        check_reasoning(config, rows, source_name)

    @staticmethod
    def memory(config: CompressConfig, processes: int = 1) -> StageMemory:
        """Nothing beside the forward pass; see `StageClass`."""
        clips = -(-config.clips_per_step // processes)
        return StageMemory(decodes_in_batches=CompressStage.decodes_in_batches, clips=clips)


def _with_inputs(data: SupervisedStep, metrics: dict[str, float]) -> StepBatches[CompressInputs]:
    """The batches of a step with the inputs of the loss and further metrics."""
    inputs = CompressInputs(data.num_trained_tokens)
    micro_batches = [micro_batch.with_loss_inputs(inputs) for micro_batch in data.micro_batches]
    return StepBatches(micro_batches, data.metrics | metrics, data.example_ids, data.num_trained_tokens)


class TokenDelayMeter:
    """Measures how many tokens the model writes before its answer, by greedy answers to held-out rows.

    Args:
        context: What the run gives to the stage.
        config: Settings of the compression stage.
    """

    def __init__(self, context: StageContext, config: CompressConfig) -> None:
        style = next(iter(config.data.styles))
        rows = evenly_spaced_rows(context.data.held_out, config.held_out_limit)
        self._engine = LocalEngine(context.model, encoder_cache=context.encoder_cache)
        self._sampling_params = SamplingParams(config.max_new_tokens)
        self._log_sample = context.log_sample
        self._prompts = prompts_for_rows(rows, style, context.clip_loader)
        self._markers = [answer_marker(row, style) for row, _ in self._prompts]

    def measure(self, step: int) -> dict[str, float]:
        """Answer the held-out rows before a step (from 0).

        Returns:
            `delay`: mean number of tokens before the answer, where a reply without an answer counts with all its
            tokens; `answered`: share of replies with an answer. Empty without held-out rows.
        """
        if not self._prompts:
            return {}
        groups = self._engine.generate([prompt for _, prompt in self._prompts], self._sampling_params)
        completions = [group[0] for group in groups]
        for (row, _), completion in list(zip(self._prompts, completions, strict=True))[:NUM_LOGGED_ROWS]:
            self._log_sample(sample_row(step + 1, row, [completion], None))
        answered = [marker in completion.text for completion, marker in zip(completions, self._markers, strict=True)]
        delays = [
            (completion.reasoning_tokens or 0) if has_answer else len(completion.token_ids)
            for completion, has_answer in zip(completions, answered, strict=True)
        ]
        return {"delay": sum(delays) / len(delays), "answered": sum(answered) / len(answered)}
