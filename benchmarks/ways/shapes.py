"""What the benchmarks are run on: shapes of a step, real clips brought to length, prompts in R1-AQA's words.

Rewards are made up (0, 1, 2 in turn, so that no group is flat): a benchmark of time has no use for right answers.
"""

from dataclasses import dataclass

import numpy as np

from earwise.audio import decode
from earwise.data.manifest import read
from earwise.engine.base import Prompt
from earwise.forest import Path
from earwise.models.base import AudioLM
from earwise.models.prompt_encoding import conversation_path
from earwise.prompts import prompt_turns
from earwise.train.run import STARTER
from earwise.types import Example, Waveform


@dataclass(frozen=True, slots=True)
class Shape:
    """One prompt's share of a GRPO step."""

    seconds: float
    group: int
    max_new_tokens: int


SHAPES = {
    "r1-aqa": Shape(10.0, 8, 32),
    "long": Shape(30.0, 8, 64),
    "think": Shape(10.0, 8, 256),
    "quick": Shape(1.0, 4, 6),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts of one step.

    Attributes:
        shape: Clip length, group size, most new tokens.
        prompts: Conversation and one clip each, no two clips alike.
        trunks: The prompts as token ids; prompt i hears clip i.
        rewards: One value per completion, groups one after the other.
    """

    shape: Shape
    prompts: tuple[Prompt, ...]
    trunks: tuple[Path, ...]
    rewards: tuple[float, ...]

    @property
    def waves(self) -> dict[int, Waveform]:
        """Clip number -> waveform."""
        return {number: prompt.waves[0] for number, prompt in enumerate(self.prompts)}


def examples() -> list[Example]:
    """The bundled validation rows that ask about one clip."""
    return [example for example in read(STARTER / "val.jsonl") if len(example.audio_paths) == 1]


def clip(example: Example, seconds: float) -> Waveform:
    """The example's sound, repeated or cut to a length, mono at 16 kHz."""
    return np.resize(decode(example.audio_paths[0]), round(seconds * 16000)).astype(np.float32)


def workload(model: AudioLM, shape: Shape, prompts: int) -> Workload:
    """The first `prompts` bundled questions with their clips at the shape's length."""
    rows = list({row.audio_paths[0]: row for row in examples()}.values())[:prompts]
    if len(rows) < prompts:
        raise ValueError(f"{prompts} prompts asked for, {len(rows)} clips are bundled; ask for fewer")
    asked = tuple(Prompt(prompt_turns(row, "answer"), (clip(row, shape.seconds),), row.id) for row in rows)
    trunks = tuple(
        conversation_path(model, prompt.turns, [number], [len(prompt.waves[0])], generate=True)
        for number, prompt in enumerate(asked)
    )
    return Workload(shape, asked, trunks, tuple(float(i % 3) for i in range(prompts * shape.group)))
