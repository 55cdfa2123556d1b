"""One label a clip, scored by equality as in Qwen2-Audio (arXiv:2407.10759): VocalSound and the emotions of MELD.

Data: Qwen2-Audio's `vocalsound_eval.jsonl` and `meld_eval.jsonl` (their prompts are used as they are), the published
file of VocalSound or MELD, a table of either (Parquet, a name on a hub), or any manifest whose answers are labels.
`official` is the program's rule: the output without leading blanks equals the label, letter for letter. `lenient` reads
the one label that the output names. Macro F1 and unweighted recall are over the labels that `lenient` reads; an output
that names none of them is no class.
"""

from collections.abc import Sequence
from pathlib import Path

from earwise.answers import parse
from earwise.evaluation.metrics.classification import class_scores, macro_f1, unweighted_recall
from earwise.evaluation.published.qwen2_audio_file import is_qwen2_audio_file, load_file
from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.published.speech_files import SpeechTable, is_table, load_table
from earwise.evaluation.published.table_rows import dataset_name
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import manifest
from earwise.prompts import question_text
from earwise.types import Example, Score

VOCALSOUND_TABLE = SpeechTable(
    "vocalsound",
    ("label", "labels", "answer", "gt"),
    "Classify the human vocal sound to VocalSound in English: ",
    has_labels=True,
)
"""The question is the one that lmms-eval asks Qwen2-Audio."""
MELD_TABLE = SpeechTable(
    "meld",
    ("Emotion", "emotion", "label"),
    "listen the audio and judge the emotion of the speaker, the answer must be one of "
    "[surprise,anger,neutral,joy,sadness,fear,disgust], answer without explain",
    choices=("surprise", "anger", "neutral", "joy", "sadness", "fear", "disgust"),
)
"""The question is the one of UltraEval-Audio."""


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a file of Qwen2-Audio, of VocalSound (`te.json`) or MELD (CSV), a table, or a manifest.

    Args:
        path: The file, or a name on a hub.
        audio_root: Folder of the clips; None: the file's own folder.
    Returns:
        The examples. Their choices are the labels of the set: those of the reader, or all that occur in the file.
    Raises:
        DataError: if the file is wrong.
    """
    if is_table(path):
        is_meld = "meld" in dataset_name(path).lower()
        return load_table(path, audio_root, MELD_TABLE if is_meld else VOCALSOUND_TABLE, "en")
    if path.suffix.lower() == ".csv":
        return load_source("meld", lambda example: example.meta["field"] == "emotion")(path, audio_root)
    if path.suffix.lower() == ".json":
        return load_source("vocalsound")(path, audio_root)
    if not is_qwen2_audio_file(path):
        return manifest.load(path, audio_root)
    labels = tuple(sorted({example.answer[0] for example in load_file(path, audio_root, "label")}))
    return load_file(path, audio_root, "label", choices=labels, meta={"prompt": "as in the file"})


LMMS_EVAL_PROMPT = "Classify the human vocal sound to VocalSound in English: "
"""Prompt of lmms-eval 0.7.3 for VocalSound."""


def prompt(example: Example) -> str:
    """The prompt of a file of Qwen2-Audio as it is; other questions with the labels to choose from."""
    return question_text(example.question, () if "prompt" in example.meta else example.choices, "open")


def score(example: Example, completion: str) -> Score:
    """The official equality, and the label that the output names."""
    parsed = parse(completion, example.choices)
    named = (parsed.answer or "").lower()
    values = {
        "official": float(any(completion.lstrip() == gold for gold in example.answer)),
        "lenient": float(any(named == gold.lower() for gold in example.answer)),
    }
    explanation = "" if parsed.status == "ok" else f"the output names no single label: {completion[:80]!r}"
    return Score(values, parsed.status, parsed.answer, explanation)


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores, macro F1 and unweighted recall."""
    metrics = mean_scores(rows)
    gold = [row["gold"][0].lower() for row in rows]
    classes = class_scores(gold, [row["answer"].lower() if row["answer"] else None for row in rows])
    metrics["macro_f1"] = {"accuracy": macro_f1(classes), "n": len(rows)}
    metrics["unweighted_recall"] = {"accuracy": unweighted_recall(classes), "n": len(rows)}
    return metrics


TASK = Task(
    name="sound-labels",
    load=load,
    score=score,
    scorer="label-equality/1",
    score_notes={
        "official": "the output equals the label, letter for letter, as in Qwen2-Audio's program",
        "lenient": "the one label that the output names is the right one",
    },
    aggregate=aggregate,
    prompts={"qwen2-audio": prompt, "lmms-eval": lambda example: LMMS_EVAL_PROMPT},
    default_style="qwen2-audio",
    source="arXiv:2407.10759, QwenLM/Qwen2-Audio eval_audio",
    licence="VocalSound CC BY-SA 4.0; MELD: code GPL-3, clips of a television series",
    unverified="Qwen2-Audio's evaluation files, and Parquet files and hub names of any set",
)
