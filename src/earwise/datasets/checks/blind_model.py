"""Which questions does a model answer without the sound? Any engine is asked with silence in place of every clip.

Optional part of `earwise build check` (`--deaf MODEL`), and a filter: a question that is answered in every order of its
options needs no ears, and teaches none. Both text models behind a server and audio models can be asked; the options are
compared by their likelihood, so no answer has to be parsed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from earwise.audio import num_samples
from earwise.datasets.checks.text_baselines import DEVIATIONS, with_options
from earwise.engine.base import Engine, Prompt
from earwise.prompts import prompt_turns
from earwise.types import Example

SILENCE_S = 1.0
MAX_ORDERS = 4


def answered(
    examples: Sequence[Example],
    engine: Engine,
    *,
    style: str = "plain",
    batch: int = 32,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """How often each question is answered right without sound.

    Args:
        examples: Those without choices or answer are passed over.
        engine: Scores the options after a prompt that holds silence.
        style: Wording of the prompt, a key of `prompts.INSTRUCTIONS`.
        batch: Prompts that are scored together.
        progress: Told how far it is.
    Returns:
        Id -> share of the orders of its options (each turned round by one, at most four) in which it was right.
    Raises:
        EngineError: if the engine fails.
    """
    asked = with_options(examples)
    silence = np.zeros(num_samples(SILENCE_S, engine.sample_rate), np.float32)
    right: dict[str, list[bool]] = {example.id: [] for example in asked}
    for start in range(0, len(asked), batch):
        turned = [order for example in asked[start : start + batch] for order in _orders(example)]
        prompts = [
            Prompt(prompt_turns(example, style), (silence,) * len(example.audio_paths), example.id)
            for example in turned
        ]
        scores = engine.score(prompts, [example.choices for example in turned])
        for example, likely in zip(turned, scores, strict=True):
            right[example.id].append(example.choices[int(np.argmax(likely))] == example.answer[0])
        progress(f"asked {min(start + batch, len(asked))} of {len(asked)} questions without sound")
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


def listener(examples: Sequence[Example], shares: Mapping[str, float]) -> dict[str, float]:
    """Figures as of the other listeners without ears (`build/bias.py`), and `always`: how many in every order."""
    asked = [example for example in with_options(examples) if example.id in shares]
    rates = [1 / len(example.choices) for example in asked]
    count = max(len(asked), 1)
    accuracy = sum(shares[example.id] for example in asked) / count
    spread = DEVIATIONS * math.sqrt(sum(one * (1 - one) for one in rates)) / count
    always = sum(shares[example.id] == 1.0 for example in asked)
    return {
        "n": len(asked),
        "accuracy": accuracy,
        "chance": sum(rates) / count,
        "low": accuracy - spread,
        "high": accuracy + spread,
        "always": always,
    }


def needing_ears(examples: Sequence[Example], shares: Mapping[str, float]) -> list[Example]:
    """Those that the model did not answer in every order; what it was not asked stays."""
    return [example for example in examples if shares.get(example.id, 0.0) < 1.0]


def _orders(example: Example) -> Iterator[Example]:
    choices = example.choices
    for turn in range(min(len(choices), MAX_ORDERS)):
        yield replace(example, choices=choices[turn:] + choices[:turn])
