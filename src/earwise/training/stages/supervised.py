"""The pipeline that SFT, DPO and compression share: from a mixture of rows to packed micro-batches.

Flow of a step: draw `clips_per_step` groups of rows that share their clips -> choose up to `questions_per_clip` rows of
each (or draw `rows_per_step` rows and group those that share their clips) -> tokenise the prompt of each row -> ask the
stage for the replies to it -> one tree per group -> packed micro-batches. The stage adds the inputs of its loss.

Before some steps the model answers a few fixed rows, for a person to read (`logging/sample_log.py`).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.config.stages import SftConfig, StageConfig, SupervisedConfig
from earwise.data.index import ManifestRows
from earwise.errors import DataError
from earwise.forest import TokenPath
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.prompts import THINKING_STYLES, prompt_turns
from earwise.training.batches import (
    ClipGroup,
    DrawnClips,
    DrawnGroup,
    SingleRows,
    build_micro_batches,
    build_mixture,
    count_trained_tokens,
    draw_clip_groups,
    draw_rows,
    group_by_clips,
    local_trees,
    sharing_metrics,
)
from earwise.training.logging.sample_log import CompletionLogger
from earwise.training.policy import MicroBatch
from earwise.training.stages.stage import StageContext
from earwise.training.trainable import trains_encoder
from earwise.types import Audio, Example, Text, Turn

RepliesHook = Callable[[Example, str, random.Random], Sequence[TokenPath]]
"""Row, prompt style and random generator -> token paths of the replies to train on, one branch each."""


EVAL_QUESTIONS = 16
"""Largest number of held-out rows about one clip in one tree."""


@dataclass(frozen=True, slots=True)
class SupervisedStep:
    """Data of a step, before the stage adds the inputs of its loss.

    Attributes:
        micro_batches: This process's micro-batches.
        num_trained_tokens: Trained tokens of all branches, of all processes.
        num_branches: Branches of all trees, of all processes.
        example_ids: Ids of the rows, in order.
        metrics: Values to log.
    """

    micro_batches: list[MicroBatch[None]]
    num_trained_tokens: float
    num_branches: int
    example_ids: list[str]
    metrics: dict[str, float]


class SupervisedPipeline:
    """Makes the micro-batches of stages that train on given replies.

    Args:
        context: What the run gives to the stage.
        config: Settings of the stage.
        decodes_in_batches: As `Stage.decodes_in_batches`.
        log_completions: Whether the model answers a few fixed rows every `log_completions_steps` steps.
    """

    def __init__(
        self,
        context: StageContext,
        config: SupervisedConfig,
        *,
        decodes_in_batches: bool,
        log_completions: bool = True,
    ) -> None:
        self._context, self._config = context, config
        groups: list[tuple[Sequence[ClipGroup], float]]
        groups = [(group_by_clips(rows), weight) for rows, weight in context.data.mixture]
        self.num_clip_groups = sum(len(source) for source, _ in groups)
        self._rows_per_step = config.rows_per_step if isinstance(config, SftConfig) else None
        if self._rows_per_step is not None:
            groups = [(SingleRows(rows), weight) for rows, weight in context.data.mixture]
        self._mixture = build_mixture(config, groups, context.seed, tuple)
        self._styles, self._style_weights = list(config.data.styles), list(config.data.styles.values())
        self._completion_logger = (
            CompletionLogger(context, config, decodes_in_batches=decodes_in_batches) if log_completions else None
        )

    def make_step(self, step: int, replies: RepliesHook) -> SupervisedStep:
        """Make the micro-batches of a step.

        Args:
            step: Number of the step, from 0.
            replies: Gives the token paths of the replies to a row.
        """
        context, config = self._context, self._config
        if self._completion_logger is not None:
            self._completion_logger.before_step(step)
        rng = random.Random(f"{context.seed} {config.short_kind} {step}")
        if self._rows_per_step is not None:
            drawn = draw_rows(self._mixture, self._rows_per_step, context.clip_loader, context.profiler)
        else:
            drawn = draw_clip_groups(self._mixture, config.clips_per_step, context.clip_loader, context.profiler)

        def choose_rows(group: DrawnGroup) -> Sequence[Example]:
            if self._rows_per_step is not None:
                return group.rows
            return rng.sample(group.rows, min(len(group.rows), config.questions_per_clip))

        return self._pack(drawn, choose_rows, lambda: self._draw_style(rng), replies, rng)

    def held_out_steps(self, replies: RepliesHook) -> Iterator[SupervisedStep]:
        """Micro-batches of the held-out rows, each row once, `clips_per_step` clips at a time; in the style in which
        they are evaluated.

        Args:
            replies: Gives the token paths of the replies to a row.
        """
        context, config = self._context, self._config
        if config.eval_dataset is None:
            return
        style = config.eval_dataset.style
        groups = [part for group in group_by_clips(context.data.eval_rows) for part in _parts(group, EVAL_QUESTIONS)]
        for start in range(0, len(groups), config.clips_per_step):
            part = groups[start : start + config.clips_per_step]
            drawn = draw_clip_groups(iter(part), len(part), context.clip_loader, context.profiler, at_most=True)
            if drawn.groups:
                rng = random.Random(f"{context.seed} {config.short_kind} held out {start}")
                yield self._pack(drawn, lambda group: group.rows, lambda: style, replies, rng)

    def _pack(
        self,
        drawn: DrawnClips,
        choose_rows: Callable[[DrawnGroup], Sequence[Example]],
        next_style: Callable[[], str],
        replies: RepliesHook,
        rng: random.Random,
    ) -> SupervisedStep:
        """One tree for the chosen rows of each group, packed."""
        context, config, model = self._context, self._config, self._context.model
        trees: list[list[TokenPath]] = []
        example_ids: list[str] = []
        for group in drawn.groups:
            rows = choose_rows(group)
            trees.append([path for row in rows for path in self._branches(row, next_style(), group, replies, rng)])
            example_ids += [row.id for row in rows]
        micro_batches = build_micro_batches(
            model,
            None if trains_encoder(model) else context.encoder_cache,
            local_trees(trees),
            drawn.waveforms,
            config.pack_tokens,
        )
        metrics = {"clips": float(len(trees)), "skipped": float(drawn.num_skipped)}
        metrics |= sharing_metrics(micro_batches, trees, drawn.waveforms, model.spec.sample_rate)
        num_branches = sum(len(paths) for paths in trees)
        return SupervisedStep(micro_batches, count_trained_tokens(trees), num_branches, example_ids, metrics)

    def _draw_style(self, rng: random.Random) -> str:
        return rng.choices(self._styles, self._style_weights)[0]

    def _branches(
        self, row: Example, style: str, group: DrawnGroup, replies: RepliesHook, rng: random.Random
    ) -> list[TokenPath]:
        """Prompt and reply of each branch of a row; the prompt is tokenised once."""
        turns = prompt_turns(row, style)
        paths = []
        if isinstance(self._config, SftConfig) and self._config.assistant_turns == "all":
            paths = self._history_branches(turns, group)
        prompt = conversation_path(self._context.model, turns, group.clips, group.num_samples, generate=True)
        return paths + [prompt + reply for reply in replies(row, style, rng)]

    def _history_branches(self, turns: tuple[Turn, ...], group: DrawnGroup) -> list[TokenPath]:
        """One branch for each reply of the assistant before the last user turn: what comes before it, and the reply.

        All are beginnings of one conversation, so in the tree they share its tokens, and the loss is that of the whole
        conversation with all assistant turns trained.
        """
        paths = []
        for place, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = turns[:place]
            num_clips = sum(isinstance(part, Audio) for earlier in before for part in earlier.parts)
            reply = "".join(part.text for part in turn.parts if isinstance(part, Text))
            prompt = conversation_path(
                self._context.model, before, group.clips[:num_clips], group.num_samples[:num_clips], generate=True
            )
            paths.append(prompt + answer_path(self._context.model, reply))
        return paths

    def state_dict(self) -> dict[str, Any]:
        """Position in the data."""
        return {"mixture": self._mixture.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position in the data."""
        self._mixture.load_state_dict(state["mixture"])


def _parts(group: Sequence[Example], size: int) -> list[tuple[Example, ...]]:
    """A group of rows in parts of at most `size` rows."""
    return [tuple(group[start : start + size]) for start in range(0, len(group), size)]


def can_score_reply(config: SupervisedConfig, row: Example) -> bool:
    """Whether a held-out row has the reply that the style of the evaluation asks for."""
    needs_chain = config.eval_dataset is not None and config.eval_dataset.style in (*THINKING_STYLES, "xs-cot")
    return bool(row.answer) and (not needs_chain or bool(row.reasoning))


def check_reasoning(config: StageConfig, rows: ManifestRows, source_name: str) -> None:
    """Refuse rows without reasoning where a prompt style asks for it.

    Raises:
        DataError: naming the first such row.
    """
    styles = [style for style in config.data.styles if style in (*THINKING_STYLES, "xs-cot")]
    if styles and (rows_without := rows.without_reasoning()):
        raise DataError(
            f"{source_name}: row {rows_without[0].id!r} has no reasoning for style {styles[0]!r} "
            f"({len(rows_without)} such rows); add it, or use style answer"
        )
