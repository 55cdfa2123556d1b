"""The clips and questions that the checks of a model use, local or on a server."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from earwise.audio import decode
from earwise.data.manifest_path import STARTER
from earwise.doctor.check import Check
from earwise.engine.base import Engine, Prompt
from earwise.types import Audio, Completion, Text, Turn, Waveform

QUESTION = "What do you hear?"
OPTIONS = ("a dog", "a dog barking", "music", "a person speaking", "<answer>music</answer>")
"""Continuations whose log-likelihoods are compared."""
NUM_CLIPS = 8
MAX_CLIP_S = 3.0
MIN_TOKENS_PER_S = 1.0
"""Slower generation gives a warning."""

ModelCheck = Callable[[Engine, list[Waveform]], Check | None]
"""A check of a model with the clips of `example_clips`; None if it does not apply."""


def example_clips(engine: Engine) -> list[Waveform]:
    """Eight clips of different lengths at the engine's sample rate: bundled ones, or tones if there are none."""
    files = sorted(STARTER.rglob("*.ogg"))
    rate, max_s = engine.sample_rate, min(MAX_CLIP_S, engine.max_audio_s)
    if len(files) >= NUM_CLIPS:
        selected = [files[number * len(files) // NUM_CLIPS] for number in range(NUM_CLIPS)]
        return [decode(path, rate, long_audio="truncate", max_s=max_s) for path in selected]
    times = [np.arange(int(rate * max_s * (number + 2) / 9)) / rate for number in range(NUM_CLIPS)]
    return [
        0.3 * np.sin(2 * np.pi * (200 + 150 * number) * time).astype(np.float32) for number, time in enumerate(times)
    ]


def questions(clips: Sequence[Waveform]) -> list[Prompt]:
    """The same question about every clip."""
    turns = (Turn("user", (Audio("clip"), Text(QUESTION))),)
    return [Prompt(turns, (waveform,), f"doctor {number}") for number, waveform in enumerate(clips)]


def silenced(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts with silence of the same length in place of the clips."""
    return [replace(prompt, waveforms=tuple(waveform * 0 for waveform in prompt.waveforms)) for prompt in prompts]


def count_different_texts(a: Sequence[Sequence[Completion]], b: Sequence[Sequence[Completion]]) -> int:
    """Number of completions whose text differs between two calls with the same prompts."""
    texts_a, texts_b = ([completion.text for samples in side for completion in samples] for side in (a, b))
    return sum(text_a != text_b for text_a, text_b in zip(texts_a, texts_b, strict=True))


def max_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Largest absolute difference between two nested lists of log-likelihoods, in nats."""
    return max(abs(x - y) for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True))
