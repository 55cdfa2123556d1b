"""What a model that is being taught says meanwhile: greedy answers to a few fixed rows, for people to look at.

GRPO logs what it samples anyway (`grpo.py`); stages that are told the right replies (`sft`, `dpo`, `compress`) never
say anything, and a loss does not tell what was learnt. Every `show_every` steps, before the step's batches are drawn,
the model is asked the same rows of its own data; `train/run.py` writes the answers to `rollouts.jsonl`, from where
trackers and reports show them with their clips.

Looking changes nothing: rows are taken by their place, not drawn; greedy decoding draws nothing; what is kept of the
sounds is bit for bit what hearing them again gives. The engine, with its copy of the weights, is gone afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from earwise.config.stages import CompressStage, DpoStage, SftStage
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.prompts import prompt_turns
from earwise.train.batches import Sounds
from earwise.train.distributed import parallel, sharding
from earwise.train.profiler import Clock
from earwise.train.trainer import Say, StageWork
from earwise.types import Completion, Example

T = TypeVar("T")
Keep = Callable[[dict[str, Any]], None]
SHOWN = 4
"""Rows that are asked; trackers show the first two."""
TOKENS = 128
"""Of an answer; enough for a short chain of reasoning."""


def evenly(rows: Sequence[T], count: int) -> list[T]:
    """So many rows, or all if there are no more, spread over the whole: in a sorted manifest the first are much alike.

    >>> evenly("abcdefg", 3)
    ['a', 'c', 'e']
    """
    some = min(count, len(rows))
    return [rows[number * len(rows) // some] for number in range(some)]


def asked(rows: Sequence[Example], style: str, sounds: Sounds) -> list[tuple[Example, Prompt]]:
    """Rows with what is asked of each; without those whose sounds cannot be read, where they may be skipped."""
    fitted = [some for row in rows if (some := sounds.fit((row,))) is not None]
    return [(row, Prompt(prompt_turns(row, style), tuple(waveforms), row.id)) for (row,), waveforms in fitted]


def sample(step: int, example: Example, said: Sequence[Completion], rewards: Sequence[float] | None) -> dict[str, Any]:
    """A row of `rollouts.jsonl`, but for the stage.

    Args:
        step: From 1: the step that the weights are about to take.
        example: What was asked.
        said: To it.
        rewards: Of each completion; None where nothing is rewarded and decoding was greedy.
    """
    return {
        "step": step,
        "id": example.id,
        "audio": [str(path) for path in example.audio_paths],
        "question": example.question,
        "choices": list(example.choices),
        "answer": list(example.answer or example.chosen),
        "completions": [one.text for one in said],
        "rewards": None if rewards is None else list(rewards),
    }


def shown(
    work: StageWork,
    model: AudioLM,
    stage: SftStage | DpoStage | CompressStage,
    sources: Sequence[tuple[Sequence[Example], float]],
    encoder_cache: EncoderCache,
    sounds: Sounds,
    keep: Keep,
    clock: Clock,
    say: Say,
) -> StageWork:
    """The same stage, asked a few rows every `show_every` steps.

    Args:
        work: The stage for the loop.
        model: As it is trained.
        stage: Its settings.
        sources: Examples and weight of each manifest of the mixture; manifests take turns.
        ears: What was heard.
        sounds: Decodes clips.
        keep: Takes the rows to log.
        clock: Told of the time.
        say: Told why nothing is shown.
    Raises:
        AudioError: as training would, for a row that cannot be read and may not be skipped.
    """
    if not 0 < stage.show_every < stage.max_steps:
        return work
    if sharding.cuts() and not work.asks:  # the plan counts no more than one layer whole at a time
        say(f"{work.kind}: layers are cut over processes and stay so, no answers are shown (show_every)")
        return work
    turns = [number % len(sources) for number in range(SHOWN)]
    rows = [row for number, (some, _) in enumerate(sources) for row in evenly(some, turns.count(number))]
    styles = stage.data.styles
    questions = asked(rows, max(styles, key=styles.__getitem__), sounds)

    def batches(step: int) -> Any:
        if step and step % stage.show_every == 0 and questions and parallel.main():
            with clock("rollout"):
                engine = LocalEngine(model, encoder_cache=encoder_cache, static=False)  # no buffers that stay on a device
                groups = engine.generate([prompt for _, prompt in questions], SamplingParams(TOKENS))
            for (example, _), said in zip(questions, groups, strict=True):
                keep(sample(step + 1, example, said, None))
        return work.batches(step)

    return replace(work, batches=batches)
