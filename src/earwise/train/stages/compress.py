"""Compression: supervised training on chains of reasoning from which more and more is taken out, the answer untouched.

Flow: as `sft.py`, but that a reply is head, chain and tail (`parts`), of which the chain is shortened by how far the
training is (`Schedule`): whole at first, so that XS-CoT's second and third stage are one. Chains are cut from the row's
own text at every step, never from shorter ones, deterministic in `(id, step, seed)`. Head, chain and tail are tokenised
apart: the answer has the same tokens at every stage. Token delay is measured on held-out rows now and then, and some of
these answers are shown.

Sources: XS-CoT (arXiv 2504.20835; papers/xs-cot.md, sections 3 and 8) for sentences and stubs, stepwise internalisation
(arXiv 2405.14838) for tokens, offsets and resets; both schedules are in `internalize.py`. Ours where the first is
silent: an epoch is as many clips as there are, drawn or not.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earwise.algorithms import chain_compression
from earwise.algorithms.chain_compression import Stepwise, Stubs
from earwise.algorithms.losses import LossOutput, sft_loss
from earwise.config.stages import CompressStage
from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import completion_path, conversation_path
from earwise.prompts import prompt_turns, target_text
from earwise.train.batches import Sounds, assemble, draw, mine, stream, targets, work_shared
from earwise.train.logging.sample_log import SHOWN, Keep, asked, sample
from earwise.train.policy import Micro
from earwise.train.profiler import Clock
from earwise.train.stages.sft import units
from earwise.train.trainable import encoder_trains
from earwise.train.trainer import Say, StageWork
from earwise.types import Example


def parts(example: Example, style: str) -> tuple[str, str, str]:
    """A row's reply as head, chain and tail; together they are `target_text`.

    >>> parts(Example("x", (), answer=("dog",), reasoning="It barks."), "think")
    ('<think>', 'It barks.', '</think>\\n<answer>dog</answer>')
    """
    whole = target_text(example, style)
    chain = example.reasoning or ""
    at = whole.index(chain)
    return whole[:at], chain, whole[at + len(chain) :]


def answer_mark(example: Example, style: str) -> str:
    """What stands before a row's answer.

    >>> answer_mark(Example("x", (), answer=("dog",), reasoning="It barks."), "think")
    '<answer>'
    """
    tail = parts(example, style)[2]
    return tail[: tail.index(example.answer[0])].split()[-1]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much is taken out of a chain at a step, in closed form, so that a resumed run needs no counter.

    Attributes:
        stage: Settings.
        steps_per_epoch: Optimizer steps that go once through the rows.
        cutover: Progress from which everything is taken out; infinity: never.
        seed: Of offsets and of order random.
    """

    stage: CompressStage
    steps_per_epoch: float
    cutover: float
    seed: int

    def progress(self, step: int) -> float:
        """Pieces scheduled to be taken out at a step (from 0); `cutover` where that is everything."""
        every = self.stage.every_steps
        if self.stage.pieces == "tokens":
            plan = Stepwise(every or round(self.steps_per_epoch), 1.0 if every else self.stage.rate)
            done = plan.applied(step)
        else:
            done = (
                step // every if every else chain_compression.progress_at(step / self.steps_per_epoch, self.stage.rate)
            )
        return min(done, self.cutover)

    def fresh(self, step: int) -> bool:
        """True where the optimizer starts anew: at each growth, if the recipe wants it."""
        return self.stage.reset_optimizer and self.progress(step) > self.progress(max(0, step - 1))

    def chain(self, example: Example, chain: str, step: int, model: AudioLM) -> list[int]:
        """Token ids of what is left of a chain at a step; never more than at an earlier one, offsets apart."""
        stage, progress = self.stage, self.progress(step)
        smoothing = stage.smoothing or math.inf
        if stage.pieces == "tokens":
            ids = model.tokenize(chain)
            extra = chain_compression.random_offset(smoothing, f"{example.id}:{step}", self.seed)
            count = math.inf if progress >= self.cutover else progress + extra
            return list(chain_compression.without_tokens(ids, count, "right" if stage.order == "right" else "left"))
        stubs = Stubs(stage.k, stage.group, stage.ellipsis, stage.order)
        short = chain_compression.at_progress(
            chain, int(progress), int(self.cutover), stubs, language=example.language, key=example.id, seed=self.seed,
            smoothing=smoothing, count=lambda text: len(model.tokenize(text)),
        )  # fmt: skip
        return model.tokenize(short) if short else []


def plan(stage: CompressStage, examples: Iterable[Example], clips: int, seed: int) -> Schedule:
    """The schedule for some rows.

    Args:
        stage: Settings.
        examples: All rows with chains.
        clips: Distinct sounds among them.
        seed: See `Schedule`.
    """
    cutover = math.inf if stage.cutover is None else float(stage.cutover)
    if stage.cutover is None and stage.pieces == "sentences":
        counts = [chain_compression.count_sentences(one.reasoning or "", one.language) for one in examples]
        cutover = float(chain_compression.cutover_for(counts))
    return Schedule(stage, max(1.0, clips / stage.clips_per_step), cutover, seed)


def work(
    model: AudioLM,
    stage: CompressStage,
    sources: Sequence[tuple[Sequence[Example], float]],
    held_out: Sequence[Example],
    encoder_cache: EncoderCache,
    sounds: Sounds,
    seed: int,
    keep: Keep,
    say: Say,
    clock: Clock,
) -> StageWork:
    """The compression stage for the loop.

    Args:
        model: Prepared for training.
        stage: Its settings.
        sources: Examples and weight of each manifest of the mixture.
        held_out: Rows that token delay is measured on; may be empty.
        ears: What was heard.
        sounds: Decodes clips.
        seed: Of order, question choice, wording, offsets.
        keep: Takes rows to log: the first held-out answers, each time that they are measured.
        say: Told of the schedule.
        clock: Told of the phases of a step.
    """
    grouped = [(units(examples), weight) for examples, weight in sources]
    mixture = stream(stage, grouped, seed, tuple)
    rows_seen: list[str] = []
    everything = (example for examples, _ in sources for example in examples)
    schedule = plan(stage, everything, sum(len(clips) for clips, _ in grouped), seed)
    styles, weights = list(stage.data.styles), list(stage.data.styles.values())
    say(f"compress: an epoch is {schedule.steps_per_epoch:.1f} steps; all taken out from progress {schedule.cutover}")
    listen = _delay_meter(model, stage, styles[0], held_out, encoder_cache, sounds, keep)

    def batches(step: int) -> tuple[list[Micro], dict[str, float]]:
        rng = random.Random(f"{seed} compress {step}")
        drawn, waveforms, skipped = draw(mixture, stage.clips_per_step, sounds, clock)
        trees: list[list[TokenPath]] = []
        left = whole = 0
        rows_seen.clear()
        for unit in drawn:
            paths: list[TokenPath] = []
            for example in rng.sample(unit.rows, min(len(unit.rows), stage.questions_per_clip)):
                style = rng.choices(styles, weights)[0]
                rows_seen.append(example.id)
                trunk = conversation_path(model, prompt_turns(example, style), unit.clips, unit.samples, generate=True)
                head, chain, tail = parts(example, style)
                short = schedule.chain(example, chain, step, model)
                ids = [*(model.tokenize(head) if head else []), *short, *model.tokenize(tail), model.eos_ids[0]]
                paths.append(trunk + completion_path(ids))
                left, whole = left + len(short), whole + len(model.tokenize(chain))
            trees.append(paths)
        micros = assemble(model, None if encoder_trains(model) else encoder_cache, mine(trees), waveforms, stage.pack_tokens)
        for micro in micros:
            micro.extra["denominator"] = torch.tensor(targets(trees))
        count = sum(len(paths) for paths in trees)
        metrics = {"clips": float(len(trees)), "skipped": float(skipped), "progress": schedule.progress(step)}
        metrics |= {"chain_tokens": left / count, "chain_share": left / max(1, whole)}
        if step % stage.measure_every == 0 or step == stage.max_steps - 1:
            with clock("delay"):
                metrics |= listen(step)
        return micros, metrics | work_shared(micros, trees, waveforms, model.spec.sample_rate)

    def loss(logprobs: Tensor, micro: Micro) -> LossOutput:
        return sft_loss(logprobs, micro.forest.loss_mask, denominator=float(micro.extra["denominator"]))

    def restore(state: Mapping[str, Any]) -> None:
        mixture.load_state_dict(state["mixture"])

    return StageWork(
        "compress",
        batches,
        loss,
        lambda: {"mixture": mixture.state_dict()},
        restore,
        stage.save_every,
        fresh=schedule.fresh,
        ids=lambda: list(rows_seen),
    )


def _delay_meter(
    model: AudioLM, stage: CompressStage, style: str, rows: Sequence[Example], encoder_cache: EncoderCache, sounds: Sounds, keep: Keep
) -> Callable[[int], dict[str, float]]:
    """Asks the model the held-out rows before a step, greedily: mean tokens before the answer, share of replies that
    come to one. A reply without the mark before the answer never does: all its tokens are delay."""
    engine = LocalEngine(model, encoder_cache=encoder_cache)
    questions = asked(rows, style, sounds)
    marks = [answer_mark(row, style) for row, _ in questions]
    sampling_params = SamplingParams(stage.max_new_tokens)

    def listen(step: int) -> dict[str, float]:
        if not questions:
            return {}
        said = [group[0] for group in engine.generate([prompt for _, prompt in questions], sampling_params)]
        for (row, _), one in zip(questions[:SHOWN], said[:SHOWN], strict=True):
            keep(sample(step + 1, row, [one], None))
        reached = [mark in one.text for one, mark in zip(said, marks, strict=True)]
        delays = [
            (one.reasoning_tokens or 0) if there else len(one.token_ids)
            for one, there in zip(said, reached, strict=True)
        ]
        return {"delay": sum(delays) / len(delays), "answered": sum(reached) / len(said)}

    return listen
