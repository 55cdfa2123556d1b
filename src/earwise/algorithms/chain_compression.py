"""Chain compression: reasoning chains are shortened sentence by sentence during training, while the answer stays.

This is semi-implicit reasoning. A chain is the text before the answer (`Example.reasoning`): plain text, or parts that
each begin with a language marker at the start of a line (`[ja] `, `[en-response] `). As training progresses, the
sentences of the chain are *internalised* one after the other: an internalised sentence is cut to a stub, its first few
groups of words and an ellipsis. Markers stay, and the answer never passes through this module. Token-wise
internalisation (`StepwiseSchedule`, `remove_tokens`) removes tokens instead and leaves no stub.

Sources: XS-CoT (arXiv:2504.20835) for stubs and `num_internalised`; stepwise internalisation (arXiv:2405.14838,
released code da03/Internalize_CoT_Step_by_Step@c2e3891) for `StepwiseSchedule`, random offsets and optimizer resets.
Choices of ours, where XS-CoT is silent: 1. left to right by default, three groups of one word, progress counts epochs;
2. a sentence stays whole where its stub would not be shorter, in characters and as measured by `count`, so that a chain
never grows; 3. Japanese words are estimated from script and particles (`sentences.py`); 4. removed tokens leave no gap
in the positions, unlike in the released code of stepwise internalisation.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from earwise.algorithms.sentences import split_sentences, split_words
from earwise.errors import ConfigError

Order = Literal["left", "right", "random"]
Side = Literal["left", "right"]
T = TypeVar("T")

MARKER = re.compile(r"^\[([a-z]{2,3})(?:-response)?\] ?", re.MULTILINE)
"""Marker at the start of a part of a chain; the captured code is the part's language."""


@dataclass(frozen=True, slots=True)
class StubFormat:
    """What remains of an internalised sentence, and in which order sentences are internalised.

    Attributes:
        stub_groups: Number of word groups that remain; 0 with an empty ellipsis leaves nothing (fully implicit).
        words_per_group: Number of words in a group.
        ellipsis: Text that replaces the removed words.
        order: Order in which sentences are internalised: from the "left", from the "right", or "random".
    """

    stub_groups: int = 3
    words_per_group: int = 1
    ellipsis: str = "..."
    order: Order = "left"

    def __post_init__(self) -> None:
        if self.stub_groups < 0 or self.words_per_group < 1:
            raise ConfigError(
                f"stub_groups {self.stub_groups} must be 0 or more, words_per_group {self.words_per_group} 1 or more"
            )
        if self.order not in ("left", "right", "random"):
            raise ConfigError(f"order {self.order!r} is none of left, right, random")


def make_stub(sentence: str, language: str = "en", stub_format: StubFormat | None = None) -> str:
    """Cut a sentence to its stub; the sentence itself is returned where no word would be removed.

    >>> make_stub("The dog barks at the red car. ")
    'The dog barks... '
    >>> make_stub("It barks loudly."), make_stub("犬が赤い車に向かって吠えています。", "ja")
    ('It barks loudly.', '犬が赤い車に...')
    """
    stub_format = stub_format or StubFormat()
    words = split_words(sentence, language)
    num_words = stub_format.stub_groups * stub_format.words_per_group
    if len(words) <= num_words:
        return sentence
    stub = "".join(words[:num_words]).rstrip() + stub_format.ellipsis
    return stub + sentence[len(sentence.rstrip()) :] if stub else ""


def count_sentences(chain: str, language: str = "en") -> int:
    """Number of sentences in a chain; markers are not counted."""
    return len(_split_chain(chain, language)[1])


def compress_chain(
    chain: str,
    internalised: int,
    stub_format: StubFormat | None = None,
    *,
    language: str = "en",
    key: str = "",
    seed: int = 0,
    count: Callable[[str], int] = len,
) -> str:
    """Cut the first `internalised` sentences of a chain to stubs.

    Args:
        chain: The whole, uncompressed chain.
        internalised: Number of sentences to internalise, in the order of `stub_format`; 0 returns the chain unchanged.
        stub_format: What remains of a sentence; None is the default format.
        language: Language of parts without a marker.
        key: Identifies the chain; together with `seed` it determines a random order.
        seed: Seed of a random order.
        count: Length of a text that must never grow; pass the number of tokens.
    Returns:
        The chain with its markers. It is never longer than with fewer sentences internalised.

    >>> compress_chain("[de] Was ist der höchste Berg?\\n[en] What is the highest mountain?", 1)
    '[de] Was ist der...\\n[en] What is the highest mountain?'
    """
    stub_format = stub_format or StubFormat()
    pieces, sentence_places = _split_chain(chain, language)
    order = list(range(len(sentence_places)))
    if stub_format.order == "right":
        order.reverse()
    elif stub_format.order == "random":
        random.Random(f"{seed}:{key}").shuffle(order)
    length = count(chain)
    for number in order[: max(0, internalised)]:
        index, sentence_language = sentence_places[number]
        sentence, stub = pieces[index], make_stub(pieces[index], sentence_language, stub_format)
        if len(stub) >= len(sentence):
            continue
        pieces[index] = stub
        new_length = count("".join(pieces))
        if new_length > length:
            pieces[index] = sentence
        else:
            length = new_length
    return "".join(pieces)


def num_internalised(progress: int, sentences_in_chain: int, cutover: int) -> int:
    """Number of internalised sentences: one more per unit of progress, and all of them from `cutover` on.

    >>> [num_internalised(progress, 3, 5) for progress in range(7)], num_internalised(5, 9, 5)
    ([0, 1, 2, 3, 3, 3, 3], 9)
    """
    return min(sentences_in_chain, progress) if progress < cutover else sentences_in_chain


def progress_after(epochs: float, units_per_epoch: float = 1.0) -> int:
    """Whole units of progress after a number of epochs.

    >>> progress_after(0.9), progress_after(1.5, 2.0)
    (0, 3)
    """
    return math.floor(epochs * units_per_epoch + 1e-9)


def grows(previous: int, current: int, cutover: int) -> bool:
    """Whether more is internalised at progress `current` than at `previous`: where the optimizer may be reset."""
    return current > previous and previous < cutover


def default_cutover(sentence_counts: Sequence[int]) -> int:
    """Progress from which everything is internalised: the 95th percentile (nearest rank) of sentences per chain.

    >>> default_cutover([2] * 95 + [9] * 5), default_cutover([])
    (2, 0)
    """
    return sorted(sentence_counts)[math.ceil(0.95 * len(sentence_counts)) - 1] if sentence_counts else 0


def random_offset(smoothing: float, key: str, seed: int = 0, longest: int = 100) -> int:
    """Random number of units to internalise beyond the schedule, so that the model meets every length early.

    Args:
        smoothing: P(offset = k) is proportional to exp(-smoothing * k) for k below `longest`; infinity always gives 0.
        key: Identifies chain and step; together with `seed` it determines the draw.
        seed: Seed of the draw.
        longest: Number of different offsets that can be drawn.
    Raises:
        ConfigError: if `smoothing` is not above 0.
    Source: arXiv:2405.14838, removal smoothing.
    """
    if smoothing <= 0:
        raise ConfigError(f"smoothing {smoothing} must be above 0; .inf turns offsets off")
    if math.isinf(smoothing):
        return 0
    weights = [math.exp(-smoothing * offset) for offset in range(longest)]
    return random.Random(f"{seed}:{key}").choices(range(longest), weights)[0]


def chain_at_progress(
    chain: str,
    progress: int,
    cutover: int,
    stub_format: StubFormat | None = None,
    *,
    language: str = "en",
    key: str = "",
    seed: int = 0,
    smoothing: float = math.inf,
    count: Callable[[str], int] = len,
) -> str:
    """The chain to train on at a given progress: schedule, random offset and stubs combined.

    The result depends only on the arguments, in any process. See `num_internalised` for `progress` and `cutover`,
    `random_offset` for `smoothing`, and `compress_chain` for the other arguments.
    """
    total = count_sentences(chain, language)
    extra = random_offset(smoothing, f"{key}:{progress}", seed) if progress < cutover else 0
    internalised = min(total, num_internalised(progress, total, cutover) + extra)
    return compress_chain(chain, internalised, stub_format, language=language, key=key, seed=seed, count=count)


@dataclass(frozen=True, slots=True)
class StepwiseSchedule:
    """Schedule of stepwise token internalisation (ICoT-SI): how many tokens of a chain are removed in each batch.

    The schedule is a closed formula of the batch number, so a resumed run needs no counter; a skipped batch counts like
    any other.

    Attributes:
        steps_per_epoch: Number of batches in an epoch.
        tokens_per_epoch: Tokens that are additionally removed per epoch. Above twice `steps_per_epoch`, the released
            code removes one more token in every batch.
        start: Tokens removed from the beginning.
        pretrain_epochs: Epochs during which only `start` tokens are removed.
        remove_all_beyond: Number of removed tokens from which the whole chain is removed.
    """

    steps_per_epoch: int
    tokens_per_epoch: float
    start: int = 0
    pretrain_epochs: int = 0
    remove_all_beyond: float = math.inf

    def scheduled(self, batch: int) -> float:
        """Tokens scheduled for removal in batch number `batch` (from 0); infinity means all."""
        interval = round(self.steps_per_epoch / self.tokens_per_epoch)
        trained = max(0, batch - self.pretrain_epochs * self.steps_per_epoch)
        count = self.start + (trained // interval if interval else batch + 1)
        return math.inf if max(count, self.start) >= self.remove_all_beyond else count

    def applied(self, batch: int) -> float:
        """Tokens removed in a batch: those scheduled, or `start` during the pretraining epochs."""
        return self.start if batch < self.pretrain_epochs * self.steps_per_epoch else self.scheduled(batch)

    def grows(self, batch: int) -> bool:
        """Whether more tokens are scheduled than in the batch before.

        The released code makes a new optimizer there, unless the previous batch had nothing to remove.
        """
        initial = math.inf if self.start >= self.remove_all_beyond else self.start
        return self.scheduled(batch) > (self.scheduled(batch - 1) if batch else initial)


def remove_tokens(chain: Sequence[T], count: float, side: Side = "left") -> Sequence[T]:
    """Remove `count` tokens from one side of a chain.

    >>> remove_tokens("abcd", 1), remove_tokens("abcd", 3, "right"), remove_tokens("abcd", math.inf)
    ('bcd', 'a', '')
    """
    remaining = max(0, len(chain) - int(min(count, len(chain))))
    return chain[len(chain) - remaining :] if side == "left" else chain[:remaining]


def _split_chain(chain: str, language: str) -> tuple[list[str], list[tuple[int, str]]]:
    """Split a chain into pieces, of which some are sentences; a sentence never crosses a marker.

    Returns:
        The pieces (they concatenate to the chain), and for each sentence its index in them and its language.
    """
    pieces: list[str] = []
    sentence_places: list[tuple[int, str]] = []

    def add_part(text: str, part_language: str) -> None:
        body = text.rstrip("\n")
        for sentence in split_sentences(body, part_language):
            if sentence.strip():
                sentence_places.append((len(pieces), part_language))
            pieces.append(sentence)
        pieces.append(text[len(body) :])  # the line break before the next marker belongs to no sentence

    start, part_language = 0, language
    for marker in MARKER.finditer(chain):
        add_part(chain[start : marker.start()], part_language)
        pieces.append(marker[0])
        start, part_language = marker.end(), marker[1]
    add_part(chain[start:], part_language)
    return pieces, sentence_places
