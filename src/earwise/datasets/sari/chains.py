"""Chains of reasoning that end at a known answer: what a teacher is asked for, what it may say, how it is rendered.

For `build/sari.py` (arXiv 2504.15900; papers/sari.md, sections 2 and 3): structured chains have four parts (planning,
caption, reasoning, summary), unstructured ones none. The writer reads a caption and never hears the clip. Prompts and
checks are ours; the paper's are not published. A chain is refused, with the reason told to the teacher, if a part is
empty or holds tags, if it speaks of the description it was written from, or if its end does not state the answer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, model_validator

from earwise.answers import SECTIONS, mentions
from earwise.datasets.teachers.teacher import TeacherRequest
from earwise.errors import ConfigError
from earwise.types import Example

CHAINS = ("structured", "unstructured")
KIND = "chain"

SYSTEM = (
    "You write training data for a model that listens. You cannot hear the clip yourself: all you know of it is a "
    "description. Write as somebody who hears the clip, do not speak of the description, and claim nothing that it "
    "does not support. Answer with one JSON object and nothing else."
)
TASK = """What can be heard: {caption}
Question: {question}
{options}Right answer: {answer}

"""
WANTED: Mapping[str, str] = {
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


def _part(text: str) -> str:
    """One part of a chain, tidied; refused if it is empty, tagged, or betrays what it was written from."""
    text = " ".join(text.split())
    if not text:
        raise ValueError("is empty")
    if tag := _TAG.search(text):
        raise ValueError(f"holds the tag {tag[0]}; write plain text")
    if source := _SOURCE.search(text):
        raise ValueError(f"speaks of {source[0]!r}; write as somebody who hears the clip")
    return text


Part = Annotated[str, AfterValidator(_part)]


def _states(text: str, info: ValidationInfo, where: str) -> None:
    answer = (info.context or {}).get("answer")
    if answer and not mentions(text, answer):
        raise ValueError(f"{where} does not state the right answer {answer!r} in its own words")


class Structured(BaseModel):
    """Four parts; the summary states the answer."""

    model_config = ConfigDict(extra="forbid")
    planning: Part
    caption: Part
    reasoning: Part
    summary: Part

    @model_validator(mode="after")
    def _concludes(self, info: ValidationInfo) -> "Structured":
        _states(self.summary, info, "summary")
        return self


class Unstructured(BaseModel):
    """Free thought that comes to the answer."""

    model_config = ConfigDict(extra="forbid")
    thought: Part

    @model_validator(mode="after")
    def _concludes(self, info: ValidationInfo) -> "Unstructured":
        _states(self.thought, info, "thought")
        return self


SCHEMAS: Mapping[str, type[BaseModel]] = {"structured": Structured, "unstructured": Unstructured}


def check(styles: Sequence[str]) -> None:
    """Refuse an unknown kind of chain.

    Raises:
        ConfigError: naming it.
    """
    for style in styles:
        if style not in CHAINS:
            raise ConfigError(f"chain {style!r} is none of {', '.join(CHAINS)}")


def chain_request(example: Example, caption: str, style: str) -> TeacherRequest:
    """Ask for one chain about one example whose clip is known by a caption."""
    answer = example.answer[0]
    options = "".join(f"- {choice}\n" for choice in example.choices)
    text = TASK.format(
        caption=caption, question=example.question, options=f"Options:\n{options}" if options else "", answer=answer
    )
    facts = {
        "style": style, "caption": caption, "question": example.question, "choices": list(example.choices),
        "answer": answer,
    }  # fmt: skip
    return TeacherRequest(
        id=f"{example.id}:{style}",
        kind=KIND,
        messages=(
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": text + WANTED[style].format(answer=answer)},
        ),
        schema=SCHEMAS[style],
        facts=facts,
        language=example.language,
        expected_tokens=220 if style == "structured" else 130,
    )


def rendered(value: Mapping[str, Any], style: str) -> str:
    """The `reasoning` of a row: the four sections in their tags, or the thought as it is.

    >>> rendered({"planning": "p", "caption": "c", "reasoning": "r", "summary": "s"}, "structured")
    '<planning>p</planning><caption>c</caption><reasoning>r</reasoning><summary>s</summary>'
    """
    if style == "unstructured":
        return str(value["thought"])
    return "".join(f"<{name}>{value[name]}</{name}>" for name in SECTIONS)


def template_chain(facts: Mapping[str, Any]) -> dict[str, str]:
    """A chain filled in from facts alone: form without thought, for tests and the offline demo."""
    answer = facts["answer"]
    others = [f'"{choice}"' for choice in facts["choices"] if choice != answer]
    listed = others[0] if len(others) == 1 else f"{', '.join(others[:-1])} or {others[-1]}" if others else ""
    against = f" It does not fit {listed}." if listed else ""
    if facts["style"] == "unstructured":
        thought = f'Let me listen. {facts["caption"]} That fits "{answer}".{against} So it is "{answer}".'
        return {"thought": thought}
    return {
        "planning": f'I am asked: "{facts["question"]}" I listen for what tells the answers apart.',
        "caption": facts["caption"],
        "reasoning": f'What I hear fits "{answer}".{against}',
        "summary": f'The answer is "{answer}".',
    }
