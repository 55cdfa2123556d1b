"""Generalised knowledge distillation (GKD): a student learns from a teacher on completions that it samples itself.

Flow of a step: draw clips and questions -> completions, sampled by the student, or by the teacher, or those of the rows
(`lmbda`, `seq_kd`) -> one tree per clip behind the student's prompts, and one behind the teacher's -> the teacher's
states in one pass -> divergence of the two distributions at every token of the completions.

Source: GKD (arXiv:2306.13649), algorithm 1; names and the mean over tokens as in TRL 1.16. As there, no gradient flows
through the sampling. Ours: several questions and completions share a tree; a teacher that is also given the answer
(`teacher_context`); divergences at a temperature of their own (TRL's trainer compares at 1).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from earwise.algorithms.distillation import gkd_loss
from earwise.algorithms.losses import LossOutput
from earwise.config.kinds.gkd import GkdConfig
from earwise.config.stages import Source
from earwise.data.index import ManifestRows
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.memory.stage_memory import RolloutSize, StageMemory
from earwise.models.memory.teacher_memory import teacher_bytes
from earwise.models.prompt_encoding import answer_path, completion_path, conversation_path
from earwise.prompts import prompt_turns, target_text
from earwise.training.batches import (
    build_micro_batches,
    build_mixture,
    count_trained_tokens,
    draw_clip_groups,
    group_by_clips,
)
from earwise.training.distillation.teacher import Teacher, with_answer
from earwise.training.distributed import parallel
from earwise.training.logging.sample_log import sample_row
from earwise.training.policy import MicroBatch
from earwise.training.stages.stage import StageContext, StepBatches
from earwise.training.stages.supervised import check_reasoning
from earwise.training.trainable import Reference, trains_encoder
from earwise.types import Completion, Example, Turn, Waveform


@dataclass(frozen=True, slots=True)
class GkdInputs:
    """Inputs of the distillation loss: `num_items` is the number of trained tokens of the whole step."""

    num_items: float


@dataclass(frozen=True, slots=True)
class Question:
    """A row of a step, as student and teacher read it.

    Attributes:
        row: The row.
        key: Names the random draws of its completions.
        style: Prompt style.
        turns: The student's prompt.
        teacher_turns: The teacher's prompt.
        clips: Numbers of its clips among those of the step.
        waveforms: Its clips.
    """

    row: Example
    key: str
    style: str
    turns: tuple[Turn, ...]
    teacher_turns: tuple[Turn, ...]
    clips: range
    waveforms: tuple[Waveform, ...]


Group = Sequence[Question]
"""Questions about the same clips, whose completions are branches of one tree."""


class GkdStage:
    """Distillation for the trainer.

    Args:
        context: What the run gives to the stage; its model as it is now is the teacher, if the settings name none.
        config: Settings.
    Raises:
        ConfigError: if the teacher has another vocabulary, or is another one than before an interruption.
    """

    kind = "gkd"
    updates_per_rollout = 1
    decodes_in_batches = True

    def __init__(self, context: StageContext, config: GkdConfig) -> None:
        self._context, self._config = context, config
        groups = [(group_by_clips(rows), weight) for rows, weight in context.data.mixture]
        self._mixture = build_mixture(config, groups, context.seed, tuple)
        self._styles, self._style_weights = list(config.data.styles), list(config.data.styles.values())
        self._encoder_cache = None if trains_encoder(context.model) else context.encoder_cache
        self._reference: Reference | None = None
        if config.teacher is not None:
            self._teacher = Teacher.from_config(config.teacher, context.model)
        else:
            self._reference = Reference(context.model.module)
            self._teacher = Teacher.from_reference(context.model, self._reference, self._encoder_cache)
        self._engine = LocalEngine(
            context.model,
            encoder_cache=context.encoder_cache,
            batch_size=config.clips_per_step * config.questions_per_clip,
        )
        self._sampling_params = SamplingParams(config.max_new_tokens, config.temperature, seed=context.seed)

    def batches(self, step: int) -> StepBatches[GkdInputs]:
        """Draw questions, get their completions, pack both sides and run the teacher; see `Stage`."""
        context, config = self._context, self._config
        rng = random.Random(f"{context.seed} {config.short_kind} {step}")
        drawn = draw_clip_groups(self._mixture, config.clips_per_step, context.clip_loader, context.profiler)
        groups: list[Group] = []
        for group in drawn.groups:
            rows = rng.sample(group.rows, min(len(group.rows), config.questions_per_clip))
            waveforms = tuple(drawn.waveforms[clip] for clip in group.clips)
            groups.append([self._question(row, group.clips, waveforms, step, rng) for row in rows])
        example_ids = [question.row.id for questions in groups for question in questions]
        self._teacher.check_length(drawn.waveforms, example_ids)
        sampler = self._sampler(rng)
        local = parallel.assigned_items([len(group) * (1 + sum(map(len, group[0].waveforms))) for group in groups])
        local_groups = [groups[number] for number in local]
        metrics = {"on_policy": float(sampler == "student"), "skipped": float(drawn.num_skipped)}
        if sampler == "rows":
            replies = [[self._given_reply(question) for question in group] for group in local_groups]
        else:
            completions = self._sample(local_groups, sampler)
            replies = [[_paths(samples) for samples in group] for group in completions]
            metrics |= _length_metrics(completions)
            self._log(step, groups, parallel.gather_assigned(local, completions))
        micro_batches, sharing = self._pack(local_groups, replies, drawn.waveforms)
        num_samples = sum(len(waveform) for waveform in drawn.waveforms.values())
        metrics |= sharing | {"audio_s": num_samples / context.model.spec.sample_rate}
        return StepBatches(micro_batches, metrics, example_ids)

    def _question(
        self, row: Example, clips: range, waveforms: tuple[Waveform, ...], step: int, rng: random.Random
    ) -> Question:
        style = rng.choices(self._styles, self._style_weights)[0]
        turns = prompt_turns(row, style)
        is_hinted = self._config.teacher_context == "answer"
        teacher_turns = with_answer(turns, row.answer[0]) if is_hinted else turns
        return Question(row, f"{step} {row.id}", style, turns, teacher_turns, clips, waveforms)

    def _sampler(self, rng: random.Random) -> str:
        """Who writes the completions of a step: the `student`, the `teacher`, or the `rows`."""
        if rng.random() < self._config.lmbda:
            return "student"
        return "teacher" if self._config.seq_kd else "rows"

    def _given_reply(self, question: Question) -> list[TokenPath]:
        """The reply of the row, as the only completion of its question."""
        return [answer_path(self._context.model, target_text(question.row, question.style))]

    def _sample(self, groups: Sequence[Group], sampler: str) -> list[list[list[Completion]]]:
        """Completions of each question of each group."""
        questions = [question for group in groups for question in group]
        is_student = sampler == "student"
        prompts = [
            Prompt(question.turns if is_student else question.teacher_turns, question.waveforms, question.key)
            for question in questions
        ]
        generate = self._engine.generate if is_student else self._teacher.sample
        with self._context.profiler.phase("rollout"):
            completions = iter(generate(prompts, self._sampling_params, self._config.group_size))
        return [[next(completions) for _ in group] for group in groups]

    def _log(self, step: int, groups: Sequence[Group], completions: Sequence[Sequence[Sequence[Completion]]]) -> None:
        """Log the sampled completions of all processes, if it is time."""
        interval = self._config.log_completions_steps
        if not interval or step % interval:
            return
        for group, group_completions in zip(groups, completions, strict=True):
            for question, samples in zip(group, group_completions, strict=True):
                self._context.log_sample(sample_row(step + 1, question.row, samples, None))

    def _pack(
        self, groups: Sequence[Group], replies: Sequence[Sequence[list[TokenPath]]], waveforms: Mapping[int, Waveform]
    ) -> tuple[list[MicroBatch[GkdInputs]], dict[str, float]]:
        """Micro-batches with the teacher's side, and how much their branches share in all processes.

        Args:
            groups: This process's groups of questions, one tree each.
            replies: For each group and question the token paths of its completions.
            waveforms: Clip number -> waveform.
        """
        context, config = self._context, self._config
        trees = self._trees(groups, replies, context.model, for_teacher=False)
        teacher_trees = iter(self._trees(groups, replies, self._teacher.model, for_teacher=True))
        packed = build_micro_batches(context.model, self._encoder_cache, trees, waveforms, config.pack_tokens)
        counts = parallel.all_sum(
            {
                "items": count_trained_tokens(trees),
                "distinct": float(sum(len(micro_batch.forest) for micro_batch in packed)),
                "all": float(sum(len(path.ids) for paths in trees for path in paths)),
            }
        )
        micro_batches = []
        for micro_batch in packed:
            with context.profiler.phase("reference"):
                targets = self._teacher.targets(
                    micro_batch,
                    [next(teacher_trees) for _ in micro_batch.paths],
                    beta=config.beta,
                    temperature=config.loss_temperature,
                )
            with_inputs = micro_batch.with_loss_inputs(GkdInputs(counts["items"]))
            micro_batches.append(replace(with_inputs, teacher_targets=targets))
        return micro_batches, {"distinct_share": counts["distinct"] / max(counts["all"], 1.0)}

    @staticmethod
    def _trees(
        groups: Sequence[Group], replies: Sequence[Sequence[list[TokenPath]]], model: AudioLM, *, for_teacher: bool
    ) -> list[list[TokenPath]]:
        """The token paths of one tree per group: each question's prompt with its completions.

        Args:
            groups: Groups of questions about the same clips.
            replies: For each group and question the token paths of its completions.
            model: The model that reads the prompts.
            for_teacher: Whether it is the teacher.
        """
        trees = []
        for group, group_replies in zip(groups, replies, strict=True):
            paths: list[TokenPath] = []
            for question, question_replies in zip(group, group_replies, strict=True):
                turns = question.teacher_turns if for_teacher else question.turns
                num_samples = [len(waveform) for waveform in question.waveforms]
                prompt = conversation_path(model, turns, question.clips, num_samples, generate=True)
                paths += [prompt + reply for reply in question_replies]
            trees.append(paths)
        return trees

    def held_out_batches(self, step: int) -> Iterator[StepBatches[GkdInputs]]:
        """Nothing: the loss is one on sampled completions; see `Stage`."""
        return iter(())

    def loss(self, logprobs: Tensor, micro_batch: MicroBatch[GkdInputs]) -> LossOutput:
        """Mean divergence from the teacher; `logprobs` are the divergences that `Policy` returns for a micro-batch with
        a teacher's side. See `Stage`."""
        return gkd_loss(logprobs, micro_batch.forest.loss_mask, num_items=micro_batch.loss_inputs.num_items)

    def resets_optimizer(self, step: int) -> bool:
        """Never; see `Stage`."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Position in the data, and which teacher it is; see `Stage`."""
        state: dict[str, Any] = {"mixture": self._mixture.state_dict()}
        if self._reference is not None:
            return state | {"reference": self._reference.state_dict()}
        return state | {"teacher_revision": self._teacher.model.revision}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state; see `Stage`."""
        self._mixture.load_state_dict(state["mixture"])
        if self._reference is not None:
            self._reference.load_state_dict(state["reference"])
        elif state["teacher_revision"] != (revision := self._teacher.model.revision):
            raise ConfigError(
                f"the teacher {self._teacher.model.name} has the weights {revision}, the run began with "
                f"{state['teacher_revision']}; put those back, or start the stage anew"
            )

    @staticmethod
    def trains_on_preferences(config: GkdConfig) -> bool:
        """No; see `StageClass`."""
        return False

    @staticmethod
    def can_score(config: GkdConfig, row: Example) -> bool:
        """No: there is no loss on given rows; see `StageClass`."""
        return False

    @staticmethod
    def held_out_source(config: GkdConfig) -> Source | None:
        """None; see `StageClass`."""
        return None

    @staticmethod
    def check(config: GkdConfig, rows: ManifestRows, source_name: str) -> None:
        """Refuse rows without reasoning where their replies are used and the style asks for it; see `StageClass`."""
        if config.uses_rows_replies:
            check_reasoning(config, rows, source_name)

    @staticmethod
    def memory(config: GkdConfig, processes: int = 1) -> StageMemory:
        """The teacher, and the rollouts of this process's share of the clips; see `StageClass`."""
        clips = -(-config.clips_per_step // processes)
        rollout = RolloutSize(clips * config.questions_per_clip, config.group_size, config.max_new_tokens)
        return StageMemory(
            keeps_reference=config.teacher is None,
            rollout=rollout if config.samples else None,
            decodes_in_batches=True,
            clips=clips,
            teacher_bytes=0.0 if config.teacher is None else teacher_bytes(config.teacher, config.pack_tokens),
        )


def _paths(completions: Sequence[Completion]) -> list[TokenPath]:
    """The token paths of sampled completions."""
    return [completion_path(completion.token_ids) for completion in completions]


def _length_metrics(completions: Sequence[Sequence[Sequence[Completion]]]) -> dict[str, float]:
    """Mean length of sampled completions in tokens, and the share that was cut, over all processes."""
    sampled = [completion for group in completions for samples in group for completion in samples]
    sums = parallel.all_sum(
        {
            "count": float(len(sampled)),
            "tokens": float(sum(len(completion.token_ids) for completion in sampled)),
            "cut": float(sum(completion.finish_reason == "length" for completion in sampled)),
        }
    )
    count = max(sums["count"], 1.0)
    return {"length": sums["tokens"] / count, "truncated": sums["cut"] / count}
