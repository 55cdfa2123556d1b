"""Chains of reasoning that end at a known answer: the request to a teacher, the checks of its answer, the final text.

Last step of SARI's corpus (arXiv:2504.15900). A structured chain has four parts (planning, caption, reasoning,
summary), an unstructured one is free text. The teacher reads a caption and gets no audio. Prompts and checks are ours,
since the paper's are not published. A chain fails its checks if a part is empty or contains tags, mentions the
description that it was written from, or does not end with the answer; the teacher is told why.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, model_validator

from earwise.answers import SECTIONS, mentions
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.errors import ConfigError
from earwise.types import Example

CHAIN_STYLES = ("structured", "unstructured")
KIND = "chain"

SYSTEM_PROMPT = (
    "You write training data for a model that listens. You cannot hear the clip yourself: all you know of it is a "
    "description. Write as somebody who hears the clip, do not speak of the description, and claim nothing that it "
    "does not support. Answer with one JSON object and nothing else."
)
TASK_PROMPT = """What can be heard: {caption}
Question: {question}
{options}Right answer: {answer}

"""
STYLE_PROMPTS: Mapping[str, str] = {
    "structured": "Write the reasoning that leads to the right answer, in four parts, as JSON with these keys:\n"
    "planning: what the question asks for and what to listen for, one or two sentences;\n"
    "caption: what can be heard, as far as it matters here, one or two sentences;\n"
    "reasoning: step by step from what is heard to the answer, weighing the other options;\n"
    "summary: one sentence that states the right answer in its own words: {answer}",
    "unstructured": "Think aloud as a person would who listens, weighs what is heard and comes to the right answer, in "
    "three to six sentences without headings. State the right answer in its own words at the end: {answer}\n"
    "JSON key: thought",
}
_TAG = re.compile(r"</?[A-Za-z_]+>")
_SOURCE = re.compile(
    r"\b(?:the|this|given|provided|your)\s+(?:(?:given|provided|audio|text)\s+)?"
    r"(?:description|caption|metadata|annotation|transcript)s?\b|\bdescribed as\b",
    re.IGNORECASE,
)


def _checked_text(text: str) -> str:
    """One text of an answer, with single blanks; raises if it is empty, has tags, or mentions the description."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("is empty")
    if tag := _TAG.search(text):
        raise ValueError(f"holds the tag {tag[0]}; write plain text")
    if source := _SOURCE.search(text):
        raise ValueError(f"speaks of {source[0]!r}; write as somebody who hears the clip")
    return text


PlainText = Annotated[str, AfterValidator(_checked_text)]
"""A text that passes `_checked_text`."""


def _require_answer(text: str, info: ValidationInfo, part: str) -> None:
    """Raise if a part of a chain does not mention the answer, which the validation context holds."""
    answer = (info.context or {}).get("answer")
    if answer and not mentions(text, answer):
        raise ValueError(f"{part} does not state the right answer {answer!r} in its own words")


# The JSON schemas of these models are sent to the teacher and are part of the keys of logged answers. They contain the
# names, docstrings and fields of the classes: changing one makes every logged chain be requested again.
class Structured(BaseModel):
    """Four parts; the summary states the answer."""

    model_config = ConfigDict(extra="forbid")
    planning: PlainText
    caption: PlainText
    reasoning: PlainText
    summary: PlainText

    @model_validator(mode="after")
    def _concludes(self, info: ValidationInfo) -> "Structured":
        _require_answer(self.summary, info, "summary")
        return self


class Unstructured(BaseModel):
    """Free thought that comes to the answer."""

    model_config = ConfigDict(extra="forbid")
    thought: PlainText

    @model_validator(mode="after")
    def _concludes(self, info: ValidationInfo) -> "Unstructured":
        _require_answer(self.thought, info, "thought")
        return self


SCHEMAS: Mapping[str, type[BaseModel]] = {"structured": Structured, "unstructured": Unstructured}


def check_chain_styles(styles: Sequence[str]) -> None:
    """Check that styles of chains exist.

    Raises:
        ConfigError: naming the first one that does not.
    """
    for style in styles:
        if style not in CHAIN_STYLES:
            raise ConfigError(f"chain {style!r} is none of {', '.join(CHAIN_STYLES)}")


def chain_request(example: Example, caption: str, style: str) -> TeacherRequest:
    """Request for one chain.

    Args:
        example: The question and its answer.
        caption: Caption of the example's clip.
        style: Style of the chain, out of `CHAIN_STYLES`.
    """
    answer = example.answer[0]
    choices = "".join(f"- {choice}\n" for choice in example.choices)
    task = TASK_PROMPT.format(
        caption=caption, question=example.question, options=f"Options:\n{choices}" if choices else "", answer=answer
    )
    facts = {
        "style": style, "caption": caption, "question": example.question, "choices": list(example.choices),
        "answer": answer,
    }  # fmt: skip
    return TeacherRequest(
        id=f"{example.id}:{style}",
        kind=KIND,
        messages=(
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": task + STYLE_PROMPTS[style].format(answer=answer)},
        ),
        schema=SCHEMAS[style],
        facts=facts,
        language=example.language,
        expected_tokens=220 if style == "structured" else 130,
    )


def render_chain(value: Mapping[str, Any], style: str) -> str:
    """The `reasoning` of an example, from a validated answer: four sections in their tags, or the free text.

    Example:
        >>> render_chain({"planning": "p", "caption": "c", "reasoning": "r", "summary": "s"}, "structured")
        '<planning>p</planning><caption>c</caption><reasoning>r</reasoning><summary>s</summary>'
    """
    if style == "unstructured":
        return str(value["thought"])
    return "".join(f"<{name}>{value[name]}</{name}>" for name in SECTIONS)


def template_chain(facts: Mapping[str, Any]) -> dict[str, str]:
    """A chain filled in from the facts of a request: the form without the thought, for tests and offline trials."""
    answer = facts["answer"]
    quoted = [f'"{choice}"' for choice in facts["choices"] if choice != answer]
    wrong_options = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}" if quoted else ""
    contrast = f" It does not fit {wrong_options}." if wrong_options else ""
    if facts["style"] == "unstructured":
        thought = f'Let me listen. {facts["caption"]} That fits "{answer}".{contrast} So it is "{answer}".'
        return {"thought": thought}
    return {
        "planning": f'I am asked: "{facts["question"]}" I listen for what tells the answers apart.',
        "caption": facts["caption"],
        "reasoning": f'What I hear fits "{answer}".{contrast}',
        "summary": f'The answer is "{answer}".',
    }
