"""Multiple-choice questions about a clip that a teacher knows by its caption alone.

Second step of `build/sari.py` (papers/sari.md, section 2: a text model writes the questions from captions only). The
prompt and the checks are ours. A question is refused, with the reason told to the teacher, if it gives its answer away,
speaks of the caption, or its options are not distinct texts with the answer among them. Options are put in an order of
ours, by seed: teachers like some places better than others.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from earwise.answers import mentions, normalise
from earwise.datasets.sari.chains import Part
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.types import Audio, Example, Text, Turn

KIND = "question"
SYSTEM = (
    "You write questions for people who hear an audio clip. You cannot hear it yourself: all you know of it is a "
    "description, which they do not see. Answer with one JSON object and nothing else."
)
TASK = """What can be heard: {caption}

Write {count} multiple-choice question{s} that can only be answered by listening: about sounds and what makes them, \
their order or number, music, voices, the place, or what follows from them. Each has {choices} options, one of which \
is right; the wrong ones are of the same kind and length as the right one and clearly wrong for this clip. Do not give \
the answer away in the question and do not speak of the description.
JSON: {{"questions": [{{"question": "...", "choices": ["...", ...], "answer": "the right one of the choices"}}]}}"""
_CATCH_ALL = re.compile(r"^(?:all|none|both|any) of (?:the|these|them)\b", re.IGNORECASE)


class Question(BaseModel):
    """One question with its options."""

    model_config = ConfigDict(extra="forbid")
    question: Part
    choices: list[Part]
    answer: Part

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: list[str], info: ValidationInfo) -> list[str]:
        wanted = (info.context or {}).get("n_choices")
        if len(choices) < 2 or (wanted and len(choices) != wanted):
            raise ValueError(f"has {len(choices)} options, {wanted or 'two or more'} are wanted")
        if len({normalise(choice) for choice in choices}) < len(choices):
            raise ValueError("holds two options that are the same")
        if catch_all := next((choice for choice in choices if _CATCH_ALL.match(choice)), None):
            raise ValueError(f"holds {catch_all!r}; every option must stand for itself")
        return choices

    @model_validator(mode="after")
    def _answer_fits(self) -> "Question":
        if self.answer not in self.choices:
            raise ValueError(f"answer {self.answer!r} is not one of the choices, word for word")
        given_away = [choice for choice in self.choices if mentions(self.question, choice)]
        if given_away == [self.answer]:
            raise ValueError(f"the question gives its answer {self.answer!r} away")
        return self


class Questions(BaseModel):
    """What a teacher answers."""

    model_config = ConfigDict(extra="forbid")
    questions: list[Question]

    @field_validator("questions")
    @classmethod
    def _some(cls, questions: list[Question], info: ValidationInfo) -> list[Question]:
        most = (info.context or {}).get("count")
        if not questions or (most and len(questions) > most):
            raise ValueError(f"holds {len(questions)} questions, {most or 'some'} are wanted")
        return questions


def question_request(
    name: str, path: str, caption: str, *, count: int, n_choices: int | None, drawn: Sequence[Mapping[str, Any]] = ()
) -> TeacherRequest:
    """Ask for questions about one clip.

    Args:
        name: Of the clip, for people.
        path: Of the clip as its row says: clips with equal captions get questions of their own.
        caption: All that the teacher learns.
        count: Questions.
        n_choices: Options of each; None: as many as come.
        drawn: Questions that are known already, for the template teacher: `question`, `choices`, `answer`.
    """
    text = TASK.format(caption=caption, count=count, s="" if count == 1 else "s", choices=n_choices or "some")
    sample_index = int.from_bytes(hashlib.sha256(path.encode()).digest()[:3], "big")
    return TeacherRequest(
        id=name,
        kind=KIND,
        sample_index=sample_index,
        messages=({"role": "system", "content": SYSTEM}, {"role": "user", "content": text}),
        schema=Questions,
        facts={"count": count, "n_choices": n_choices, "drawn": [dict(question) for question in drawn]},
        language="en",
        expected_tokens=70 * count,
    )


def template_questions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Hands out the questions that were drawn from labels."""
    return {"questions": facts["drawn"]}


def example(
    value: Mapping[str, Any], path: str, root: Path, about: Mapping[str, Any], *, seed: int, shuffle: bool = True
) -> Example:
    """One question of a teacher's answer as an example.

    Args:
        value: `question`, `choices`, `answer`.
        path: Of the clip, from `root`.
        root: Folder that the path starts from.
        about: What the clip's row says: category, source, licence, group, split.
        seed: Of the options' order, together with the question itself.
        shuffle: Whether the order is ours; False leaves it.
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
        category=about.get("category", ""),
        source=about.get("source", ""),
        licence=about.get("licence", ""),
        group=about.get("group", ""),
        split=about.get("split", "train"),
        root=root,
    )
