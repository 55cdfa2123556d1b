"""Intervals of error rates and BLEU where utterances share a speaker: those of scipy's bootstrap of whole speakers.

The expected ends are those of scipy 1.17.1, `bootstrap(..., method="percentile")` over the speakers of the same data;
of BLEU with sacreBLEU 2.6.0 as the statistic. scipy is no dependency, so they were computed once.
"""

import random
from collections.abc import Hashable

import numpy as np
import pytest

from earwise.evaluation.aggregates.clusters import recording_clusters
from earwise.evaluation.aggregates.corpus import corpus_difference, corpus_row, crossed_values
from earwise.evaluation.metrics.captions import bleu as caption_bleu
from earwise.evaluation.metrics.captions import bleu_counts
from earwise.evaluation.metrics.translation import sentence_score

WORDS = ("rain", "wind", "dog", "barks", "loudly", "here", "a", "the")
WER, WER_LOW, WER_HIGH = 0.11497450162262401, 0.06790944027700817, 0.16791234770911723
GAP_LOW, GAP_HIGH = -0.22670585300055138, -0.1472828778126173
BLEU, BLEU_LOW, BLEU_HIGH = 0.5190557267674832, 0.40173537605697357, 0.6304323137006947


def speakers(seed: int, count: int = 25) -> tuple[list[tuple[int, int]], list[Hashable]]:
    """Edits and words of utterances by speakers who are understood more or less well, and the speaker of each."""
    rng = random.Random(seed)
    counts: list[tuple[int, int]] = []
    names: list[Hashable] = []
    for name in range(count):
        rate = rng.random() ** 3 / 2  # 1/8 in the mean
        for _ in range(2 + int(10 * rng.random())):
            words = 3 + int(17 * rng.random())
            counts.append((sum(rng.random() < rate for _ in range(words)), words))
            names.append(name)
    return counts, names


def translations(seed: int) -> tuple[list[str], list[str]]:
    """References and outputs of 12 speakers with four sentences each."""
    rng = random.Random(seed)
    references, outputs = [], []
    for _ in range(12):
        kept = 0.5 + rng.random() / 2
        for _ in range(4):
            words = [WORDS[int(8 * rng.random())] for _ in range(9)]
            references.append(" ".join(words))
            outputs.append(" ".join(word if rng.random() < kept else "sun" for word in words))
    return references, outputs


def test_error_rates_resample_speakers_as_scipy_does() -> None:
    counts, names = speakers(3)
    row = corpus_row(counts, [""] * len(counts), "ratio", clusters=names)
    assert row["accuracy"] == pytest.approx(WER, abs=1e-9) and row["clusters"] == 25
    width = WER_HIGH - WER_LOW
    assert (row["low"], row["high"]) == pytest.approx((WER_LOW, WER_HIGH), abs=0.05 * width)
    independent = corpus_row(counts, [""] * len(counts), "ratio")
    assert width > 1.4 * (independent["high"] - independent["low"]) and "clusters" not in independent


def test_bleu_resamples_speakers_as_scipy_does_with_sacrebleu() -> None:
    counts = [sentence_score(*pair, "en")[1] for pair in zip(*translations(5), strict=True)]
    row = corpus_row(counts, ["en"] * 48, "bleu", clusters=[number // 4 for number in range(48)])
    width = BLEU_HIGH - BLEU_LOW
    assert row["accuracy"] == pytest.approx(BLEU, abs=1e-9)
    assert (row["low"], row["high"]) == pytest.approx((BLEU_LOW, BLEU_HIGH), abs=0.06 * width)


def test_the_formula_of_caption_bleu_is_the_corpus_value() -> None:
    """Against `bleu`, which the tool kit's values check (`tests/golden`); a corpus without a match is all but 0."""
    captions = ["a dog barks at the gate", "rain falls", "wind in the trees blows"]
    references = [["a dog barks at a gate", "dog barking"], ["rain falls on a roof", "it rains"], ["the wind blows"]]
    counts = [bleu_counts(*item) for item in zip(captions, references, strict=True)]
    row = corpus_row(counts, ["", "", ""], "caption_bleu")
    assert (
        row["accuracy"] == pytest.approx(caption_bleu(captions, references)[3], rel=1e-9) and row["low"] < row["high"]
    )
    assert corpus_row([bleu_counts("x y", ["a b"])], [""], "caption_bleu")["accuracy"] < 1e-4


def test_differences_resample_the_same_speakers_of_both_runs() -> None:
    counts, names = speakers(4)
    before = [(edits + 1 + name % 3, words) for (edits, words), name in zip(counts, names, strict=True)]
    gap = corpus_difference(counts, before, [""] * len(counts), "ratio", clusters=names, seed=0)
    width = GAP_HIGH - GAP_LOW
    assert (gap["low"], gap["high"]) == pytest.approx((GAP_LOW, GAP_HIGH), abs=0.06 * width)
    assert gap["clusters"] == 25 and gap["p"] < 0.01


def test_the_interval_covers_the_truth_where_that_of_utterances_does_not() -> None:
    covered = independent = 0
    for seed in range(120):
        counts, names = speakers(100 + seed, 40)
        truth = 1 / 8
        row = corpus_row(counts, [""] * len(counts), "ratio", clusters=names)
        plain = corpus_row(counts, [""] * len(counts), "ratio")
        covered += row["low"] <= truth <= row["high"]
        independent += plain["low"] <= truth <= plain["high"]
    assert covered >= 0.88 * 120 and independent < 0.75 * 120


def test_speakers_of_two_languages_and_clusters_of_one_item_each() -> None:
    """A speaker may be in both groups; where every item is its own cluster nothing changes, to the bit."""
    counts = [(1, 4), (3, 4), (0, 2), (2, 2)]
    row = corpus_row(counts, ["en", "en", "zh", "zh"], "ratio", clusters=["a", "b", "a", "b"])
    assert row["accuracy"] == pytest.approx((0.5 + 0.5) / 2)
    assert (row["low"], row["high"]) == (pytest.approx((0.25 + 0) / 2), pytest.approx((0.75 + 1) / 2))
    groups = ["en"] * 4
    assert corpus_row(counts, groups, "ratio", clusters=[1, 2, 3, 4]) == corpus_row(counts, groups, "ratio")
    values = crossed_values(np.array([[counts]], float), groups, "ratio", clusters=["a", "a", "b", "b"], seed=0)
    assert set(np.round(values[:, 0], 6)) == {0.5}, "half of the words of a and of b are wrong"


def test_the_cluster_of_a_row_is_its_group_or_its_clip() -> None:
    rows = [{"group": "speaker:1", "audio_sha256": "x"}, {"group": "speaker:1", "audio_sha256": "y"}]
    assert recording_clusters([*rows, {"group": "speaker:2", "audio_sha256": "z"}]) == [
        "speaker:1", "speaker:1", "speaker:2",
    ]  # fmt: skip
    assert recording_clusters(rows) == ["x", "y"], "one speaker alone has no spread"
    assert recording_clusters([{"audio_sha256": "x"}, {"audio_sha256": ""}]) == ["x", ("item", 1)], "earlier versions"
