"""Requests to a teacher for ReasonAQA's synthetic parts, and the examples that its answers become.

A `TeacherTask` is a request together with the function from its validated answer to examples; `collect_examples` joins
tasks with logged answers. The teacher reads captions, gets no audio, and is told to write for listeners. Its answer has
the right option in a field of its own, and the option's position is drawn afterwards (`balance.py`): in the published
set, whose teacher chose the letter itself, (b) is right far too often.

Source: Mellow (arXiv:2503.08540) and ADIFF (arXiv:2502.04476) name the topics and the tiers of differences. Their
prompts and their language model are not published, so the prompts are ours.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from earwise.data.sources import example_builder
from earwise.data.sources.adiff import difference_example
from earwise.data.sources.entailment import hypothesis_example
from earwise.data.sources.question_templates import ENTAILMENT_ANSWERS, ENTAILMENT_CHOICES
from earwise.data.sources.row_readers import OnSkip
from earwise.datasets.reasonaqa.clips import CaptionedClip
from earwise.datasets.reasonaqa.schemas import Choices, Details, Difference, Hypotheses
from earwise.datasets.teachers.keyed_log import LogRow
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.types import Example

QUESTIONS_PER_CAPTION = 5
"""Multiple-choice questions, and open questions, for each caption (about 5 of each in the published set)."""
ReadAnswers = Callable[[Iterable[TeacherRequest]], Iterable[tuple[TeacherRequest, LogRow | None]]]
"""Reads logged answers: each request with its row, in order, or with None if it was not sent; `read_answers`."""

SYSTEM_PROMPT = (
    "You write questions for people who hear a recording and cannot read its description. The description below is "
    "all you know of it: ask nothing that it does not answer, and invent nothing. Never mention a description, a "
    "caption or a text; say 'the audio' or 'the recording'. Answer with one JSON object and nothing else."
)
TOPICS_PROMPT = (
    "Spread the questions over these topics as far as the description allows: events (what happens, in which order), "
    "objects (what makes the sounds), scenes (where it is), signal properties (loud, soft, high, low, steady, "
    "rhythmic), semantics (what it means, what it is for), emotions (what a listener may feel)."
)
MULTIPLE_CHOICE_PROMPT = (
    "Write {count} different multiple-choice questions. Each has a short correct answer and three wrong ones of the "
    "same kind, length and style that are plausible to one who has not listened. "
    '{{"questions": [{{"topic": "...", "question": "...", "correct": "...", "wrong": ["...", "...", "..."]}}]}}'
)
DETAIL_PROMPT = (
    "Write {count} different open questions and answer each in one to three sentences. "
    '{{"questions": [{{"topic": "...", "question": "...", "answer": "..."}}]}}'
)
ENTAILMENT_PROMPT = (
    "Write three hypotheses about the recording, one sentence each and alike in length and style: one that must be "
    "true, one that may be true or not, one that must be false. "
    '{"entailment": "...", "neutral": "...", "contradiction": "..."}'
)
DIFFERENCE_PROMPT = (
    "Two recordings are described below. Explain how they differ, calling them 'the first' and 'the second', three "
    "times: in few words (sounds and their sources), in one longer sentence (also the scenes and how loud, high or "
    "steady the sounds are), and in detail in 80 to 150 words (also what they mean and what a listener may feel). "
    '{"few_words": "...", "sentence": "...", "detail": "..."}'
)


@dataclass(frozen=True, slots=True)
class TeacherTask:
    """A request, and what its answer becomes."""

    request: TeacherRequest
    """The request."""
    make_examples: Callable[[Mapping[str, Any]], list[Example]]
    """Makes examples of the validated answer."""


def multiple_choice_task(
    item: CaptionedClip, other_captions: Sequence[str], count: int = QUESTIONS_PER_CAPTION
) -> TeacherTask:
    """Task of multiple-choice questions with four options.

    Args:
        item: The clip and its caption.
        other_captions: Captions of other clips, which a template teacher takes as wrong options.
        count: Number of questions to ask for.
    """

    def make_examples(value: Mapping[str, Any]) -> list[Example]:
        return [
            _question_example(item, "multiple_choice", "MCQ", number, question, question["correct"],
                              (question["correct"], *question["wrong"]))
            for number, question in enumerate(value["questions"], 1)
        ]  # fmt: skip

    prompt = f"{TOPICS_PROMPT} {MULTIPLE_CHOICE_PROMPT.format(count=count)}"
    request = _request(
        item, "reasonaqa-mcq", prompt, item.captions, Choices, 90 * count, {"others": list(other_captions)}
    )
    return TeacherTask(request, make_examples)


def detail_task(item: CaptionedClip, count: int = QUESTIONS_PER_CAPTION) -> TeacherTask:
    """Task of open questions with answers of a few sentences.

    Args:
        item: The clip and its caption.
        count: Number of questions to ask for.
    """

    def make_examples(value: Mapping[str, Any]) -> list[Example]:
        return [
            _question_example(item, "detail", "Detail", number, question, question["answer"], ())
            for number, question in enumerate(value["questions"], 1)
        ]

    prompt = f"{TOPICS_PROMPT} {DETAIL_PROMPT.format(count=count)}"
    return TeacherTask(
        _request(item, "reasonaqa-detail", prompt, item.captions, Details, 90 * count, {}), make_examples
    )


def entailment_task(item: CaptionedClip, other_captions: Sequence[str]) -> TeacherTask:
    """Task of three hypotheses: one that the audio makes true, one that it makes false, one that it leaves open.

    Args:
        item: The clip and its captions.
        other_captions: Captions of other clips, of which a template teacher makes the untrue hypotheses.
    """
    subset = {"Clotho": "CLE", "AudioCaps": "ACE"}.get(item.family, f"{item.family} entailment")

    def make_examples(value: Mapping[str, Any]) -> list[Example]:
        return [
            _without_unused_choice(
                hypothesis_example(item.info, f"{item.id}-{kind}", item.clip, value[kind], kind, item.group, subset)
            )
            for kind in ("entailment", "contradiction", "neutral")
        ]

    facts = {"others": list(other_captions)}
    request = _request(item, "reasonaqa-entailment", ENTAILMENT_PROMPT, item.captions, Hypotheses, 90, facts)
    return TeacherTask(request, make_examples)


def difference_task(first: CaptionedClip, second: CaptionedClip) -> TeacherTask:
    """Task of three explanations of how two clips differ, from few words to a long account.

    Args:
        first: The first clip and its caption.
        second: The second clip and its caption.
    """
    subset = {"Clotho": "CLD", "AudioCaps": "ACD"}.get(first.family, f"{first.family} difference")
    clips, captions = [first.clip, second.clip], [first.captions[0], second.captions[0]]
    groups = [first.group, second.group]
    key = f"{first.id}-{example_builder.short_hash(second.id)}"

    def make_examples(value: Mapping[str, Any]) -> list[Example]:
        return [
            difference_example(
                first.info, f"{key}-difference-{tier}", clips, captions, value[name], tier, subset, groups
            )
            for tier, name in enumerate(("few_words", "sentence", "detail"), 1)
        ]

    descriptions = [f"The first: {captions[0]}", f"The second: {captions[1]}"]
    request = _request(
        first, "reasonaqa-difference", DIFFERENCE_PROMPT, descriptions, Difference, 320, {"captions": captions}
    )
    return TeacherTask(request, make_examples)


def collect_examples(tasks: Iterable[TeacherTask], read_answers: ReadAnswers, on_skip: OnSkip) -> Iterator[Example]:
    """The examples of all tasks whose requests have usable answers.

    Args:
        tasks: The tasks; consumed one by one.
        read_answers: Reads the logged answers.
        on_skip: Called with one line about every task without a usable answer.
    """
    open_tasks = deque[TeacherTask]()

    def requests() -> Iterator[TeacherRequest]:
        for task in tasks:
            open_tasks.append(task)
            yield task.request

    for request, row in read_answers(requests()):
        task = open_tasks.popleft()
        if row is None:
            on_skip(f"{request.id}: {request.kind}: not asked")
        elif row["status"] != "ok":
            on_skip(f"{request.id}: {request.kind}: {row['status']} ({row.get('error', '')})")
        else:
            for example in task.make_examples(row["value"]):
                yield replace(example, meta={**example.meta, "teacher": row.get("teacher", "")})


def _request(
    item: CaptionedClip,
    kind: str,
    prompt: str,
    descriptions: Sequence[str],
    schema: type[BaseModel],
    expected_tokens: int,
    facts: Mapping[str, list[str]],
) -> TeacherRequest:
    """Request about one recording or two; `descriptions` are listed below the prompt and become a fact for
    templates."""
    listing = "\n".join(f"- {description}" for description in descriptions)
    messages = (
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": f"{prompt}\n\nThe recording:\n{listing}"},
    )
    all_facts = {"captions": list(descriptions), **facts}
    return TeacherRequest(item.id, kind, messages, schema, all_facts, language="en", expected_tokens=expected_tokens)


def _question_example(
    item: CaptionedClip,
    task: str,
    suffix: str,
    number: int,
    question: Mapping[str, Any],
    answer: str,
    choices: tuple[str, ...],
) -> Example:
    """Example of one question in a teacher's answer; `suffix` names the part of ReasonAQA behind the family."""
    return example_builder.build_example(
        item.info,
        f"{item.id}-{suffix.lower()}-{number}",
        [item.clip],
        question["question"],
        [answer],
        choices=choices,
        task=task,
        category="sound",
        group=item.group,
        meta={"subset": f"{item.family}-{suffix}", "topic": question["topic"], "caption1": item.captions[0]},
    )


def _without_unused_choice(example: Example) -> Example:
    """The hypothesis without the choice that is never right."""
    used = {ENTAILMENT_CHOICES[number] for number in ENTAILMENT_ANSWERS.values()}
    return replace(example, choices=tuple(choice for choice in example.choices if choice in used))
