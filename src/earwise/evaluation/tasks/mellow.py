"""Mellow's evaluation (arXiv:2503.08540, section 5): a manifest asked in Mellow's wording and read as its authors do.

Options are written into the question (`which sound is it? a) rain b) wind`), everything is lower case, and an answer is
`a) rain`; the released model loses much of its accuracy on other wordings. Ask in the style `open`, which adds no
instruction. The score `mellow` reads completions as the released program does (`metrics/mellow.py`), `letter` does so
without its default letter; MMAU's scores stand beside them. The metrics also hold the figures that the released program
prints for all items together.

Data: rows of ReasonAQA as `earwise build reasonaqa` or the loader of the published files write them, or any manifest.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from earwise.evaluation.metrics import mellow as metric
from earwise.evaluation.metrics import mmau
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import manifest
from earwise.prompts import mellow, prompt_turns
from earwise.types import Example, Score

ENTAILMENT = "entailment"
"""`task` of the rows whose figures the released program counts by class."""


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a manifest and word its questions as Mellow was trained.

    Args:
        path: The JSONL file.
        audio_root: Folder that relative audio paths start from; None: the manifest's own folder.
    Returns:
        The examples, without `choices`: the options are part of the question, and their order is that of the row.
    Raises:
        DataError: see `manifest.load`.
    """
    return [reworded(example) for example in manifest.load(path, audio_root)]


def reworded(example: Example) -> Example:
    """An example in Mellow's wording; questions to be answered by yes or no get no letters.

    >>> from earwise.types import Text, Turn
    >>> example = Example("x", (Turn("user", (Text("What Is It?"),)),), answer=("Rain",), choices=("Wind", "Rain"))
    >>> reworded(example).question, reworded(example).answer
    ('what is it? a) wind b) rain', ('b) rain',))
    """
    names = mellow.lettered(example.choices)
    answers = tuple(names.get(gold, gold.lower()) for gold in example.answer)
    return replace(example, turns=prompt_turns(example, "mellow"), choices=(), answer=answers)


def score(example: Example, completion: str) -> Score:
    """MMAU's scores of an open question, and two readings of the letter (or containment, for answers without one).

    `mellow` is the released program's, which reads an output without a letter as option a; `letter` counts it as wrong.
    """
    scored = mmau.score(example, completion)
    matches = [
        metric.letter_matches(completion, gold) if metric.has_letter(gold) else metric.contains_answer(completion, gold)
        for gold in example.answer
    ]
    needs_letter = any(map(metric.has_letter, example.answer))
    is_readable = metric.has_letter(completion) if needs_letter else bool(completion.strip())
    values = {"letter": float(any(matches) and is_readable), "mellow": float(any(matches)), **scored.values}
    if needs_letter and not is_readable:
        explanation = f"no letter before ')', which the released program reads as option a: {completion[:80]!r}"
        return Score(values, "unparsed", None, explanation)
    return replace(scored, values=values)


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores, and the released program's figures, as shares in [0, 1].

    Args:
        rows: Labelled rows.
    Returns:
        Beside the scores: `unreadable` (share of lettered items whose completion has no letter); for entailment rows
        `entailment_precision`, `entailment_recall`, `entailment_f1` (macro) and the accuracy of each class; for rows
        with MMAU's tasks and difficulties `mmau`, which has no default letter.
    """
    metrics = mean_scores(rows)
    lettered = [row for row in rows if metric.has_letter(row["gold"][0])]
    if not lettered:
        return metrics
    figures = metric.multiple_choice(*_texts(lettered))
    metrics["unreadable"] = {"accuracy": figures["unreadable"] / 100, "n": len(lettered)}
    entailment = [row for row in lettered if row["task"] == ENTAILMENT]
    if entailment:
        classes = metric.entailment(*_texts(entailment))
        for name in ("Precision", "Recall", "F1", *(f"ACC_{name}" for name in metric.CLASSES.values())):
            value = classes[name]
            if value is not None:
                metrics[f"entailment_{name.lower()}"] = {"accuracy": value, "n": len(entailment)}
    if all(row["task"] in metric.TASKS and row["difficulty"] in metric.DIFFICULTIES for row in lettered):
        total = metric.mmau(*_texts(lettered), lettered)["total"]
        metrics["mmau"] = {"accuracy": total / 100, "n": len(lettered)}
    return metrics


def _texts(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Completions and gold answers of rows."""
    return [row["output"] for row in rows], [row["gold"][0] for row in rows]


TASK = Task(
    name="mellow",
    load=load,
    score=score,
    scorer=f"mellow-c8204d8/2, {mmau.SCORER}",
    score_notes={
        "letter": "the letter before ')', or containment for answers without one; no letter is wrong",
        "mellow": "the released program's reading, in which no letter counts as option a",
    }
    | mmau.SCORE_NOTES,
    headline="letter",
    aggregate=aggregate,
    default_style="open",
    source="arXiv:2503.08540, section 5, soham97/mellow @c8204d8",
    licence="stated by each row",
)
