"""An engine with scripted answers and a small task of real WAV files, for the tests of evaluation and reports.

`answer_by_pitch` uses the audio: it recognises a tone by its zero crossings. `answer_first_option` ignores it.
"""

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from earwise.engine.base import Prompt, SamplingParams
from earwise.types import Audio, Completion, Example, Text, Turn, Waveform

RATE = 8000
PITCHES = {"low tone": 200.0, "middle tone": 700.0, "high tone": 2500.0, "hiss": 0.0}


class ScriptedEngine:
    """Completes every prompt with `respond(prompt)`; `batches` holds the size of every batch."""

    def __init__(self, respond: Callable[[Prompt], str], name: str = "scripted", max_audio_s: float = 30.0) -> None:
        self.respond, self.name, self.revision = respond, name, "1"
        self.sample_rate, self.max_audio_s = RATE, max_audio_s
        self.batches: list[int] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        self.batches.append(len(prompts))
        return [[Completion(self.respond(prompt))] * n for prompt in prompts]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[0.0 for _ in texts] for texts in continuations]


def prompt_options(prompt: Prompt) -> list[str]:
    """The answer options that a prompt lists."""
    text = "\n".join(part.text for part in prompt.turns[-1].parts if isinstance(part, Text))
    match = re.search(r"options: (\[.*?\])\.", text)
    return list(ast.literal_eval(match[1])) if match else []


def pitch_name(waveform: Waveform) -> str | None:
    """Which of `PITCHES` a waveform is; None for silence."""
    if np.abs(waveform).max() < 1e-3:
        return None
    crossings = float((np.diff(np.signbit(waveform).astype(np.int8)) != 0).mean()) * RATE / 2
    return min(PITCHES, key=lambda name: abs((PITCHES[name] or 2000.0) - crossings))


def answer_by_pitch(prompt: Prompt) -> str:
    """Answer with the name of the tone; with the first option if the clip is silent."""
    return f"<answer>{pitch_name(prompt.waveforms[0]) or prompt_options(prompt)[0]}</answer>"


def answer_first_option(prompt: Prompt) -> str:
    """Always answer with the first option."""
    return f"<answer>{prompt_options(prompt)[0]}</answer>"


def write_clip(path: Path, name: str, number: int, seconds: float = 0.25) -> Path:
    """A clip of one of `PITCHES`; `number` varies its loudness and phase."""
    rng = np.random.default_rng(number)
    time = np.arange(int(seconds * RATE)) / RATE
    waveform = np.sin(2 * np.pi * PITCHES[name] * time + number) if PITCHES[name] else rng.uniform(-1, 1, time.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (0.2 + 0.02 * (number % 20)) * waveform, RATE)
    return path


def tone_task(folder: Path, n: int = 16) -> list[Example]:
    """`n` questions about `n` clips: the four pitches in turn, two tasks and three difficulties."""
    names = list(PITCHES)
    examples = []
    for number in range(n):
        name = names[number % len(names)]
        clip = folder / "clips" / f"{number}.wav"
        if not clip.exists():  # another process may be reading it
            write_clip(clip, name, number)
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
