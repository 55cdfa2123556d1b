"""Word and character error rates of transcripts, as Qwen2-Audio's program and as Whisper's normalisers count them.

An error rate over a corpus is the number of edits over all items divided by the number of reference units: long items
weigh more, and a rate can exceed 1. Two readings stand side by side:

- `qwen2audio`: tags removed, text normalised by language (English through Whisper's English and then its basic
  normaliser, Chinese through `chinese_text`, Cantonese converted to simplified characters, others basic), lower case,
  tokens that are punctuation alone removed; words, and characters for Chinese and Cantonese.
- `whisper`: Whisper's English normaliser for English, its basic one for other languages; words, and characters for
  languages written without blanks.

Source: eval_audio/evaluate_asr.py of QwenLM/Qwen2-Audio@595360e. Deviation: where no reference has a unit, the
rate is 1 if anything was written and 0 otherwise, where the official program crashes.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from earwise.config.resolve import require
from earwise.evaluation.metrics.chinese_text import normalise_chinese

Reading = Literal["qwen2audio", "whisper"]
BY_CHARACTER = ("zh", "yue", "ja", "th", "lo", "my", "km")
"""Languages whose `whisper` error rate counts characters."""
NEWER_CONTRACTIONS = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")
"""Replacements that the published normaliser package has and Qwen2-Audio's copy of Whisper's has not."""

_TAG = re.compile(r"<\|.*?\|>")
_BLANKS = re.compile(r"\s+")
_BLANK_BEFORE_MARK = re.compile(r" ?([!,.?;:])")


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """Edits between hypotheses and references, which add up over items."""

    num_edits: int
    """Substitutions, deletions and insertions of an alignment with the fewest of them."""
    num_units: int
    """Words or characters of the references."""

    @property
    def rate(self) -> float:
        """The error rate; without any reference unit 1 if something was written, otherwise 0."""
        return self.num_edits / self.num_units if self.num_units else float(self.num_edits > 0)

    def __add__(self, other: "ErrorCount") -> "ErrorCount":
        return ErrorCount(self.num_edits + other.num_edits, self.num_units + other.num_units)


def remove_tags(text: str, language: str) -> str:
    """A text without `<|...|>` tags, with single blanks and none before a mark; Chinese without blanks.

    >>> remove_tags("<|en|> hello , world<|endoftext|>", "en")
    'hello, world '
    """
    plain = _BLANKS.sub(" ", _TAG.sub(" ", text))
    plain = _BLANK_BEFORE_MARK.sub(r"\1", plain).lstrip(" ")
    return _BLANKS.sub("", plain) if language == "zh" else plain


def units(text: str, language: str, reading: Reading = "qwen2audio") -> list[str]:
    """The words or characters of a transcript that are compared.

    Args:
        text: The transcript as written.
        language: Code of the language, for example `en`, `zh`, `yue`.
        reading: `qwen2audio` or `whisper`, see the module's docstring.
    Raises:
        ConfigError: if a package for the normalisation is missing.
    """
    plain = remove_tags(text, language)
    if reading == "whisper":
        words = (_english_normaliser(False) if language == "en" else _basic_normaliser())(plain).split()
        return list("".join(words)) if language in BY_CHARACTER else words
    if language == "yue":
        plain = _simplified(plain)
    if language == "en":
        plain = _english_normaliser(True)(plain)
    plain = normalise_chinese(plain) if language == "zh" else _basic_normaliser()(plain)
    words = [word for word in plain.split(" ") if not _is_punctuation(word)]
    words = " ".join(words).lower().split()
    return list("".join(words)) if language in ("zh", "yue") else words


def count_errors(reference: str, hypothesis: str, language: str, reading: Reading = "qwen2audio") -> ErrorCount:
    """Edits of one transcript.

    Args:
        reference: The right transcript.
        hypothesis: The model's transcript.
        language: Code of the language.
        reading: How both are normalised and divided.
    Raises:
        ConfigError: if a package for the normalisation is missing.
    """
    require("rapidfuzz", "eval", "error rates")
    from rapidfuzz.distance import Levenshtein

    reference_units, hypothesis_units = units(reference, language, reading), units(hypothesis, language, reading)
    return ErrorCount(Levenshtein.distance(reference_units, hypothesis_units), len(reference_units))


def error_rate(
    references: Sequence[str], hypotheses: Sequence[str], language: str, reading: Reading = "qwen2audio"
) -> float:
    """Error rate of a corpus: all edits divided by all reference units.

    Raises:
        ConfigError: if a package for the normalisation is missing.
        ValueError: if there are not as many hypotheses as references.
    """
    pairs = zip(references, hypotheses, strict=True)
    counts = [count_errors(reference, hypothesis, language, reading) for reference, hypothesis in pairs]
    return sum(counts, ErrorCount(0, 0)).rate


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(character)[0] == "P" for character in word)


@cache
def _english_normaliser(as_copied: bool) -> Callable[[str], str]:
    """Whisper's English normaliser; as Qwen2-Audio copied it, or as it is published."""
    require("whisper_normalizer", "eval", "error rates of English")
    from whisper_normalizer.english import EnglishTextNormalizer

    normaliser: Any = EnglishTextNormalizer()
    for pattern in NEWER_CONTRACTIONS if as_copied else ():
        normaliser.replacers.pop(pattern, None)
    return normaliser  # type: ignore[no-any-return]


@cache
def _basic_normaliser() -> Callable[[str], str]:
    require("whisper_normalizer", "eval", "error rates")
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()  # type: ignore[no-any-return]


def _simplified(text: str) -> str:
    """Traditional characters as simplified ones."""
    require("zhconv", "eval", "error rates of Cantonese")
    import zhconv

    return str(zhconv.convert(text, "zh-cn"))
