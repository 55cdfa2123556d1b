"""BLEU and chrF of translations, by sacreBLEU, with the tokenizer that Qwen2-Audio's program chooses.

Source: eval_audio/evaluate_st.py of QwenLM/Qwen2-Audio@595360e, which pins sacreBLEU 1.5.1; corpus BLEU is the same in
2.x (`tests/golden`), except that 1.5.1 gives a few points to a corpus without a common token.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from earwise.config.resolve import require

TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}
"""sacreBLEU's tokenizer by target language; all others: `13a`."""

BleuCounts = tuple[float, ...]
"""What adds up over the sentences of a corpus: matched n-grams of each order, n-grams of each order, and the lengths of
hypothesis and reference."""


def tokenizer_of(language: str) -> str:
    """Name of sacreBLEU's tokenizer for a target language.

    >>> tokenizer_of("zh"), tokenizer_of("ja"), tokenizer_of("de")
    ('zh', 'ja-mecab', '13a')
    """
    return TOKENIZERS.get(language, "13a")


def target_language(source: str) -> str:
    """The target language in a set's name as Qwen2-Audio's files spell it: the last but one part between underscores.

    >>> target_language("covost2_en_zh_test"), target_language("covost2_en_zh")
    ('zh', 'en')
    """
    parts = source.split("_")
    return parts[-2] if len(parts) > 1 else ""


def corpus_bleu(references: Sequence[str], hypotheses: Sequence[str], language: str) -> tuple[float, str]:
    """BLEU of a corpus with one reference an item.

    Args:
        references: The right translations.
        hypotheses: The model's translations, in the same order.
        language: Code of the target language, which decides the tokenizer.
    Returns:
        BLEU in [0, 100], and sacreBLEU's signature, which belongs beside the number.
    Raises:
        ConfigError: if sacreBLEU, or the dictionary for Japanese, is not installed.
    """
    metric = _bleu(language)
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return float(score.score), str(metric.get_signature())


def sentence_bleu(reference: str, hypothesis: str, language: str) -> float:
    """BLEU of one item in [0, 100], with the order of n-grams cut to its length.

    Raises:
        ConfigError: if sacreBLEU, or the dictionary for Japanese, is not installed.
    """
    return sentence_score(reference, hypothesis, language)[0]


def sentence_score(reference: str, hypothesis: str, language: str) -> tuple[float, BleuCounts]:
    """`sentence_bleu`, and what the sentence adds to the BLEU of its corpus.

    Raises:
        ConfigError: if sacreBLEU, or the dictionary for Japanese, is not installed.
    """
    score = _bleu(language, effective_order=True).sentence_score(hypothesis, [reference])
    return float(score.score), (*score.counts, *score.totals, score.sys_len, score.ref_len)


def corpus_chrf(references: Sequence[str], hypotheses: Sequence[str], word_order: int = 0) -> float:
    """chrF of a corpus in [0, 100]; `word_order=2` gives chrF++.

    Raises:
        ConfigError: if sacreBLEU is not installed.
    """
    require("sacrebleu", "eval", "chrF scores")
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF(word_order=word_order).corpus_score(list(hypotheses), [list(references)]).score)


@cache
def _bleu(language: str, **options: bool) -> Any:
    """sacreBLEU's metric with the tokenizer of a language."""
    require("sacrebleu", "eval", "BLEU scores")
    if tokenizer_of(language) == "ja-mecab":
        require("ipadic", "japanese", "BLEU scores of Japanese")
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer_of(language), **options)
