"""Preferences from what models said: right replies against wrong ones to one question, for DPO.

Between `samples.jsonl` of an evaluation or `rollouts.jsonl` of a training run, and a manifest with `chosen` and
`rejected` (data/manifest.py). Replies are taken word for word, so that a policy learns from its own; a question whose
replies are all as good is left out and counted. Qwen2-Audio's pairs were scored by people (papers/qwen2-audio.md,
section 5); a score is a score here.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earwise.answers import normalise, parse
from earwise.errors import DataError
from earwise.files import read_log
from earwise.prompts import target_text
from earwise.types import Example

NAMES = ("samples.jsonl", "rollouts.jsonl")


@dataclass(frozen=True, slots=True)
class Reply:
    """What was said to a row's question, and what it was worth."""

    id: str
    text: str
    score: float


def read_replies(path: Path, kind: str = "lenient") -> list[Reply]:
    """The replies of an evaluation or a training run.

    Args:
        path: A file of one of `NAMES`, or a folder that holds one.
        kind: Which score of an evaluation counts: official, strict or lenient.
    Raises:
        DataError: if there is no such file, or a row of it holds no replies.
    """
    found = [path] if path.is_file() else [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        raise DataError(f"{path}: holds neither {' nor '.join(NAMES)}; give the folder of an evaluation or a training")
    replies: list[Reply] = []
    for file in found:
        for number, row in enumerate(read_log(file), 1):
            try:
                replies += _replies(row, kind)
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{file}:{number}: no replies with scores in this row ({error}); give {NAMES}"
                ) from error
    return replies


def _replies(row: Mapping[str, Any], kind: str) -> list[Reply]:
    if "completions" in row:
        if row["rewards"] is None:  # answers shown by a stage that rewards nothing
            return []
        pairs = zip(row["completions"], row["rewards"], strict=True)
        return [Reply(row["id"], text, float(reward)) for text, reward in pairs]
    if row["status"] == "error" or not row["scores"]:
        return []
    return [Reply(row["id"], row["output"], float(row["scores"][kind]))]


def preferences(
    examples: Iterable[Example],
    replies: Sequence[Reply],
    *,
    margin: float = 1.0,
    each: int = 4,
    gold: str | None = None,
    counts: Counter[str],
) -> Iterator[Example]:
    """Rows with `chosen` and `rejected`.

    Args:
        examples: The rows that were asked.
        replies: What was said to them; empty texts are passed over.
        margin: Smallest distance of scores between the two sides; above 0.
        each: Replies of a side at most, in the order in which they were first said.
        gold: Style in which the true answer is chosen where no reply is right; None: such rows are left out.
        counts: Told of what became of the rows.
    Raises:
        DataError: if `margin` is not above 0.
    """
    if margin <= 0:
        raise DataError(f"margin {margin} must be above 0: replies that are as good are no preference")
    said: dict[str, dict[str, float]] = {}
    for reply in replies:
        if reply.text.strip():
            said.setdefault(reply.id, {}).setdefault(reply.text, reply.score)
    for example in examples:
        scores = said.get(example.id)
        if not scores:
            counts["not asked"] += 1
            continue
        top = max(scores.values())
        chosen = [text for text, score in scores.items() if score == top]
        if gold is not None and example.answer and not any(_right(example, text) for text in chosen):
            chosen, top = [target_text(example, gold)], float("inf")
            counts["true answer chosen"] += 1
        rejected = [text for text, score in scores.items() if score <= top - margin and text not in chosen]
        if not rejected:
            counts["all as good"] += 1
            continue
        counts["written"] += 1
        yield replace(example, chosen=tuple(chosen[:each]), rejected=tuple(rejected[:each]))


def _right(example: Example, text: str) -> bool:
    said = parse(text, example.choices).answer
    return said is not None and normalise(said) in {normalise(answer) for answer in example.answer}
