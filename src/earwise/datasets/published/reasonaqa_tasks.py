"""What a teacher is asked to make ReasonAQA's synthetic part, what it must answer, and what becomes of the answer.

Between captions (`build/reasonaqa.py`) and the runner (`build/llm.py`). Pure. A `Task` is a request and the function
from its validated answer to Examples; `learn` joins them with any `ask`. The teacher reads captions and never hears the
audio, and is told to write as one who listens. The right option stands in a field of its own and is placed by seed
afterwards: the published set, whose teacher chose the letter, has its key skewed to (b).

Source: Mellow (arXiv:2503.08540) and ADIFF (arXiv:2502.04476) name the topics and tiers; their prompts and their
language model are not published, so the prompts are ours.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from earwise.data.sources import example_builder
from earwise.data.sources.adiff import difference_example
from earwise.data.sources.entailment import hypothesis_example
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import ENTAILMENT_ANSWERS, ENTAILMENT_CHOICES
from earwise.data.sources.row_readers import OnSkip
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.types import Example

Topic = Literal["events", "objects", "scenes", "signal properties", "semantics", "emotions"]
PER_CAPTION = 5  # published: about 5 multiple-choice and 5 detailed questions a caption
Asker = Callable[[Iterable[TeacherRequest]], Iterable[tuple[TeacherRequest, Mapping[str, Any] | None]]]
"""Requests -> each with its row of the log (`status`, `value`), in their order; None: not asked. As `llm.answers`."""

_RULES = (
    "You write questions for people who hear a recording and cannot read its description. The description below is "
    "all you know of it: ask nothing that it does not answer, and invent nothing. Never mention a description, a "
    "caption or a text; say 'the audio' or 'the recording'. Answer with one JSON object and nothing else."
)
_TOPICS = (
    "Spread the questions over these topics as far as the description allows: events (what happens, in which order), "
    "objects (what makes the sounds), scenes (where it is), signal properties (loud, soft, high, low, steady, "
    "rhythmic), semantics (what it means, what it is for), emotions (what a listener may feel)."
)
_MULTIPLE_CHOICE = (
    "Write {count} different multiple-choice questions. Each has a short correct answer and three wrong ones of the "
    "same kind, length and style that are plausible to one who has not listened. "
    '{{"questions": [{{"topic": "...", "question": "...", "correct": "...", "wrong": ["...", "...", "..."]}}]}}'
)
_DETAIL = (
    "Write {count} different open questions and answer each in one to three sentences. "
    '{{"questions": [{{"topic": "...", "question": "...", "answer": "..."}}]}}'
)
_ENTAILMENT = (
    "Write three hypotheses about the recording, one sentence each and alike in length and style: one that must be "
    "true, one that may be true or not, one that must be false. "
    '{"entailment": "...", "neutral": "...", "contradiction": "..."}'
)
_DIFFERENCE = (
    "Two recordings are described below. Explain how they differ, calling them 'the first' and 'the second', three "
    "times: in few words (sounds and their sources), in one longer sentence (also the scenes and how loud, high or "
    "steady the sounds are), and in detail in 80 to 150 words (also what they mean and what a listener may feel). "
    '{"few_words": "...", "sentence": "...", "detail": "..."}'
)


def _said(words: str) -> str:
    line = " ".join(words.split())
    if not line:
        raise ValueError("is empty")
    if re.search(r"\b(caption|description|described|transcript|according to the text)s?\b", line, re.IGNORECASE):
        raise ValueError(f"{line[:60]!r} speaks of a text; speak of the audio")
    return line


Words = Annotated[str, Field(max_length=1500), AfterValidator(_said)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Choice(_Answer):
    """One question with one right and three wrong options."""

    topic: Topic
    question: Words
    correct: Words
    wrong: Annotated[list[Words], Field(min_length=3, max_length=3)]

    @model_validator(mode="after")
    def _differ(self) -> "Choice":
        if len({plain(option) for option in (self.correct, *self.wrong)}) < 1 + len(self.wrong):
            raise ValueError(f"two options are equal: {', '.join((self.correct, *self.wrong))[:80]}")
        return self


class Choices(_Answer):
    """Multiple-choice questions about one recording."""

    questions: Annotated[list[Choice], Field(min_length=1, max_length=12)]

    @model_validator(mode="after")
    def _differ(self) -> "Choices":
        _all_differ([each.question for each in self.questions])
        return self


class Detail(_Answer):
    """One open question and its answer."""

    topic: Topic
    question: Words
    answer: Words


class Details(_Answer):
    """Open questions about one recording."""

    questions: Annotated[list[Detail], Field(min_length=1, max_length=12)]

    @model_validator(mode="after")
    def _differ(self) -> "Details":
        _all_differ([each.question for each in self.questions])
        return self


class Hypotheses(_Answer):
    """What must, may and cannot be true of a recording."""

    entailment: Words
    neutral: Words
    contradiction: Words

    @model_validator(mode="after")
    def _differ(self) -> "Hypotheses":
        _all_differ([self.entailment, self.neutral, self.contradiction])
        return self


class Difference(_Answer):
    """How two recordings differ, in three tiers."""

    few_words: Words
    sentence: Words
    detail: Words

    @model_validator(mode="after")
    def _grow(self) -> "Difference":
        if len(self.detail) <= max(len(self.few_words), len(self.sentence)):
            raise ValueError("detail is no longer than the shorter tiers")
        return self


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption (for entailment: all captions) of a clip."""

    id: str
    clip: str
    """Path, relative to the root of `origin`."""
    captions: tuple[str, ...]
    family: str
    """Clotho, AudioCaps, or the source's own name."""
    group: str
    origin: SourceInfo


@dataclass(frozen=True, slots=True)
class Task:
    """A request, and what becomes of its validated answer."""

    request: TeacherRequest
    make: Callable[[Mapping[str, Any]], list[Example]]


def multiple_choice(item: Captioned, others: Sequence[str], count: int = PER_CAPTION) -> Task:
    """About `count` questions with four options; `others` are captions of other clips (for the template teacher)."""

    def make(value: Mapping[str, Any]) -> list[Example]:
        return [
            _example(item, "multiple_choice", "MCQ", number, each, each["correct"], (each["correct"], *each["wrong"]))
            for number, each in enumerate(value["questions"], 1)
        ]

    prompt = f"{_TOPICS} {_MULTIPLE_CHOICE.format(count=count)}"
    return _task(item, "reasonaqa-mcq", prompt, item.captions, Choices, 90 * count, make, others=list(others))


def detail(item: Captioned, count: int = PER_CAPTION) -> Task:
    """About `count` open questions."""

    def make(value: Mapping[str, Any]) -> list[Example]:
        return [
            _example(item, "detail", "Detail", number, each, each["answer"], ())
            for number, each in enumerate(value["questions"], 1)
        ]

    prompt = f"{_TOPICS} {_DETAIL.format(count=count)}"
    return _task(item, "reasonaqa-detail", prompt, item.captions, Details, 90 * count, make)


def entailment(item: Captioned, others: Sequence[str]) -> Task:
    """Three hypotheses."""
    subset = {"Clotho": "CLE", "AudioCaps": "ACE"}.get(item.family, f"{item.family} entailment")

    def make(value: Mapping[str, Any]) -> list[Example]:
        return [
            _without_unused(
                hypothesis_example(item.origin, f"{item.id}-{kind}", item.clip, value[kind], kind, item.group, subset)
            )
            for kind in ("entailment", "contradiction", "neutral")
        ]

    return _task(item, "reasonaqa-entailment", _ENTAILMENT, item.captions, Hypotheses, 90, make, others=list(others))


def difference(first: Captioned, second: Captioned) -> Task:
    """Three explanations of what sets two clips apart."""
    subset = {"Clotho": "CLD", "AudioCaps": "ACD"}.get(first.family, f"{first.family} difference")
    clips, captions = [first.clip, second.clip], [first.captions[0], second.captions[0]]
    key = f"{first.id}-{example_builder.short_hash(second.id)}"

    def make(value: Mapping[str, Any]) -> list[Example]:
        return [
            difference_example(first.origin, f"{key}-difference-{tier}", clips, captions, value[name], tier, subset)
            for tier, name in enumerate(("few_words", "sentence", "detail"), 1)
        ]

    described = [f"The first: {captions[0]}", f"The second: {captions[1]}"]
    return _task(first, "reasonaqa-difference", _DIFFERENCE, described, Difference, 320, make, captions=captions)


def learn(tasks: Iterable[Task], ask: Asker, bad: OnSkip) -> Iterator[Example]:
    """The examples of every task whose request was answered; the others are handed to `bad` with the reason."""
    waiting = deque[Task]()

    def requests() -> Iterator[TeacherRequest]:
        for task in tasks:
            waiting.append(task)
            yield task.request

    for request, row in ask(requests()):
        task = waiting.popleft()
        if row is None:
            bad(f"{request.id}: {request.kind}: not asked")
        elif row["status"] != "ok":
            bad(f"{request.id}: {request.kind}: {row['status']} ({row.get('error', '')})")
        else:
            for example in task.make(row["value"]):
                yield replace(example, meta={**example.meta, "teacher": row.get("teacher", "")})


def _task(
    item: Captioned,
    kind: str,
    prompt: str,
    described: Sequence[str],
    schema: type[BaseModel],
    expected_tokens: int,
    make: Callable[[Mapping[str, Any]], list[Example]],
    **facts: list[str],
) -> Task:
    listed = "\n".join(f"- {caption}" for caption in described)
    messages = (
        {"role": "system", "content": _RULES},
        {"role": "user", "content": f"{prompt}\n\nThe recording:\n{listed}"},
    )
    facts = {"captions": list(described)} | facts
    request = TeacherRequest(item.id, kind, messages, schema, facts, language="en", expected_tokens=expected_tokens)
    return Task(request, make)


def _example(
    item: Captioned,
    task: str,
    suffix: str,
    number: int,
    asked: Mapping[str, Any],
    answer: str,
    choices: tuple[str, ...],
) -> Example:
    return example_builder.build_example(
        item.origin,
        f"{item.id}-{suffix.lower()}-{number}",
        [item.clip],
        asked["question"],
        [answer],
        choices=choices,
        task=task,
        category="sound",
        group=item.group,
        meta={"subset": f"{item.family}-{suffix}", "topic": asked["topic"], "caption1": item.captions[0]},
    )


def _without_unused(example: Example) -> Example:
    """The hypothesis without the option that is never right."""
    used = {ENTAILMENT_CHOICES[number] for number in ENTAILMENT_ANSWERS.values()}
    return replace(example, choices=tuple(choice for choice in example.choices if choice in used))


def plain(words: str) -> str:
    """The words alone, in small letters: what counts when two options are compared."""
    return " ".join(re.findall(r"\w+", words.lower()))


def _all_differ(texts: Sequence[str]) -> None:
    if len({plain(text) for text in texts}) < len(texts):
        raise ValueError("two of them are equal")


# What the template teacher fills in: so little that nobody takes it for a language model, and enough to run offline.
def _filled_choices(facts: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"topic": "events", "question": "What happens in the audio?"}
    return {"questions": [asked | {"correct": facts["captions"][0], "wrong": facts["others"][:3]}]}


def _filled_details(facts: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"topic": "events", "question": "What happens in the audio, and in which order?"}
    return {"questions": [asked | {"answer": facts["captions"][0]}]}


def _filled_hypotheses(facts: Mapping[str, Any]) -> dict[str, Any]:
    """One form for all three, true, open or false by what is heard: the words alone must not tell which."""
    heard, other, third = (said.rstrip(".") for said in (facts["captions"][0], *facts["others"][:2]))
    form = "Either one hears this: {}; or it was recorded on a weekday, and one hears this: {}."
    return {
        "entailment": form.format(heard, other),
        "neutral": form.format(other, heard),
        "contradiction": form.format(other, third),
    }


def _filled_difference(facts: Mapping[str, Any]) -> dict[str, Any]:
    first, second = (caption.rstrip(".") for caption in facts["captions"][-2:])
    first, second = first.removeprefix("The first: "), second.removeprefix("The second: ")
    return {
        "few_words": f"The first: {first}. The second: {second}.",
        "sentence": f"In the first recording one hears this: {first}; in the second this: {second}.",
        "detail": f"The two recordings hold different sounds. In the first recording one hears this: {first}. "
        f"In the second recording one hears this instead: {second}.",
    }


TEMPLATE_REPLIES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "reasonaqa-mcq": _filled_choices,
    "reasonaqa-detail": _filled_details,
    "reasonaqa-entailment": _filled_hypotheses,
    "reasonaqa-difference": _filled_difference,
}
