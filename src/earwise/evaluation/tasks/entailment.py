"""Audio entailment (arXiv:2407.18062): is a hypothesis about a clip true, false, or only plausible? (CLE, ACE)

Data: the published CSV of AudioEntailment, read by `data/sources/entailment.py` into three items a row. The question,
the options and their order are those of Mellow's prompt; its program maps the letters to other classes than the texts
say, so classes are read from the option texts here, and Mellow's own figures are in the task `mellow`. An output that
names no option is wrong and no class.
"""

from collections.abc import Sequence
from pathlib import Path

from earwise.evaluation.metrics import mmau
from earwise.evaluation.metrics.classification import class_scores, macro_f1
from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.evaluation.tasks.transcription import asked
from earwise.types import Example

QUESTION = 'Based on the audio, what can be said about the hypothesis - "{hypothesis}"?'
"""Mellow's (arXiv:2503.08540)."""


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a CSV of AudioEntailment; every hypothesis is asked about in the same words.

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is wrong.
    """
    examples = load_source("entailment")(path, audio_root)
    return [asked(example, QUESTION.format(hypothesis=example.meta["hypothesis"])) for example in examples]


def mellow_prompt(example: Example) -> str:
    """Mellow's wording: everything in lower case, the options with letters."""
    options = " ".join(f"{chr(ord('a') + place)}) {choice.lower()}" for place, choice in enumerate(example.choices))
    return f"{example.question.lower()} {options}"


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores, macro F1 (the published metric), and recall of each class."""
    metrics = mean_scores(rows)
    classes = class_scores([row["gold"][0] for row in rows], [row["answer"] for row in rows])
    metrics["macro_f1"] = {"accuracy": macro_f1(classes), "n": len(rows)}
    for name, values in classes.items():
        if values.support:
            metrics[f"recall: {name}"] = {"accuracy": values.recall, "n": values.support}
    return metrics


TASK = Task(
    name="entailment",
    load=load,
    score=mmau.score,
    scorer=mmau.SCORER,
    score_notes=mmau.SCORE_NOTES,
    headline="lenient",
    aggregate=aggregate,
    prompts={"mellow": mellow_prompt},
    default_style="answer",
    source="arXiv:2407.18062, microsoft/AudioEntailment",
    licence="MIT (hypotheses); audio as Clotho and AudioCaps",
)
