"""Answers that a template teacher gives to ReasonAQA's requests.

They say no more than the captions do: enough to try a build offline, too little to be taken for a language model's.
"""

from collections.abc import Mapping
from typing import Any

from earwise.datasets.teachers.teacher import TemplateReply


def _multiple_choice(facts: Mapping[str, Any]) -> dict[str, Any]:
    """One question, with the caption as the right option and captions of other clips as the wrong ones."""
    question = {"topic": "events", "question": "What happens in the audio?"}
    return {"questions": [question | {"correct": facts["captions"][0], "wrong": facts["others"][:3]}]}


def _details(facts: Mapping[str, Any]) -> dict[str, Any]:
    """One open question, with the caption as its answer."""
    question = {"topic": "events", "question": "What happens in the audio, and in which order?"}
    return {"questions": [question | {"answer": facts["captions"][0]}]}


def _hypotheses(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Three hypotheses of one form, so that the words alone do not tell which of them is true, false or open."""
    own_caption, second, third = (caption.rstrip(".") for caption in (facts["captions"][0], *facts["others"][:2]))
    form = "Either one hears this: {}; or it was recorded on a weekday, and one hears this: {}."
    return {
        "entailment": form.format(own_caption, second),
        "neutral": form.format(second, own_caption),
        "contradiction": form.format(second, third),
    }


def _difference(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Three tiers that quote both captions."""
    first, second = (caption.rstrip(".") for caption in facts["captions"][-2:])
    first, second = first.removeprefix("The first: "), second.removeprefix("The second: ")
    return {
        "few_words": f"The first: {first}. The second: {second}.",
        "sentence": f"In the first recording one hears this: {first}; in the second this: {second}.",
        "detail": f"The two recordings hold different sounds. In the first recording one hears this: {first}. "
        f"In the second recording one hears this instead: {second}.",
    }


TEMPLATE_REPLIES: Mapping[str, TemplateReply] = {
    "reasonaqa-mcq": _multiple_choice,
    "reasonaqa-detail": _details,
    "reasonaqa-entailment": _hypotheses,
    "reasonaqa-difference": _difference,
}
"""Kind of request -> function that fills in the answer."""
