"""PEDANTS, the classifier by which VoiceBench's program also decides sd-qa (its figure `panda`), where it is installed.

It is the package qa-metrics of its authors; the classifier's files are not in that package but are downloaded by it
when it is first used, so both have to be there. Nothing is downloaded here.

Source: MatthewCYM/VoiceBench@5338154, evaluator of sd-qa: reference, response and request in lower case.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FILES = ("lr_classifier.pkl", "tf-idf_vectorizer.pkl", "rule_classifier.pkl", "type_classifier.pkl")


def missing_pedants() -> str:
    """What is missing to ask PEDANTS, in a few words; empty if nothing is."""
    spec = find_spec("qa_metrics")
    if spec is None or not spec.submodule_search_locations:
        return "the package qa-metrics is not installed"
    folder = Path(spec.submodule_search_locations[0]) / "classifier"
    absent = [name for name in FILES if not (folder / name).is_file()]
    return f"qa_metrics/classifier holds no {', '.join(absent)}" if absent else ""


def pedants_verdict(reference: str, response: str, request: str) -> bool:
    """Whether PEDANTS takes a response for right; ask `missing_pedants` first.

    Args:
        reference: The accepted answer.
        response: The model's output.
        request: What was asked, as text.
    """
    return bool(_classifier().evaluate([reference.lower()], response.lower(), request.lower()))


@cache
def _classifier() -> Any:
    return import_module("qa_metrics.pedant").PEDANT()
