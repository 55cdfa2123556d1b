"""Ask one question about sounds: the prompt of a plain question, and its completion taken apart.

Above `engine.request_pipeline`. `ask` is the library's front door; `earwise ask` prints what `ask_question` returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from earwise.answers import parse
from earwise.engine.base import Engine, SamplingParams
from earwise.engine.request_pipeline import AudioRequest, RequestResult, run_requests
from earwise.prompts import prompt_turns
from earwise.types import Audio, Completion, Example, Parsed, Text, Turn, Waveform


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion and its parts."""

    completion: Completion
    parsed: Parsed

    @property
    def text(self) -> str:
        """What to show a reader: the option that the answer names, else the model's own words without tags."""
        text = self.completion.text
        return self.parsed.answer or parse(text, ()).answer or text.strip()


def question_example(question: str, choices: Sequence[str], clip_names: Sequence[str]) -> Example:
    """An Example that asks `question` about as many clips as there are names, in that order."""
    parts = tuple(Audio(name) for name in clip_names)
    return Example("ask", (Turn("user", (*parts, Text(question))),), choices=tuple(choices))


def ask_question(
    engine: Engine,
    example: Example,
    sounds: Sequence[tuple[Path | Waveform, ...]],
    *,
    style: str,
    sampling_params: SamplingParams | None = None,
) -> list[Reply]:
    """Ask one question about several sounds, each by itself.

    Args:
        engine: The engine that answers.
        example: The question, see `question_example`.
        sounds: For each prompt the sounds of the example's audio parts: files, or waveforms at the engine's sample
            rate.
        style: Wording of the question, a key of `prompts.INSTRUCTIONS`.
        sampling_params: Sampling parameters; greedy by default.
    Returns:
        One reply per entry of `sounds`.
    Raises:
        AudioError: if a file cannot be read or is longer than the engine accepts.
        EngineError: if the engine fails on a prompt.
    """
    turns = prompt_turns(example, style)
    requests = [AudioRequest(f"ask {number}", turns, clips) for number, clips in enumerate(sounds)]
    results: list[RequestResult] = []
    run_requests(
        engine, requests, sampling_params or SamplingParams(), on_batch=results.extend, batch=max(1, len(requests))
    )
    for result in results:
        if result.error is not None:
            raise result.error
    completions = [result.completions[0] for result in results]
    return [Reply(completion, parse(completion.text, example.choices)) for completion in completions]


def ask(engine: Engine, sound: str | PathLike[str] | Waveform, question: str, choices: Sequence[str] = ()) -> str:
    """Ask one question about one sound; the answer is the most probable one (greedy decoding).

    Args:
        engine: The engine that answers.
        sound: A file, or a waveform at the engine's sample rate.
        question: The question.
        choices: The options of a multiple-choice question; empty for an open one.
    Returns:
        The answer without tags; the model's own words where they contain no readable answer.
    Raises:
        AudioError: if the file cannot be read or is longer than the engine accepts.
        EngineError: if the engine fails.
    """
    clip = Path(sound) if isinstance(sound, str | PathLike) else sound
    example = question_example(question, choices, ["sound"])
    (reply,) = ask_question(engine, example, [(clip,)], style="answer" if choices else "open")
    return reply.text
