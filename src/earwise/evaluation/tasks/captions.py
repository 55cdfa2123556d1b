"""Captions of AudioCaps and Clotho, and of any manifest with reference captions as answers.

Data: the published CSV files (`data/sources/audiocaps.py`, `clotho.py`), a table (Parquet, a name on a hub) or a
manifest. `cider_d` is CIDEr-D with document frequencies of the references of the whole run, `rouge_l` and `bleu_4` are
the COCO tool kit's. SPIDEr is the mean of CIDEr-D and SPICE, and SPICE needs a Java parser whose models are not on a
package index: it is not computed, and nothing stands in for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from earwise.evaluation.aggregates.clusters import recording_clusters
from earwise.evaluation.aggregates.corpus import corpus_row
from earwise.evaluation.metrics.caption_tokens import caption_tokens
from earwise.evaluation.metrics.captions import bleu, bleu_counts, cider_d, rouge_l
from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.published.speech_files import SpeechTable, is_table, load_table
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import manifest
from earwise.evaluation.tasks.transcription import asked, with_question
from earwise.types import Example, Score

QUESTION = "Describe the audio."
"""Asked where a file has no questions of its own. The wording is ours."""
TABLE = SpeechTable("caption", ("caption", "captions", "text"), QUESTION)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a CSV file of AudioCaps or Clotho, a table with a column of captions, or a manifest.

    Args:
        path: The file, or a name on a hub.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is wrong.
    """
    if is_table(path):
        return _grouped(load_table(path, audio_root, TABLE))
    if path.suffix.lower() != ".csv":
        return [with_question(example, QUESTION) for example in manifest.load(path, audio_root)]
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        source = "audiocaps" if file.readline().startswith("audiocap_id") else "clotho"
    return [asked(example, QUESTION) for example in load_source(source)(path, audio_root)]


def _grouped(rows: list[Example]) -> list[Example]:
    """Rows of a table with one caption each, as one example a clip with all of its captions."""
    captions: dict[Path, list[str]] = {}
    for row in rows:
        captions.setdefault(row.audio_paths[0], []).extend(row.answer)
    first_rows = {row.audio_paths[0]: row for row in reversed(rows)}
    return [replace(first_rows[clip], answer=tuple(texts)) for clip, texts in captions.items()]


def score(example: Example, completion: str) -> Score:
    """The scores that one caption has by itself."""
    text = caption_tokens(completion)
    references = [caption_tokens(gold) for gold in example.answer] or [""]
    values = {"rouge_l": rouge_l(text, references) if text else 0.0, "bleu_4": bleu([text], [references])[3]}
    explanation = "" if text else "the output is empty"
    counts = {"bleu_4": bleu_counts(text, references)}
    return Score(values, "ok" if text else "unparsed", completion.strip() or None, explanation, counts)


def add_scores(rows: Sequence[Row]) -> list[Row]:
    """The rows with CIDEr-D, which depends on the references of all of them."""
    labelled = [row for row in rows if row["scores"] is not None and row["status"] != "error"]
    hypotheses = [caption_tokens(row["output"]) for row in labelled]
    references = [[caption_tokens(gold) for gold in row["gold"]] for row in labelled]
    by_row = {id(row): value for row, value in zip(labelled, cider_d(hypotheses, references), strict=True)}
    return [
        row if row["scores"] is None else row | {"scores": {"cider_d": by_row.get(id(row), 0.0)} | row["scores"]}
        for row in rows
    ]


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores; BLEU-1 to BLEU-4 are those of the corpus, not the means of the items, BLEU-4 with its
    interval by resampling clips."""
    metrics = {name: metric for name, metric in mean_scores(rows).items() if name != "bleu_4"}
    hypotheses = [caption_tokens(row["output"]) for row in rows]
    references = [[caption_tokens(gold) for gold in row["gold"]] for row in rows]
    for order, value in enumerate(bleu(hypotheses, references), 1):
        metrics[f"bleu_{order}"] = {"accuracy": value, "n": len(rows)}
    counts = [bleu_counts(*item) for item in zip(hypotheses, references, strict=True)]
    languages = [row["language"] or "" for row in rows]
    metrics["bleu_4"] = corpus_row(counts, languages, "caption_bleu", clusters=recording_clusters(rows))
    return metrics


TASK = Task(
    name="captions",
    load=load,
    score=score,
    scorer="coco-captions/1",
    score_notes={
        "cider_d": "CIDEr-D, document frequencies from this run's references; 1 is written as 100, more is possible",
        "rouge_l": "ROUGE-L",
        "bleu_4": "BLEU-4",
    },
    headline="cider_d",
    corpus={"bleu_4": "caption_bleu"},
    add_scores=add_scores,
    aggregate=aggregate,
    default_style="open",
    source="AudioCaps (NAACL 2019), Clotho (arXiv:1910.09387); metrics of pycocoevalcap",
    licence="AudioCaps MIT (captions), Clotho: its own academic licence",
    unverified="Parquet files and hub names (TwinkStart/AudioCaps)",
)
