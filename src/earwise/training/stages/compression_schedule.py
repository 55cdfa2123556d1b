"""How much of each chain of reasoning is left at a training step of the compression stage.

Everything follows from the step number in closed form, so a resumed run needs no counter. The algorithms (stubs of
sentences, removal of tokens) are in `earwise.algorithms.chain_compression`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from earwise.algorithms import chain_compression
from earwise.algorithms.chain_compression import StepwiseSchedule, StubFormat
from earwise.config.kinds.compress import CompressConfig
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


def count_chain_tokens(example: Example, style: str, model: AudioLM) -> int:
    """Number of tokens of a row's whole chain, within its reply."""
    return len(_tokens_of_chain(split_reply(example, style), model)[1])


@dataclass(frozen=True, slots=True)
class ShortenedReply:
    """What a row's reply is at a step.

    Attributes:
        ids: Token ids of the whole reply, as a tokenizer cuts its text, without an end token.
        num_chain_tokens: Number of those that lie in the chain.
    """

    ids: list[int]
    num_chain_tokens: int


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
        if steps_per_unit is None and units_per_epoch is None:
            num_steps = max(1.0, self.config.schedule_ratio * self.config.max_steps)
            removed = math.floor(self.cutover * step / num_steps + 1e-9)
        elif self.config.unit == "tokens":
            interval = steps_per_unit or round(self.steps_per_epoch)
            per_epoch = 1.0 if steps_per_unit else units_per_epoch or 1.0
            removed = StepwiseSchedule(interval, per_epoch).applied(step)
        elif steps_per_unit:
            removed = step // steps_per_unit
        else:
            removed = chain_compression.progress_after(step / self.steps_per_epoch, units_per_epoch or 1.0)
        return min(removed, self.cutover)

    def describe(self) -> str:
        """What the schedule removes, and whether it reaches its end within the run, in one line."""
        unit, last = self.config.unit, self.config.max_steps - 1
        line = f"compress: an epoch is {self.steps_per_epoch:.1f} steps; "
        if math.isinf(self.cutover):
            return f"{line}{self.removed_units(last):g} {unit} are removed at the last step"
        line += f"chains are removed as a whole from {self.cutover:g} removed {unit}"
        if self.removed_units(last) < self.cutover:
            return (
                f"{line}, which this run does not reach: it ends at {self.removed_units(last):g}; set more max_steps, "
                "or leave out units_per_epoch and steps_per_unit"
            )
        first = next(step for step in range(last + 1) if self.removed_units(step) >= self.cutover)
        return f"{line}, reached at step {first + 1} of {last + 1}"

    def resets_optimizer(self, step: int) -> bool:
        """Whether the optimizer's state is cleared before a step: where more units are removed than before, if the
        recipe asks for it."""
        grows = self.removed_units(step) > self.removed_units(max(0, step - 1))
        return self.config.reset_optimizer and grows

    def reply(self, example: Example, style: str, step: int, model: AudioLM) -> ShortenedReply:
        """A row's reply with what is left of its chain at a step.

        Apart from random extra units this never has more tokens than at an earlier step. Chains are cut from the row's
        own text at every step, never from a shortened one, deterministically in the row's id, step and seed. The reply
        is tokenised as a whole, as in SFT: where nothing is removed, the two are equal.
        """
        config, removed = self.config, self.removed_units(step)
        smoothing = config.smoothing or math.inf
        head, chain, tail = split_reply(example, style)
        if config.unit == "tokens":
            extra = chain_compression.random_offset(smoothing, f"{example.id}:{step}", self.seed)
            count = math.inf if removed >= self.cutover else removed + extra
            return _without_tokens((head, chain, tail), count, config.order, model)
        shortened = chain_compression.chain_at_progress(
            chain,
            int(removed),
            int(self.cutover),
            StubFormat(config.stub_groups, config.words_per_group, config.ellipsis, config.order),
            language=example.language,
            key=example.id,
            seed=self.seed,
            smoothing=smoothing,
            count=lambda text: len(model.tokenizer.encode(head + text + tail)),
        )
        ids, chain_tokens = _tokens_of_chain((head, shortened, tail), model)
        return ShortenedReply(ids, len(chain_tokens))


def _tokens_of_chain(parts: tuple[str, str, str], model: AudioLM) -> tuple[list[int], list[int]]:
    """Token ids of head, chain and tail as one text, and the positions of those that lie within the chain.

    A token across a joint (a full stop and the line break after it) belongs to head or tail.
    """
    head, chain, _ = parts
    ids, offsets = model.tokenizer.encode_with_offsets("".join(parts))
    start, end = len(head), len(head) + len(chain)
    return ids, [number for number, (first, last) in enumerate(offsets) if start <= first and last <= end]


def _without_tokens(parts: tuple[str, str, str], count: float, order: str, model: AudioLM) -> ShortenedReply:
    """A reply without `count` tokens of its chain, which are taken from the side that `order` names."""
    ids, chain_tokens = _tokens_of_chain(parts, model)
    remaining = chain_compression.remove_tokens(chain_tokens, count, "right" if order == "right" else "left")
    removed = set(chain_tokens) - set(remaining)
    return ShortenedReply([token for number, token in enumerate(ids) if number not in removed], len(remaining))


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
