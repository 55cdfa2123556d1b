"""Ask a model about sounds from Python: `load` opens an `AudioModel`, and its questions return an `Answer`.

    answer = earwise.load("embedded").ask("dog.ogg", "Which sound is this?", choices=["a dog", "rain"])

Above `engine`, which turns prompts into completions. `earwise ask` and `earwise chat` print what these classes return.
"""

import asyncio
import base64
import html
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

from earwise.answers import parse
from earwise.audio import Channel, LongAudio, Sound, clip_duration, encode_wav, to_waveform
from earwise.chat import Chat
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.clip_reader import ClipReader
from earwise.engine.loading import open_engine
from earwise.engine.request_pipeline import AudioRequest, RequestResult, run_requests
from earwise.errors import AudioError, ConfigError, EngineError
from earwise.prompts import prompt_turns, target_text
from earwise.types import Audio, AudioClip, Example, Part, Status, Text, Turn, Waveform

if TYPE_CHECKING:  # importing torch waits until `load` has begun to read the weights
    from earwise.engine.local import LocalEngine
    from earwise.engine.remote.client import RemoteEngine

ANSWER_PARAMS = SamplingParams(max_new_tokens=128)
"""Greedy decoding, used for questions where no sampling parameters are given."""

CHAT_PARAMS = SamplingParams(max_new_tokens=256)
"""The same for conversations."""


def ignore_progress(line: str) -> None:
    """The progress callback of callers that want none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one question. `str(answer)` is the answer alone; a notebook shows it with a player."""

    question: str
    answer: str
    """The option that the model names; without options, or if it names none, the model's own words without tags."""
    reasoning: str | None
    """The reasoning before the answer; None if there is none."""
    probabilities: Mapping[str, float] | None
    """Probability of each option relative to all options, the most probable first; None if it was not asked for, or if
    the server that runs the model reports no log-probabilities."""
    text: str
    """The completion as the model wrote it, tags included."""
    choice: int | None
    """Index of the option that the model names; None without options, or if it names none or several."""
    status: Status
    """`ok`, or why no answer could be read from the completion: `unparsed` or `ambiguous`."""
    finish_reason: str
    """`stop`: the model ended its answer; `length`: the token limit did."""
    waveforms: tuple[Waveform, ...]
    """The audio as the model received it."""
    sample_rate: int
    """Sample rate of `waveforms`, in Hz."""
    start_s: float = 0.0
    """Where the audio begins in its file, in seconds; above 0 only for later chunks of a long file."""

    @property
    def duration_s(self) -> float:
        """Length of the audio, in seconds."""
        return sum(map(len, self.waveforms)) / self.sample_rate

    def __str__(self) -> str:
        return self.answer

    def _repr_html_(self) -> str:
        """The question, its audio and the answer, for notebooks."""
        players = "".join(
            '<audio controls src="data:audio/wav;base64,'
            f'{base64.b64encode(encode_wav(waveform, self.sample_rate)).decode()}"></audio>'
            for waveform in self.waveforms
        )
        parts = [("em", self.question), ("strong", self.answer), ("small", self.reasoning or "")]
        lines = "".join(f"<p><{tag}>{html.escape(text)}</{tag}></p>" for tag, text in parts if text)
        table = "".join(f"<li>{html.escape(name)}: {p:.3f}</li>" for name, p in (self.probabilities or {}).items())
        return f"<div>{players}{lines}{f'<ul>{table}</ul>' if table else ''}</div>"


class AudioModel:
    """A model that answers questions about sounds; `load` makes one.

    Args:
        engine: The engine that runs the model.
        notify: Called with lines about progress and about audio that is not used in full.
        channel: What the channels of a clip become: their `mean` (the loudest where they cancel each other), or the
            `first`.
    """

    def __init__(
        self,
        engine: "LocalEngine | RemoteEngine",
        notify: Callable[[str], None] = ignore_progress,
        channel: Channel = "mean",
    ) -> None:
        self.engine, self.channel = engine, channel
        self.name, self.revision = engine.name, engine.revision
        self._notify = notify
        self._lock = threading.Lock()  # an engine runs one batch at a time, whichever thread asks

    def ask(
        self,
        sounds: Sound | Sequence[Sound],
        question: str,
        *,
        choices: Sequence[str] = (),
        think: bool = False,
        probabilities: bool = False,
        long_audio: LongAudio = "error",
        allow_silent: bool = False,
        sampling_params: SamplingParams = ANSWER_PARAMS,
    ) -> Answer:
        """Ask one question about one clip or several.

        Args:
            sounds: A clip, or a list of clips in the order in which the question refers to them.
            question: The question.
            choices: The options of a multiple-choice question; empty for an open one.
            think: Let the model reason before it answers.
            probabilities: Also compute how probable each option is.
            long_audio: For a clip longer than the model accepts: `error` refuses it, `truncate` uses its beginning.
                `ask_chunks` asks about all of it.
            allow_silent: Accept clips without any sound, which are refused otherwise.
            sampling_params: Length limit and sampling; greedy by default.
        Raises:
            AudioError: if a clip cannot be read, is too long or silent.
            EngineError: if the model or its server fails.
        """
        if long_audio == "chunk":
            raise ConfigError("long_audio chunk gives one answer per chunk; call ask_chunks")
        waveforms = self._read(sounds, long_audio, allow_silent)
        item = _Question(question, tuple(choices), waveforms)
        return self._answer([item], think, probabilities, sampling_params)[0]

    async def aask(
        self,
        sounds: Sound | Sequence[Sound],
        question: str,
        *,
        choices: Sequence[str] = (),
        think: bool = False,
        probabilities: bool = False,
        sampling_params: SamplingParams = ANSWER_PARAMS,
    ) -> Answer:
        """Ask as `ask` does, in a thread, so that the event loop goes on. Calls wait for each other: for many questions
        at once `ask_batch` is faster."""
        return await asyncio.to_thread(
            self.ask, sounds, question, choices=choices, think=think, probabilities=probabilities,
            sampling_params=sampling_params,
        )  # fmt: skip

    def ask_batch(
        self,
        sounds: Sequence[Sound | Sequence[Sound]],
        questions: str | Sequence[str],
        *,
        choices: Sequence[str] | Sequence[Sequence[str]] = (),
        think: bool = False,
        probabilities: bool = False,
        sampling_params: SamplingParams = ANSWER_PARAMS,
    ) -> list[Answer]:
        """Ask many questions together. Questions about the same clip share its encoding and its prefill.

        Args:
            sounds: For each question its clip, or its list of clips.
            questions: One question for all, or one per entry of `sounds`.
            choices: Options for all questions, or one list of options per question.
            think: Let the model reason before it answers.
            probabilities: Also compute how probable each option is.
            sampling_params: Length limit and sampling; greedy by default.
        Returns:
            The answers in the order of `sounds`; they are those that `ask` gives one by one.
        Raises:
            ConfigError: if the lists have different lengths.
            AudioError: if a clip cannot be read, is too long or silent.
            EngineError: if the model or its server fails.
        """
        texts = [questions] * len(sounds) if isinstance(questions, str) else list(questions)
        options = _options_per_question(choices, len(sounds))
        if not len(sounds) == len(texts) == len(options):
            raise ConfigError(
                f"{len(sounds)} sounds, {len(texts)} questions and {len(options)} lists of options do not match; give "
                "one of each per question"
            )
        items = [
            _Question(text, option_texts, self._read(clips, "error", False))
            for clips, text, option_texts in zip(sounds, texts, options, strict=True)
        ]
        return self._answer(items, think, probabilities, sampling_params)

    def ask_chunks(
        self,
        sound: Sound,
        question: str,
        *,
        choices: Sequence[str] = (),
        think: bool = False,
        probabilities: bool = False,
        allow_silent: bool = False,
        sampling_params: SamplingParams = ANSWER_PARAMS,
    ) -> list[Answer]:
        """Ask the same question about each chunk of a long clip; arguments as in `ask`.

        Returns:
            One answer per chunk, in order; `start_s` and `duration_s` say where it lies in the clip.
        """
        waveforms = self._read([sound], "chunk", allow_silent)
        items, start_s = [], 0.0
        for waveform in waveforms:
            items.append(_Question(question, tuple(choices), (waveform,), start_s))
            start_s += len(waveform) / self.engine.sample_rate
        return self._answer(items, think, probabilities, sampling_params)

    def chat(self, sampling_params: SamplingParams = CHAT_PARAMS) -> Chat:
        """Begin a conversation of several turns."""
        return Chat(self.engine, lambda sound: self._read([sound], "error", False)[0], sampling_params)

    def _read(self, sounds: Sound | Sequence[Sound], long_audio: LongAudio, allow_silent: bool) -> tuple[Waveform, ...]:
        """The waveforms of clips at the engine's sample rate, one per clip, or one per chunk."""
        reader = ClipReader.for_engine(self.engine, long_audio, self.channel)
        waveforms: list[Waveform] = []
        clips = _as_list(sounds)
        if not clips:
            raise ConfigError("the list of sounds is empty, so nothing would be heard; give at least one")
        for clip in clips:
            if isinstance(clip, tuple):
                samples, sample_rate = clip
                waveforms.append(to_waveform(samples, sample_rate, self.engine.sample_rate, channel=self.channel))
                continue
            clip = clip if isinstance(clip, AudioClip) else AudioClip(Path(clip).expanduser())
            decoded = reader.read(clip)
            if decoded.is_silent and not allow_silent:
                raise AudioError(
                    f"{clip}: is silent (nothing above -80 dBFS); record it again, or allow it (--allow-silent)"
                )
            if long_audio == "truncate" and decoded.is_long:
                self._notify(
                    f"{clip}: only the first {self.engine.max_audio_s:g} of {clip_duration(clip):.1f} s are used"
                )
            waveforms += reader.split(decoded.waveform)
        return tuple(waveforms)

    def _answer(
        self, items: "Sequence[_Question]", think: bool, probabilities: bool, sampling_params: SamplingParams
    ) -> list[Answer]:
        requests = [
            AudioRequest(f"ask {number}", prompt_turns(item.example, item.style(think)), item.waveforms)
            for number, item in enumerate(items)
        ]
        results: list[RequestResult] = []
        with self._lock:
            run_requests(self.engine, requests, sampling_params, on_batch=results.extend, batch=max(1, len(requests)))
            if failed := next((result.error for result in results if result.error is not None), None):
                raise failed
            option_probabilities = self._option_probabilities(items) if probabilities else [None] * len(items)
        return [
            item.answer(result.completions[0].text, result.completions[0].finish_reason, by_option, self.engine)
            for item, result, by_option in zip(items, results, option_probabilities, strict=True)
        ]

    def _option_probabilities(self, items: "Sequence[_Question]") -> Sequence[Mapping[str, float] | None]:
        """For each question the probability of each option among the options, as the whole answer to the prompt of
        style `answer`; None for a question without options."""
        with_choices = [(n, item) for n, item in enumerate(items) if item.choices]
        if not with_choices:
            return [None] * len(items)
        prompts = [Prompt(prompt_turns(item.example, "answer"), item.waveforms, f"ask {n}") for n, item in with_choices]
        texts = [[target_text(item.example, "answer", option) for option in item.choices] for _, item in with_choices]
        try:
            logprobs = self.engine.score(prompts, texts)
        except EngineError as error:
            self._notify(f"no probabilities of the options: {error}")
            return [None] * len(items)
        by_number = {
            n: _normalised(item.choices, values) for (n, item), values in zip(with_choices, logprobs, strict=True)
        }
        return [by_number.get(n) for n in range(len(items))]


def _as_list(sounds: Sound | Sequence[Sound]) -> list[Sound]:
    """One clip or several as a list. A pair of samples and sample rate is one clip, any other tuple several."""
    is_pair = isinstance(sounds, tuple) and len(sounds) == 2 and isinstance(sounds[1], Real)
    is_single = is_pair or isinstance(sounds, str | PathLike | AudioClip)
    return [cast(Sound, sounds)] if is_single else list(cast(Sequence[Sound], sounds))


@dataclass(frozen=True, slots=True)
class _Question:
    """A question with its decoded audio."""

    question: str
    choices: tuple[str, ...]
    waveforms: tuple[Waveform, ...]
    start_s: float = 0.0

    @property
    def example(self) -> Example:
        """The question as an example without a gold answer."""
        parts: tuple[Part, ...] = tuple(Audio(f"clip {number}") for number in range(len(self.waveforms)))
        return Example("ask", (Turn("user", (*parts, Text(self.question))),), choices=self.choices)

    def style(self, think: bool) -> str:
        """The prompt style: a key of `prompts.INSTRUCTIONS`."""
        return "think" if think else "answer" if self.choices else "open"

    def answer(
        self,
        text: str,
        finish_reason: str,
        probabilities: Mapping[str, float] | None,
        engine: "LocalEngine | RemoteEngine",
    ) -> Answer:
        """The answer that a completion holds."""
        parsed = parse(text, self.choices)
        return Answer(
            question=self.question,
            answer=parsed.answer or parse(text, ()).answer or text.strip(),
            reasoning=parsed.reasoning,
            probabilities=probabilities,
            text=text,
            choice=parsed.choice,
            status=parsed.status,
            finish_reason=finish_reason,
            waveforms=self.waveforms,
            sample_rate=engine.sample_rate,
            start_s=self.start_s,
        )


def _options_per_question(
    choices: Sequence[str] | Sequence[Sequence[str]], num_questions: int
) -> list[tuple[str, ...]]:
    """The options of each question, where `choices` are those of all questions, or one list per question."""
    shared = tuple(option for option in choices if isinstance(option, str))
    if len(shared) == len(choices):
        return [shared] * num_questions
    return [tuple(options) for options in choices]


def _normalised(options: Sequence[str], logprobs: Sequence[float]) -> dict[str, float]:
    """Probabilities of options relative to each other, the most probable first."""
    largest = max(logprobs)
    weights = [math.exp(value - largest) for value in logprobs]
    pairs = zip(options, (weight / sum(weights) for weight in weights), strict=True)
    return dict(sorted(pairs, key=lambda pair: -pair[1]))


def load(
    name: str | PathLike[str] = "embedded",
    notify: Callable[[str], None] = ignore_progress,
    channel: Channel = "mean",
    compute: str = "auto",
) -> AudioModel:
    """Load a model, or connect to a server that runs one.

    Args:
        name: A family (`earwise models` lists them), a folder with a trained or released model, `module:function`, or
            the address of a server: `http://host:port/v1#NAME`.
        notify: Called with lines about progress, for example `print`.
        channel: What the channels of a clip become: their `mean` (the loudest where they cancel each other), or the
            `first`.
        compute: Precision of products with frozen weights on the CPU: `float32`, `bfloat16`, `int8`, or `auto`, which
            measures once whether bfloat16 is faster on this machine.
    Raises:
        ModelError: if there is no such model, its weights cannot be loaded, or it cannot compute as asked.
        EngineError: if the server does not answer, or does not use the audio it is sent.
    """
    return AudioModel(open_engine(str(name), notify, compute=compute), notify, channel)
