"""An engine with scripted answers and a small task made of real WAV files, for the tests of evaluation and reports.

`listener` really hears: it tells the pitch of a tone from its zero crossings; `deaf` looks at the text alone.
"""

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from earwise.engine.base import Decoding, Prompt
from earwise.types import Audio, Completion, Example, Text, Turn, Waveform

RATE = 8000
PITCHES = {"low tone": 200.0, "middle tone": 700.0, "high tone": 2500.0, "hiss": 0.0}


class ScriptedEngine:
    """Answers with `say(prompt)`; remembers the size of every batch."""

    def __init__(self, say: Callable[[Prompt], str], name: str = "scripted", max_audio_s: float = 30.0) -> None:
        self.say, self.name, self.revision = say, name, "1"
        self.sample_rate, self.max_audio_s = RATE, max_audio_s
        self.batches: list[int] = []

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding, n: int = 1) -> list[list[Completion]]:
        self.batches.append(len(prompts))
        return [[Completion(self.say(prompt))] * n for prompt in prompts]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[0.0 for _ in texts] for texts in continuations]


def options(prompt: Prompt) -> list[str]:
    """The options as the prompt lists them."""
    text = "\n".join(part.text for part in prompt.turns[-1].parts if isinstance(part, Text))
    found = re.search(r"options: (\[.*?\])\.", text)
    return list(ast.literal_eval(found[1])) if found else []


def pitch_name(wave: Waveform) -> str | None:
    """Which of `PITCHES` a waveform is; None for silence."""
    if np.abs(wave).max() < 1e-3:
        return None
    crossings = float((np.diff(np.signbit(wave).astype(np.int8)) != 0).mean()) * RATE / 2
    return min(PITCHES, key=lambda name: abs((PITCHES[name] or 2000.0) - crossings))


def listener(prompt: Prompt) -> str:
    """Says what it hears; takes the first option when it hears nothing."""
    heard = pitch_name(prompt.waves[0])
    return f"<answer>{heard or options(prompt)[0]}</answer>"


def deaf(prompt: Prompt) -> str:
    """Always the first option."""
    return f"<answer>{options(prompt)[0]}</answer>"


def write_clip(path: Path, name: str, number: int, seconds: float = 0.25) -> Path:
    """A clip of one of `PITCHES`; `number` varies its loudness and phase."""
    rng = np.random.default_rng(number)
    time = np.arange(int(seconds * RATE)) / RATE
    wave = np.sin(2 * np.pi * PITCHES[name] * time + number) if PITCHES[name] else rng.uniform(-1, 1, time.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (0.2 + 0.02 * (number % 20)) * wave, RATE)
    return path


def tone_task(folder: Path, n: int = 16) -> list[Example]:
    """`n` questions on `n` clips, the four sounds in turn, two tasks and three difficulties."""
    names = list(PITCHES)
    examples = []
    for number in range(n):
        name = names[number % len(names)]
        clip = write_clip(folder / "clips" / f"{number}.wav", name, number)
        examples.append(
            Example(
                id=f"item-{number:03}",
                turns=(Turn("user", (Audio(str(clip)), Text("Which sound is this?"))),),
                answer=(name,),
                choices=tuple(names),
                task="recognition" if number % 2 else "pitch",
                category="noise" if name == "hiss" else "tone",
                difficulty=("easy", "medium", "hard")[number % 3],
            )
        )
    return examples
