"""The JSON answers that a teacher must give for ReasonAQA's synthetic parts, and their checks."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Topic = Literal["events", "objects", "scenes", "signal properties", "semantics", "emotions"]
"""Topics of questions that Mellow's abstract names."""


def plain_words(text: str) -> str:
    """The words of a text in lower case, without punctuation: two options with equal words are the same option."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _checked_text(text: str) -> str:
    """One text of an answer, with single blanks; raises if it is empty or mentions the caption."""
    line = " ".join(text.split())
    if not line:
        raise ValueError("is empty")
    if re.search(r"\b(caption|description|described|transcript|according to the text)s?\b", line, re.IGNORECASE):
        raise ValueError(f"{line[:60]!r} speaks of a text; speak of the audio")
    return line


def _require_different(texts: Sequence[str]) -> None:
    """Raise if two texts consist of the same words."""
    if len({plain_words(text) for text in texts}) < len(texts):
        raise ValueError("two of them are equal")


AnswerText = Annotated[str, Field(max_length=1500), AfterValidator(_checked_text)]
"""A text that passes `_checked_text`."""


# The JSON schemas of these models are sent to the teacher and are part of the keys of logged answers. They contain the
# names, docstrings and fields of the classes: changing one makes every logged answer be requested again.
class Choice(BaseModel):
    """One question with one right and three wrong options."""

    model_config = ConfigDict(extra="forbid")
    topic: Topic
    question: AnswerText
    correct: AnswerText
    wrong: Annotated[list[AnswerText], Field(min_length=3, max_length=3)]

    @model_validator(mode="after")
    def _differ(self) -> "Choice":
        if len({plain_words(option) for option in (self.correct, *self.wrong)}) < 1 + len(self.wrong):
            raise ValueError(f"two options are equal: {', '.join((self.correct, *self.wrong))[:80]}")
        return self


class Choices(BaseModel):
    """Multiple-choice questions about one recording."""

    model_config = ConfigDict(extra="forbid")
    questions: Annotated[list[Choice], Field(min_length=1, max_length=12)]

    @model_validator(mode="after")
    def _differ(self) -> "Choices":
        _require_different([choice.question for choice in self.questions])
        return self


class Detail(BaseModel):
    """One open question and its answer."""

    model_config = ConfigDict(extra="forbid")
    topic: Topic
    question: AnswerText
    answer: AnswerText


class Details(BaseModel):
    """Open questions about one recording."""

    model_config = ConfigDict(extra="forbid")
    questions: Annotated[list[Detail], Field(min_length=1, max_length=12)]

    @model_validator(mode="after")
    def _differ(self) -> "Details":
        _require_different([detail.question for detail in self.questions])
        return self


class Hypotheses(BaseModel):
    """What must, may and cannot be true of a recording."""

    model_config = ConfigDict(extra="forbid")
    entailment: AnswerText
    neutral: AnswerText
    contradiction: AnswerText

    @model_validator(mode="after")
    def _differ(self) -> "Hypotheses":
        _require_different([self.entailment, self.neutral, self.contradiction])
        return self


class Difference(BaseModel):
    """How two recordings differ, in three tiers."""

    model_config = ConfigDict(extra="forbid")
    few_words: AnswerText
    sentence: AnswerText
    detail: AnswerText

    @model_validator(mode="after")
    def _grow(self) -> "Difference":
        if len(self.detail) <= max(len(self.few_words), len(self.sentence)):
            raise ValueError("detail is no longer than the shorter tiers")
        return self
