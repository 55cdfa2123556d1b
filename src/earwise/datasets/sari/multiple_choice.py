"""Multiple-choice questions about a clip, written by a teacher that reads the clip's caption.

Second step of SARI's corpus (arXiv:2504.15900), where a text model writes the questions from captions alone. The prompt
and the checks are ours. A question fails its checks if it gives its answer away, mentions the caption, or its options
are not different texts that include the answer; the teacher is told why. The options are shuffled by seed, since
teachers prefer some positions of the right answer to others.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from earwise.answers import mentions
from earwise.answers.option_texts import normalise
from earwise.datasets.sari.chains import PlainText
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.types import Audio, Example, Text, Turn

KIND = "question"
SYSTEM_PROMPT = (
    "You write questions for people who hear an audio clip. You cannot hear it yourself: all you know of it is a "
    "description, which they do not see. Answer with one JSON object and nothing else."
)
TASK_PROMPT = """What can be heard: {caption}

Write {count} multiple-choice question{s} that can only be answered by listening: about sounds and what makes them, \
their order or number, music, voices, the place, or what follows from them. Each has {choices} options, one of which \
is right; the wrong ones are of the same kind and length as the right one and clearly wrong for this clip. Do not give \
the answer away in the question and do not speak of the description.
JSON: {{"questions": [{{"question": "...", "choices": ["...", ...], "answer": "the right one of the choices"}}]}}"""
_CATCH_ALL = re.compile(r"^(?:all|none|both|any) of (?:the|these|them)\b", re.IGNORECASE)


# The JSON schemas of these models are sent to the teacher and are part of the keys of logged answers. They contain the
# names, docstrings and fields of the classes: changing one makes every logged question be requested again.
class Question(BaseModel):
    """One question with its options."""

    model_config = ConfigDict(extra="forbid")
    question: PlainText
    choices: list[PlainText]
    answer: PlainText

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: list[str], info: ValidationInfo) -> list[str]:
        n_choices = (info.context or {}).get("n_choices")
        if len(choices) < 2 or (n_choices and len(choices) != n_choices):
            raise ValueError(f"has {len(choices)} options, {n_choices or 'two or more'} are wanted")
        if len({normalise(choice) for choice in choices}) < len(choices):
            raise ValueError("holds two options that are the same")
        if catch_all := next((choice for choice in choices if _CATCH_ALL.match(choice)), None):
            raise ValueError(f"holds {catch_all!r}; every option must stand for itself")
        return choices

    @model_validator(mode="after")
    def _answer_fits(self) -> "Question":
        if self.answer not in self.choices:
            raise ValueError(f"answer {self.answer!r} is not one of the choices, word for word")
        mentioned_choices = [choice for choice in self.choices if mentions(self.question, choice)]
        if mentioned_choices == [self.answer]:
            raise ValueError(f"the question gives its answer {self.answer!r} away")
        return self


class Questions(BaseModel):
    """What a teacher answers."""

    model_config = ConfigDict(extra="forbid")
    questions: list[Question]

    @field_validator("questions")
    @classmethod
    def _count_fits(cls, questions: list[Question], info: ValidationInfo) -> list[Question]:
        max_count = (info.context or {}).get("count")
        if not questions or (max_count and len(questions) > max_count):
            raise ValueError(f"holds {len(questions)} questions, {max_count or 'some'} are wanted")
        return questions


def question_request(
    name: str, path: str, caption: str, *, count: int, n_choices: int | None, drawn: Sequence[Mapping[str, Any]] = ()
) -> TeacherRequest:
    """Request for questions about one clip.

    Args:
        name: Name of the clip in logs and messages.
        path: Path of the clip in its row. It selects the sample, so that two clips with the same caption get questions
            of their own.
        caption: Caption of the clip, which is all that the teacher learns about it.
        count: Number of questions.
        n_choices: Number of options of a question; None accepts any number.
        drawn: Questions drawn from the clip's labels, with `question`, `choices` and `answer`, which a template teacher
            returns as its answer.
    """
    task = TASK_PROMPT.format(caption=caption, count=count, s="" if count == 1 else "s", choices=n_choices or "some")
    return TeacherRequest(
        id=name,
        kind=KIND,
        sample_index=int.from_bytes(hashlib.sha256(path.encode()).digest()[:3], "big"),
        messages=({"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": task}),
        schema=Questions,
        facts={"count": count, "n_choices": n_choices, "drawn": [dict(question) for question in drawn]},
        language="en",
        expected_tokens=70 * count,
    )


def template_questions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The template teacher's answer: the questions that were drawn from labels."""
    return {"questions": facts["drawn"]}


def question_example(
    value: Mapping[str, Any], path: str, root: Path, row: Mapping[str, Any], *, seed: int, shuffle: bool = True
) -> Example:
    """Make an example of one question in a teacher's answer.

    Args:
        value: The question, with `question`, `choices` and `answer`.
        path: Path of the clip, relative to `root`.
        root: Folder that the path starts from.
        row: The clip's row, for category, source, licence, group and split.
        seed: Seed of the order of the options, together with the question itself.
        shuffle: Whether to shuffle the options; False keeps the teacher's order.
    """
    choices = list(value["choices"])
    content = "\x1f".join((path, value["question"], *sorted(choices), value["answer"]))
    if shuffle:
        random.Random(f"{seed}:{content}").shuffle(choices)
    return Example(
        id=f"{Path(path).stem}-q-{hashlib.sha256(content.encode()).hexdigest()[:10]}",
        turns=(Turn("user", (Audio(path), Text(value["question"]))),),
        answer=(value["answer"],),
        choices=tuple(choices),
        task="question",
        category=row.get("category", ""),
        source=row.get("source", ""),
        licence=row.get("licence", ""),
        group=row.get("group", ""),
        split=row.get("split", "train"),
        root=root,
    )
