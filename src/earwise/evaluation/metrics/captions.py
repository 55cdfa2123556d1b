"""Caption metrics of the COCO tool kit: BLEU-1 to 4, ROUGE-L and CIDEr-D over tokenised captions.

All of them read texts that a tokenizer has prepared (`caption_tokens`): lower case, blanks between tokens, no
punctuation. CIDEr-D weighs n-grams by how few items of the corpus use them, so it belongs to a corpus, and of a single
item it is 0. METEOR and SPICE need Java programs (`metrics/java`).

Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (arXiv:1411.5726, CIDEr-D); constants of
pycocoevalcap 1.2, with which the values are compared (`tests/golden`).
"""

from collections import Counter
from collections.abc import Sequence
from math import exp, log, sqrt

MAX_ORDER = 4
"""Longest n-gram that BLEU and CIDEr-D count."""
CIDER_SIGMA = 6.0
"""Standard deviation of the Gaussian penalty for a difference in length, in bigrams."""
ROUGE_BETA = 1.2
"""Weight of recall against precision in ROUGE-L."""
TINY, SMALL = 1e-15, 1e-9  # added by the tool kit to numerators and denominators

Ngram = tuple[str, ...]


BleuCounts = tuple[int, ...]
"""What adds up over the items of a corpus: matched n-grams of each order, n-grams of each order, and the lengths of
captions and references."""


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus, or of an item if it is the only one.

    Args:
        hypotheses: Tokenised captions of the model.
        references: Tokenised reference captions of each item.
    Returns:
        Four values in [0, 1]. The brevity penalty uses the reference whose length is closest, the shorter of two.
    """
    counts = [bleu_counts(*item) for item in zip(hypotheses, references, strict=True)]
    sums = [sum(values) for values in zip(*counts, strict=True)] or [0] * (2 * MAX_ORDER + 2)
    correct, total = sums[:MAX_ORDER], sums[MAX_ORDER : 2 * MAX_ORDER]
    hypothesis_length, reference_length = sums[2 * MAX_ORDER :]
    ratio = (hypothesis_length + TINY) / (reference_length + SMALL)
    penalty = exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (correct[order] + TINY) / (total[order] + SMALL)
        values.append(product ** (1 / (order + 1)) * penalty)
    return values


def bleu_counts(hypothesis: str, references: Sequence[str]) -> BleuCounts:
    """What an item adds to the BLEU of its corpus.

    >>> bleu_counts("a dog", ["a big dog"])
    (2, 0, 0, 0, 2, 1, 0, 0, 2, 3)

    Args:
        hypothesis: Tokenised caption of the model.
        references: Its tokenised reference captions.
    """
    words = hypothesis.split()
    lengths = [len(reference.split()) for reference in references]
    counts, most_counts = _ngrams(words), Counter[Ngram]()
    for reference in references:
        most_counts |= _ngrams(reference.split())
    correct = [0] * MAX_ORDER
    for ngram, count in counts.items():
        correct[len(ngram) - 1] += min(count, most_counts[ngram])
    total = [max(0, len(words) - order) for order in range(MAX_ORDER)]
    closest = min(lengths, key=lambda length: (abs(length - len(words)), length))
    return (*correct, *total, len(words), closest)


def rouge_l(hypothesis: str, references: Sequence[str]) -> float:
    """ROUGE-L of one item: longest common subsequence, best precision and best recall over the references."""
    words = hypothesis.split(" ")
    lengths = [(_common_length(words, reference.split(" ")), len(reference.split(" "))) for reference in references]
    precision = max(common / len(words) for common, _ in lengths)
    recall = max(common / length for common, length in lengths)
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each item of a corpus, in [0, 10]; the corpus value is their mean.

    Args:
        hypotheses: Tokenised captions of the model.
        references: Tokenised reference captions of each item. In how many items an n-gram occurs is counted here.
    """
    reference_counts = [[_ngrams(reference.split()) for reference in item] for item in references]
    num_items_with = Counter(ngram for item in reference_counts for ngram in set().union(*item))
    log_items = log(len(references)) if references else 0.0

    def weighted(counts: Counter[Ngram]) -> list[dict[Ngram, float]]:
        vectors: list[dict[Ngram, float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_items - log(max(1, num_items_with[ngram])))
        return vectors

    values = []
    for hypothesis, item_counts in zip(hypotheses, reference_counts, strict=True):
        counts = _ngrams(hypothesis.split())
        vectors = weighted(counts)
        similarities = [
            _similarity(vectors, weighted(other), _num_bigrams(counts) - _num_bigrams(other)) for other in item_counts
        ]
        values.append(10 * sum(similarities) / len(similarities))
    return values


def _similarity(
    hypothesis: Sequence[dict[Ngram, float]], reference: Sequence[dict[Ngram, float]], length_difference: int
) -> float:
    """Mean over the orders of clipped cosines, times the penalty for a difference in length."""
    cosines = []
    for ours, theirs in zip(hypothesis, reference, strict=True):
        product = sum(min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in ours.items())
        norms = _norm(ours) * _norm(theirs)
        cosines.append(product / norms if norms else product)
    return sum(cosines) / MAX_ORDER * exp(-(length_difference**2) / (2 * CIDER_SIGMA**2))


def _norm(vector: dict[Ngram, float]) -> float:
    return sqrt(sum(weight * weight for weight in vector.values()))


def _num_bigrams(counts: Counter[Ngram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """All n-grams of up to `MAX_ORDER` words, with their counts."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        previous = 0
        for place, other in enumerate(second, 1):
            previous, row[place] = row[place], previous + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
