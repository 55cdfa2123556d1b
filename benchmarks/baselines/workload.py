"""The workload of the benchmarks: shapes of a step, bundled clips brought to a length, prompts in R1-AQA's wording.

Rewards are fixed (0, 1, 2 in turn, so that no group has equal rewards), since the time of a step does not depend on
them.
"""

from dataclasses import dataclass

import numpy as np

from earwise.audio import decode
from earwise.data.manifest import read
from earwise.data.manifest_path import STARTER
from earwise.engine.base import Prompt
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import prompt_turns
from earwise.types import Example, Waveform


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a GRPO step, per prompt.

    Attributes:
        seconds: Length of the clip.
        group: Number of completions.
        max_new_tokens: Longest completion.
    """

    seconds: float
    group: int
    max_new_tokens: int


SHAPES = {
    "r1-aqa": Shape(10.0, 8, 32),
    "long": Shape(30.0, 8, 64),
    "thoughts": Shape(10.0, 8, 60),
    "think": Shape(10.0, 8, 256),
    "quick": Shape(1.0, 4, 6),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts of one step.

    Attributes:
        shape: Clip length, group size, longest completion.
        prompts: Conversations with one clip each; no two clips are the same.
        paths: Token paths of the prompts; prompt i has clip i.
        rewards: One value per completion, group after group.
    """

    shape: Shape
    prompts: tuple[Prompt, ...]
    paths: tuple[TokenPath, ...]
    rewards: tuple[float, ...]

    @property
    def waveforms(self) -> dict[int, Waveform]:
        """Waveform of each clip, by its number."""
        return {number: prompt.waveforms[0] for number, prompt in enumerate(self.prompts)}


def examples() -> list[Example]:
    """The bundled validation examples with one clip."""
    return [example for example in read(STARTER / "val.jsonl") if len(example.audio_paths) == 1]


def clip(example: Example, seconds: float) -> Waveform:
    """The clip of an example, repeated or cut to a length in seconds, mono at 16 kHz."""
    return np.resize(decode(example.audio_paths[0]), round(seconds * 16000)).astype(np.float32)


def workload(model: AudioLM, shape: Shape, num_prompts: int) -> Workload:
    """The first bundled questions, with clips of the shape's length.

    Args:
        model: Model whose tokenizer is used.
        shape: Sizes of the step.
        num_prompts: Number of questions.
    """
    rows = list({row.audio_paths[0]: row for row in examples()}.values())[:num_prompts]
    if len(rows) < num_prompts:
        raise ValueError(
            f"{num_prompts} prompts are requested, but only {len(rows)} clips are bundled; use fewer prompts"
        )
    prompts = tuple(Prompt(prompt_turns(row, "answer"), (clip(row, shape.seconds),), row.id) for row in rows)
    paths = tuple(
        conversation_path(model, prompt.turns, [number], [len(prompt.waveforms[0])], generate=True)
        for number, prompt in enumerate(prompts)
    )
    return Workload(shape, prompts, paths, tuple(float(i % 3) for i in range(num_prompts * shape.group)))
