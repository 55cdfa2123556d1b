"""How much of each chain of reasoning is left at a training step of the compression stage.

Everything follows from the step number in closed form, so a resumed run needs no counter. The algorithms (stubs of
sentences, removal of tokens) are in `earwise.algorithms.chain_compression`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from earwise.algorithms import chain_compression
from earwise.algorithms.chain_compression import StepwiseSchedule, StubFormat
from earwise.config.stages import CompressConfig
from earwise.models.base import AudioLM
from earwise.prompts import target_text
from earwise.types import Example


def split_reply(example: Example, style: str) -> tuple[str, str, str]:
    """Split a row's reply into head, chain of reasoning and tail; concatenated they are `target_text`.

    >>> split_reply(Example("x", (), answer=("dog",), reasoning="It barks."), "think")
    ('<think>', 'It barks.', '</think>\\n<answer>dog</answer>')
    """
    reply = target_text(example, style)
    chain = example.reasoning or ""
    start = reply.index(chain)
    return reply[:start], chain, reply[start + len(chain) :]


def answer_marker(example: Example, style: str) -> str:
    """The text that directly precedes the answer in a row's reply.

    >>> answer_marker(Example("x", (), answer=("dog",), reasoning="It barks."), "think")
    '<answer>'
    """
    tail = split_reply(example, style)[2]
    return tail[: tail.index(example.answer[0])].split()[-1]


@dataclass(frozen=True, slots=True)
class CompressionSchedule:
    """How many units (sentences or tokens) are removed from a chain at a step.

    Attributes:
        config: Settings of the stage.
        steps_per_epoch: Optimizer steps in which as many clips are drawn as there are.
        cutover: Number of removed units from which the whole chain is removed; infinity: never.
        seed: Seed of random extra units and of the order `random`.
    """

    config: CompressConfig
    steps_per_epoch: float
    cutover: float
    seed: int

    def removed_units(self, step: int) -> float:
        """Units to remove at a step (from 0), at most `cutover`, which stands for the whole chain."""
        steps_per_unit, units_per_epoch = self.config.steps_per_unit, self.config.units_per_epoch
        removed: float
        if self.config.unit == "tokens":
            interval = steps_per_unit or round(self.steps_per_epoch)
            removed = StepwiseSchedule(interval, 1.0 if steps_per_unit else units_per_epoch).applied(step)
        elif steps_per_unit:
            removed = step // steps_per_unit
        else:
            removed = chain_compression.progress_after(step / self.steps_per_epoch, units_per_epoch)
        return min(removed, self.cutover)

    def resets_optimizer(self, step: int) -> bool:
        """Whether the optimizer's state is cleared before a step: where more units are removed than before, if the
        recipe asks for it."""
        grows = self.removed_units(step) > self.removed_units(max(0, step - 1))
        return self.config.reset_optimizer and grows

    def chain_ids(self, example: Example, chain: str, step: int, model: AudioLM) -> list[int]:
        """Token ids of what is left of a chain at a step.

        Apart from random extra units this never has more tokens than at an earlier step. Chains are cut from the row's
        own text at every step, never from a shortened one, deterministically in the row's id, step and seed.
        """
        config, removed = self.config, self.removed_units(step)
        smoothing = config.smoothing or math.inf
        if config.unit == "tokens":
            ids = model.tokenizer.encode(chain)
            extra = chain_compression.random_offset(smoothing, f"{example.id}:{step}", self.seed)
            count = math.inf if removed >= self.cutover else removed + extra
            return list(chain_compression.remove_tokens(ids, count, "right" if config.order == "right" else "left"))
        shortened = chain_compression.chain_at_progress(
            chain,
            int(removed),
            int(self.cutover),
            StubFormat(config.stub_groups, config.words_per_group, config.ellipsis, config.order),
            language=example.language,
            key=example.id,
            seed=self.seed,
            smoothing=smoothing,
            count=lambda text: len(model.tokenizer.encode(text)),
        )
        return model.tokenizer.encode(shortened) if shortened else []


def plan_schedule(
    config: CompressConfig, examples: Iterable[Example], num_clips: int, seed: int
) -> CompressionSchedule:
    """The schedule for a set of rows.

    Args:
        config: Settings of the stage.
        examples: All rows with chains; read only if `config.cutover` is not set.
        num_clips: Number of distinct clips (groups of rows) among them.
        seed: See `CompressionSchedule`.
    """
    cutover = math.inf if config.cutover is None else float(config.cutover)
    if config.cutover is None and config.unit == "sentences":
        counts = [chain_compression.count_sentences(row.reasoning or "", row.language) for row in examples]
        cutover = float(chain_compression.default_cutover(counts))
    return CompressionSchedule(config, max(1.0, num_clips / config.clips_per_step), cutover, seed)
