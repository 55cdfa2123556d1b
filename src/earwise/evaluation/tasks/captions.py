"""Captions of AudioCaps and Clotho, and of any manifest with reference captions as answers.

Data: the published CSV files (`data/sources/audiocaps.py`, `clotho.py`), a table (Parquet, a name on a hub) or a
manifest. `cider_d` is CIDEr-D with document frequencies of the references of the whole run, `rouge_l` and `bleu_4` are
the COCO tool kit's. METEOR and SPICE are computed by the tool kit's own Java programs where they are there
(`metrics/java/programs.py`), and SPIDEr is the mean of CIDEr-D and SPICE; where they are not, the run says what is
missing, and nothing stands in for them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from earwise.evaluation.aggregates.clusters import recording_clusters
from earwise.evaluation.aggregates.corpus import corpus_row
from earwise.evaluation.metrics.caption_tokens import caption_tokens
from earwise.evaluation.metrics.captions import bleu, bleu_counts, cider_d, rouge_l
from earwise.evaluation.metrics.java.meteor import meteor
from earwise.evaluation.metrics.java.programs import (
    METEOR_FILES,
    SPICE_FILES,
    find_programs,
    meteor_counts,
    missing_scores,
    spice_scores,
)
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
ULTRAEVAL_PROMPT = "describe the audio:"
"""Prompt of UltraEval-Audio for AudioCaps."""
QWEN2_AUDIO_PROMPT = "Generate the caption in English:"
"""Prompt of Qwen2-Audio's base model for captions, in the README of its repository."""
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
    """The rows with CIDEr-D, which depends on the references of all of them, and with METEOR, SPICE and SPIDEr where
    their programs are there."""
    return _program_scores(_cider_scores(rows))


def _cider_scores(rows: Sequence[Row]) -> list[Row]:
    """The rows with CIDEr-D."""
    labelled = [row for row in rows if row["scores"] is not None and row["status"] != "error"]
    hypotheses = [caption_tokens(row["output"]) for row in labelled]
    references = [[caption_tokens(gold) for gold in row["gold"]] for row in labelled]
    by_row = {id(row): value for row, value in zip(labelled, cider_d(hypotheses, references), strict=True)}
    return [
        row if row["scores"] is None else row | {"scores": {"cider_d": by_row.get(id(row), 0.0)} | row["scores"]}
        for row in rows
    ]


def _program_scores(rows: Sequence[Row]) -> list[Row]:
    """The rows with METEOR and its counts, and with SPICE and SPIDEr; an item without a completion has none of them."""
    programs = find_programs()
    places = [place for place, row in enumerate(rows) if row["scores"] is not None]
    hypotheses = [caption_tokens(rows[place]["output"]) for place in places]
    references = [[caption_tokens(gold) for gold in rows[place]["gold"]] for place in places]
    scored = list(rows)
    if not programs.missing(METEOR_FILES):
        for place, counts in zip(places, meteor_counts(programs, hypotheses, references), strict=True):
            value = float(meteor(counts))
            scored[place] = scored[place] | {
                "scores": scored[place]["scores"] | {"meteor": value},
                "counts": scored[place].get("counts", {}) | {"meteor": counts.tolist()},
            }
    if not programs.missing(SPICE_FILES):
        for place, spice in zip(places, spice_scores(programs, hypotheses, references), strict=True):
            scores = scored[place]["scores"]
            added = {"spice": spice, "spider": (scores["cider_d"] + spice) / 2}
            scored[place] = scored[place] | {"scores": scores | added}
    return scored


def remarks(rows: Sequence[Row]) -> list[str]:
    """A sentence about the scores that could not be computed."""
    if all("spice" in row["scores"] for row in rows):
        return []
    sentence = missing_scores(find_programs())
    return [sentence] if sentence else []


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores; METEOR and BLEU-1 to BLEU-4 are those of the corpus, not the means of the items; METEOR and
    BLEU-4 with their intervals by resampling clips."""
    metrics = {name: metric for name, metric in mean_scores(rows).items() if name != "bleu_4"}
    hypotheses = [caption_tokens(row["output"]) for row in rows]
    references = [[caption_tokens(gold) for gold in row["gold"]] for row in rows]
    for order, value in enumerate(bleu(hypotheses, references), 1):
        metrics[f"bleu_{order}"] = {"accuracy": value, "n": len(rows)}
    counts = [bleu_counts(*item) for item in zip(hypotheses, references, strict=True)]
    languages = [row["language"] or "" for row in rows]
    metrics["bleu_4"] = corpus_row(counts, languages, "caption_bleu", clusters=recording_clusters(rows))
    if all("meteor" in row.get("counts", {}) for row in rows):
        statistics = [row["counts"]["meteor"] for row in rows]
        metrics["meteor"] = corpus_row(statistics, languages, "meteor", clusters=recording_clusters(rows))
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
        "meteor": "METEOR 1.5 of the corpus, by its own program, where that is installed",
        "spice": "SPICE, by its own program, where that is installed",
        "spider": "SPIDEr, the mean of CIDEr-D and SPICE",
    },
    headline="cider_d",
    corpus={"bleu_4": "caption_bleu", "meteor": "meteor"},
    add_scores=add_scores,
    aggregate=aggregate,
    remarks=remarks,
    prompts={"ultraeval": lambda example: ULTRAEVAL_PROMPT, "qwen2-audio": lambda example: QWEN2_AUDIO_PROMPT},
    default_style="open",
    source="AudioCaps (NAACL 2019), Clotho (arXiv:1910.09387); metrics of pycocoevalcap",
    licence="AudioCaps MIT (captions), Clotho: its own academic licence",
    unverified="Parquet files and hub names (TwinkStart/AudioCaps)",
)
