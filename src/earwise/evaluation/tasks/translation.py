"""Translation of speech, scored by BLEU as in Qwen2-Audio (arXiv:2407.10759): seven directions of CoVoST 2.

Data: Qwen2-Audio's `covost2_eval.jsonl` (its prompts are used as they are), CoVoST 2's own TSV files, a table of one
direction (Parquet, `datasets` on disk, a name on a hub), or any manifest whose answers are translations and whose
`language` is the target language. `bleu` is sacreBLEU's over the corpus, with the tokenizer of
the target language; of one row it is the sentence's. All values are divided by 100. chrF stands beside it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from earwise.errors import DataError
from earwise.evaluation.aggregates.clusters import recording_clusters
from earwise.evaluation.aggregates.corpus import corpus_row
from earwise.evaluation.metrics.translation import (
    BleuCounts,
    corpus_chrf,
    sentence_score,
    target_language,
)
from earwise.evaluation.published.qwen2_audio_file import is_qwen2_audio_file, load_file
from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.published.speech_files import SpeechTable, is_table, load_table
from earwise.evaluation.published.table_rows import dataset_name
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import manifest
from earwise.evaluation.tasks.transcription import asked
from earwise.types import Example, Score

LANGUAGES = {"zh-cn": "zh", "zh-CN": "zh"}
NAMES = {
    "en": "English", "zh": "Chinese", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian",
    "ja": "Japanese",
}  # fmt: skip
TABLE = SpeechTable("translation", ("translation", "text", "target", "sentence"), "")
_DIRECTION = re.compile(r"(?<![a-z])([a-z]{2})[_-]([a-z]{2}(?:-[A-Z]{2})?)(?![a-z])")


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read Qwen2-Audio's file, a TSV of CoVoST 2, a table, or a manifest.

    Args:
        path: The file, or a name on a hub.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is wrong.
    """
    if is_table(path):
        return _table(path, audio_root)
    if path.suffix.lower() == ".tsv":
        examples = load_source("covost2")(path, audio_root)
        return [_asked(example, str(example.meta["to"])) for example in examples]
    if is_qwen2_audio_file(path):
        examples = load_file(path, audio_root, "translation")
        return [replace(example, language=target_language(example.source)) for example in examples]
    return manifest.load(path, audio_root)


def _table(path: Path, audio_root: Path | None) -> list[Example]:
    """A table of one direction, which its name says (`en_zh`, `config=en_zh-CN`).

    Raises:
        DataError: if the name says no direction.
    """
    match = _DIRECTION.search(dataset_name(path))
    if match is None:
        raise DataError(
            f"{dataset_name(path)}: says no direction; name the file, its folder or ?config= by it, as in en_zh"
        )
    examples = load_table(path, audio_root, TABLE, _code(match[2]))
    return [replace(_asked(example, match[2]), source=f"{match[1]}_{match[2]}") for example in examples]


def _asked(example: Example, target: str) -> Example:
    """The example, asked for this language, as lmms-eval asks Qwen2-Audio."""
    code = _code(target)
    question = f"Translate the speech into {NAMES.get(code, code)} and only output the translation:"
    return replace(asked(example, question), language=code)


def score(example: Example, completion: str) -> Score:
    """BLEU of one sentence, with n-grams up to its length."""
    text = completion.strip()
    scored = [sentence_score(gold, text, _code(example.language)) for gold in example.answer]
    bleu, counts = max(scored, default=(0.0, ()))
    explanation = "" if text else "the output is empty"
    return Score({"bleu": bleu / 100}, "ok" if text else "unparsed", text or None, explanation, {"bleu": counts})


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Corpus BLEU, with its interval by resampling speakers or sentences, and chrF: means over target languages, each
    with its own tokenizer."""
    languages = [_code(row["language"]) for row in rows]
    counts = [_counts_of_row(row, language) for row, language in zip(rows, languages, strict=True)]
    chrf = 0.0
    for language in set(languages):
        members = [row for row in rows if _code(row["language"]) == language]
        chrf += corpus_chrf([row["gold"][0] for row in members], [row["output"].strip() for row in members])
    return {
        "bleu": corpus_row(counts, languages, "bleu", clusters=recording_clusters(rows)),
        "chrf": {"accuracy": chrf / 100 / len(set(languages)), "n": len(rows)},
    }


def _counts_of_row(row: Row, language: str) -> BleuCounts:
    """Counts of a row; of one without a completion, or of an earlier version, they are made now."""
    counts = row.get("counts") or {}
    return tuple(counts["bleu"]) if "bleu" in counts else sentence_score(row["gold"][0], row["output"], language)[1]


def _code(language: str) -> str:
    return LANGUAGES.get(language, language)


TASK = Task(
    name="translation",
    load=load,
    score=score,
    scorer="sacrebleu-2/1",
    score_notes={"bleu": "BLEU by sacreBLEU with the tokenizer of the target language, divided by 100"},
    headline="bleu",
    corpus={"bleu": "bleu"},
    aggregate=aggregate,
    default_style="open",
    max_new_tokens=256,
    source="arXiv:2407.10759, QwenLM/Qwen2-Audio eval_audio; CoVoST 2 (arXiv:2007.10310)",
    licence="CC0 (CoVoST 2 and Common Voice)",
    unverified="Qwen2-Audio's evaluation file, and Parquet files and hub names of any set",
)
