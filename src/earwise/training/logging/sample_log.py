"""Completions that are logged during training, for a person to read: the rows of `rollouts.jsonl`.

GRPO logs completions that it samples anyway. The supervised stages (SFT, DPO, compression) sample nothing, and their
loss does not show what the model has learnt. Every `log_completions_steps` steps, before the batches of the step are
made, the model therefore answers the same few rows of its training data (`CompletionLogger`). `training/run.py` writes
the answers to `rollouts.jsonl`, from where trackers and reports show them with their clips.

Logging changes nothing in the training: rows are chosen by their place, greedy decoding draws no random numbers, and
cached encoder states are bit for bit those of another encoder pass. The engine, with its copy of the weights, is
discarded after use.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from earwise.config.stages import SupervisedConfig
from earwise.data.clip_fields import segments_field
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.prompts import prompt_turns
from earwise.training.clip_loader import ClipLoader
from earwise.training.distributed import parallel, sharding
from earwise.training.stages.stage import StageContext
from earwise.types import Completion, Example

T = TypeVar("T")
NUM_LOGGED_ROWS = 4
"""Number of rows that are answered; trackers show the first two."""
MAX_NEW_TOKENS = 128
"""Longest answer, in tokens: enough for a short chain of reasoning."""


def evenly_spaced_rows(rows: Sequence[T], count: int) -> list[T]:
    """Choose `count` rows (or all, if there are fewer), evenly spread, since neighbours in a sorted manifest are alike.

    >>> evenly_spaced_rows("abcdefg", 3)
    ['a', 'c', 'e']
    """
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def prompts_for_rows(rows: Sequence[Example], style: str, clip_loader: ClipLoader) -> list[tuple[Example, Prompt]]:
    """Rows with their prompts; rows whose audio cannot be read are left out where the recipe skips them."""
    loaded_rows = [loaded for row in rows if (loaded := clip_loader.load_rows((row,))) is not None]
    return [
        (loaded.rows[0], Prompt(prompt_turns(loaded.rows[0], style), tuple(loaded.waveforms), loaded.rows[0].id))
        for loaded in loaded_rows
    ]


def sample_row(
    step: int, example: Example, completions: Sequence[Completion], rewards: Sequence[float] | None
) -> dict[str, Any]:
    """A row of `rollouts.jsonl`, except for the stage.

    Args:
        step: Number, from 1, of the step that the model is about to take.
        example: The row of the prompt.
        completions: The model's completions.
        rewards: Reward of each completion; None in stages without rewards, which decode greedily.
    """
    return {
        "step": step,
        "id": example.id,
        "audio": [str(path) for path in example.audio_paths],
        **segments_field(example.clips),
        "question": example.question,
        "choices": list(example.choices),
        "answer": list(example.answer or example.chosen),
        "completions": [completion.text for completion in completions],
        "rewards": None if rewards is None else list(rewards),
    }


class CompletionLogger:
    """Logs greedy answers to a few training rows every `log_completions_steps` steps.

    Args:
        context: What the run gives to the stage; the manifests of the mixture take turns.
        config: Settings of the stage.
        decodes_in_batches: As `Stage.decodes_in_batches`. Where FSDP2 shards the layers and the stage does not gather
            them anyway, nothing is logged, since the memory plan counts with one gathered layer at a time.
    Raises:
        AudioError: if the audio of a chosen row cannot be read and such rows stop the run.
    """

    def __init__(self, context: StageContext, config: SupervisedConfig, *, decodes_in_batches: bool) -> None:
        self._context = context
        self._interval = config.log_completions_steps
        self._prompts: list[tuple[Example, Prompt]] = []
        if not 0 < self._interval < config.max_steps:
            return
        if sharding.is_sharded() and not decodes_in_batches:
            context.notify(
                f"{config.short_kind}: the layers are sharded over processes, so no answers are logged "
                "(log_completions_steps)"
            )
            return
        mixture, styles = context.data.mixture, config.data.styles
        turns = [number % len(mixture) for number in range(NUM_LOGGED_ROWS)]
        rows = [
            row for number, (source, _) in enumerate(mixture) for row in evenly_spaced_rows(source, turns.count(number))
        ]
        self._prompts = prompts_for_rows(rows, max(styles, key=styles.__getitem__), context.clip_loader)

    def before_step(self, step: int) -> None:
        """Log answers if it is time; called before the batches of a step (from 0) are made."""
        if not (step and self._prompts and step % self._interval == 0 and parallel.is_main_process()):
            return
        context = self._context
        with context.profiler.phase("rollout"):
            # Without the static cache, whose buffers would stay on the device.
            engine = LocalEngine(context.model, encoder_cache=context.encoder_cache, use_static_cache=False)
            groups = engine.generate([prompt for _, prompt in self._prompts], SamplingParams(MAX_NEW_TOKENS))
        for (example, _), completions in zip(self._prompts, groups, strict=True):
            context.log_sample(sample_row(step + 1, example, completions, None))
