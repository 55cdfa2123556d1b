"""Which questions does a model answer without the audio? An engine gets silence in place of every clip.

Optional part of `earwise build check` (`--deaf MODEL`), and a filter: a question that the model answers correctly in
every order of its options does not require the audio. Language models behind a server and audio-language models can be
used. The options are compared by their likelihood, so that no answer has to be parsed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from earwise.audio import num_samples
from earwise.datasets.checks.text_baselines import interval, with_options
from earwise.engine.base import Engine, Prompt
from earwise.prompts import prompt_turns
from earwise.types import Example

SILENCE_S = 1.0
MAX_ORDERS = 4


def blind_accuracy(
    examples: Sequence[Example],
    engine: Engine,
    *,
    style: str = "plain",
    batch: int = 32,
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Accuracy of a model on each question, with silence in place of the audio.

    Args:
        examples: Examples; those without choices or answer are ignored.
        engine: Engine that scores the options after a prompt.
        style: Prompt style, a key of `prompts.INSTRUCTIONS`.
        batch: Number of questions scored together.
        notify: Callback that receives progress messages.
    Returns:
        Id of an example -> share of the orders of its options (cyclic shifts, at most four) in which the model chose
        the right option.
    Raises:
        EngineError: if the engine fails.
    """
    questions = with_options(examples)
    silence = np.zeros(num_samples(SILENCE_S, engine.sample_rate), np.float32)
    correct: dict[str, list[bool]] = {example.id: [] for example in questions}
    for start in range(0, len(questions), batch):
        variants = [variant for example in questions[start : start + batch] for variant in _option_orders(example)]
        prompts = [
            Prompt(prompt_turns(variant, style), (silence,) * len(variant.audio_paths), variant.id)
            for variant in variants
        ]
        scores = engine.score(prompts, [variant.choices for variant in variants])
        for variant, option_scores in zip(variants, scores, strict=True):
            correct[variant.id].append(variant.choices[int(np.argmax(option_scores))] == variant.answer[0])
        notify(f"asked {min(start + batch, len(questions))} of {len(questions)} questions without audio")
    return {identifier: sum(hits) / len(hits) for identifier, hits in correct.items()}


def blind_score(examples: Sequence[Example], accuracies: Mapping[str, float]) -> dict[str, float]:
    """Summary of `blind_accuracy` in the form of the text-only baselines.

    Args:
        examples: Examples that `accuracies` refers to.
        accuracies: Result of `blind_accuracy`.
    Returns:
        n, accuracy, chance, low and high (see `text_baselines.bias`), and `always`: the number of questions that were
        answered correctly in every order of their options.
    """
    questions = [example for example in with_options(examples) if example.id in accuracies]
    accuracy = sum(accuracies[example.id] for example in questions) / max(len(questions), 1)
    always = sum(accuracies[example.id] == 1.0 for example in questions)
    return interval(accuracy, questions) | {"always": always}


def requiring_audio(examples: Sequence[Example], accuracies: Mapping[str, float]) -> list[Example]:
    """The examples that the model did not answer correctly in every order, and those that it was not asked."""
    return [example for example in examples if accuracies.get(example.id, 0.0) < 1.0]


def _option_orders(example: Example) -> Iterator[Example]:
    """The example with its options shifted cyclically."""
    choices = example.choices
    for shift in range(min(len(choices), MAX_ORDERS)):
        yield replace(example, choices=choices[shift:] + choices[:shift])
