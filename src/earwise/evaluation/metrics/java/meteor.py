"""METEOR from the statistics that its program counts: of one caption, and of a corpus, whose value is not the mean.

The program aligns a caption with its best reference by equal words, stems, synonyms and paraphrases; the statistics add
up over captions, and the value follows from their sums.

Source: Denkowski and Lavie 2014 (METEOR Universal), version 1.5 with its parameters for English; compared with the
program's own values (`tests/golden`).
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NUM_STATISTICS = 23
"""Words of caption and reference; function words of both; for each of the four kinds of match the content words that
match in both and the function words that match in both; chunks; all matched words of both."""
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""Weight of recall in the mean, form and size of the penalty for fragments, weight of content words."""
MATCH_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""Weights of equal words, stems, synonyms and paraphrases."""
CHUNKS = 20


def meteor(sums: Floats) -> Floats:
    """METEOR in [0, 1].

    Args:
        sums: Sums of statistics as `added_up` prepares them, `(..., 23)`.
    """
    words, function_words = sums[..., 0:2], sums[..., 2:4]
    matches = sums[..., 4:CHUNKS].reshape(*sums.shape[:-1], 4, 4)
    weighted_length = DELTA * (words - function_words) + (1 - DELTA) * function_words
    by_kind = DELTA * matches[..., 0:2] + (1 - DELTA) * matches[..., 2:4]
    weighted_matches = (MATCH_WEIGHTS[:, None] * by_kind).sum(axis=-2)
    shares = weighted_matches / np.maximum(weighted_length, 1e-300)
    precision, recall = shares[..., 0], shares[..., 1]
    both = precision * recall
    mean = np.where(both > 0, both / np.maximum(ALPHA * precision + (1 - ALPHA) * recall, 1e-300), 0.0)
    chunks, matched = sums[..., CHUNKS], sums[..., CHUNKS + 1 :].mean(axis=-1)
    penalty = np.where(chunks > 0, GAMMA * (chunks / np.maximum(matched, 1e-300)) ** BETA, 0.0)
    return mean * (1 - penalty)


def added_up(statistics: Floats) -> Floats:
    """Statistics of single captions as they add up: a caption that is its reference has no fragments.

    Args:
        statistics: What the program prints, `(captions, 23)`.
    """
    is_perfect = (statistics[:, CHUNKS + 1 :] == statistics[:, 0:2]).all(axis=-1) & (statistics[:, CHUNKS] == 1)
    prepared = statistics.copy()
    prepared[is_perfect, CHUNKS] = 0
    return prepared
