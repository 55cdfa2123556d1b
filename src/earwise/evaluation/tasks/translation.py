"""Translation of speech, scored by BLEU as in Qwen2-Audio (arXiv:2407.10759): seven directions of CoVoST 2.

Data: Qwen2-Audio's `covost2_eval.jsonl` (its prompts are used as they are), or any manifest whose answers are
translations and whose `language` is the target language. `bleu` is sacreBLEU's over the corpus, with the tokenizer of
the target language; of one row it is the sentence's. All values are divided by 100. chrF stands beside it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from earwise.evaluation.metrics.translation import (
    BleuCounts,
    bleu_of_counts,
    corpus_chrf,
    resampled_bleu,
    sentence_score,
    target_language,
)
from earwise.evaluation.published.qwen2_audio_file import is_qwen2_audio_file, load_file
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import manifest
from earwise.types import Example, Score

LANGUAGES = {"zh-cn": "zh", "zh-CN": "zh"}
BOOTSTRAP_DRAWS = 1000
"""Corpora that are drawn for the interval of BLEU, as many as sacreBLEU draws."""


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read Qwen2-Audio's file, or a manifest.

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is wrong.
    """
    if is_qwen2_audio_file(path):
        examples = load_file(path, audio_root, "translation")
        return [replace(example, language=target_language(example.source)) for example in examples]
    return manifest.load(path, audio_root)


def score(example: Example, completion: str) -> Score:
    """BLEU of one sentence, with n-grams up to its length."""
    text = completion.strip()
    scored = [sentence_score(gold, text, _code(example.language)) for gold in example.answer]
    bleu, counts = max(scored, default=(0.0, ()))
    explanation = "" if text else "the output is empty"
    return Score({"bleu": bleu / 100}, "ok" if text else "unparsed", text or None, explanation, {"bleu": counts})


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Corpus BLEU and chrF: the mean over target languages, each with its own tokenizer.

    The interval of BLEU is that of corpora drawn from the sentences of each language.
    """
    metrics = mean_scores(rows)
    by_language: dict[str, list[Row]] = {}
    for row in rows:
        by_language.setdefault(_code(row["language"]), []).append(row)
    bleu = chrf = 0.0
    draws = np.zeros(BOOTSTRAP_DRAWS)
    for language, members in by_language.items():
        sentences = [_counts_of_row(row, language) for row in members]
        bleu += bleu_of_counts(np.sum(sentences, axis=0)) / 100 / len(by_language)
        draws += resampled_bleu(sentences, BOOTSTRAP_DRAWS, seed=0) / 100 / len(by_language)
        references, hypotheses = [row["gold"][0] for row in members], [row["output"].strip() for row in members]
        chrf += corpus_chrf(references, hypotheses) / 100 / len(by_language)
    low, high = np.quantile(draws, [0.025, 0.975])
    metrics["bleu"] = {"accuracy": bleu, "n": len(rows), "low": float(low), "high": float(high)}
    metrics["chrf"] = {"accuracy": chrf, "n": len(rows)}
    return metrics


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
)
