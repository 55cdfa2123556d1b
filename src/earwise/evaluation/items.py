"""Examples into the items of an evaluation: checked once, options shuffled by seed, prompts worded, controls applied.

First step of `evaluation.run`; its result does not depend on batches or on what is finished already.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from earwise.engine.request_pipeline import AudioRequest
from earwise.errors import DataError
from earwise.evaluation import controls
from earwise.evaluation.controls import Control
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.published.harness_prompts import HARNESS_PROMPTS
from earwise.evaluation.task import Task
from earwise.evaluation.tasks.manifest import TASK as MANIFEST
from earwise.prompts import prompt_turns
from earwise.types import Audio, AudioClip, Example, Text, Turn, Waveform


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One question to be answered: an example under one order of its options."""

    example: Example
    """The example, with its options in the order that the model reads."""
    permutation: int
    """Number of the order of the options, from 0."""
    request: AudioRequest
    """The prompt, with the clips that the model receives."""

    @property
    def prompt_text(self) -> str:
        """The text of the last user turn."""
        return "\n".join(part.text for part in self.request.turns[-1].parts if isinstance(part, Text))

    @property
    def clips(self) -> list[AudioClip]:
        """The files that the model receives, with their segments."""
        return [clip for clip in self.request.clips if isinstance(clip, AudioClip)]


def validate_examples(examples: Sequence[Example]) -> None:
    """Refuse examples that cannot be evaluated.

    Raises:
        DataError: if there are none, two have one id, or one has no clip and does not declare this.
    """
    if not examples:
        raise DataError("nothing to evaluate: the task has no examples; check the split or the file")
    ids: set[str] = set()
    for example in examples:
        if example.id in ids:
            raise DataError(
                f"id {example.id!r} stands twice; ids name the rows of samples.jsonl, so each must be unique"
            )
        ids.add(example.id)
        if not example.text_only and not any(isinstance(part, Audio) for turn in example.turns for part in turn.parts):
            raise DataError(
                f"item {example.id!r} has no clip, so nothing would be heard; add it, or declare text alone with "
                "text_only: true"
            )


def permuted(example: Example, seed: int, permutation: int = 0) -> Example:
    """The example with its options in an order that depends on the seed and the example's id alone.

    Permutation k is permutation 0 rotated by k places, so that over as many permutations as options the right option
    has every position once.

    Args:
        example: The example.
        seed: Seed of the order.
        permutation: Number of the order, from 0.
    """
    order = list(example.choices)
    random.Random(controls.seeded("options", seed, example.id)).shuffle(order)
    shift = permutation % len(order) if order else 0
    return replace(example, choices=tuple(order[shift:] + order[:shift]))


def build_items(
    examples: Sequence[Example], options: EvalOptions, control: Control | None = None, task: Task = MANIFEST
) -> list[EvalItem]:
    """All items of a run, in order.

    Args:
        examples: The examples.
        options: Wording, seed and order of the options.
        control: Blind control that replaces the clips; None: the real clips.
        task: The task, which may have prompt styles of its own.
    Raises:
        ConfigError: if style or control are unknown, an example has no user turn, or `shuffled` cannot blind these
            examples.
        DataError: see `check_examples`.
    """
    controls.check(control)
    validate_examples(examples)
    seed, style = options.seed, task.style_of(options.style)
    lenders = controls.partners(examples, seed) if control == "shuffled" else list(range(len(examples)))
    items = []
    for example, lender in zip(examples, lenders, strict=True):
        lent_clips = examples[lender].clips
        clips = tuple(lent_clips[number % len(lent_clips)] for number in range(len(example.clips)))
        alter = partial(_blinded, control, seed, example.id) if control in ("silence", "noise") else None
        for permutation in range(options.permutations if example.choices else 1):
            shown_example = permuted(example, seed, permutation) if options.shuffle_options else example
            key = f"{example.id}#{permutation}" if permutation else example.id
            turns = _turns(shown_example, style, task)
            if control == "text-only":
                turns, clips = _without_audio(turns), ()
            request = AudioRequest(key, turns, clips, alter)
            items.append(EvalItem(shown_example, permutation, request))
    return items


def _turns(example: Example, style: str, task: Task) -> tuple[Turn, ...]:
    """The conversation that the model is asked, in one of the task's own wordings or in a general prompt style."""
    wording = task.wording_of(style)
    if wording is None or (style not in task.prompts and not example.choices):
        return prompt_turns(example, style if style not in HARNESS_PROMPTS else "open")
    return prompt_turns(reworded(example, wording(example)), "open")


def _without_audio(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A conversation without its clips."""
    return tuple(Turn(turn.role, tuple(part for part in turn.parts if not isinstance(part, Audio))) for turn in turns)


def reworded(example: Example, text: str) -> Example:
    """The example with this text in place of its last user turn's, after the clips, and without options of its own."""
    turns = list(example.turns)
    place = max(number for number, turn in enumerate(turns) if turn.role == "user")
    audio = tuple(part for part in turns[place].parts if isinstance(part, Audio))
    turns[place] = Turn("user", (*audio, Text(text)))
    return replace(example, turns=tuple(turns), choices=())


def _blinded(control: Control, seed: int, example_id: str, number: int, waveform: Waveform) -> Waveform:
    """The control's waveform for clip `number` of an example."""
    return controls.blinded(waveform, control, controls.seeded(seed, example_id, number))
