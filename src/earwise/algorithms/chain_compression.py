"""Chains of reasoning made shorter, sentence by sentence, while the answer stays as it is: semi-implicit reasoning.

Pure on text; beside `rewards.py`. A chain is the text before the answer (`Example.reasoning`): plain, or in parts that
begin with a marker at the start of a line (`[ja] `, `[en-response] `), which stay. Its sentences, in the order in which
they are said, are internalised one after the other as training goes on: an internalised sentence is cut to its first
`k` groups of words and an ellipsis. The answer never passes through here.

Sources: XS-CoT (arXiv:2504.20835) for stubs and `n_internalised`; stepwise internalisation (arXiv:2405.14838, released
code da03/Internalize_CoT_Step_by_Step@c2e3891) for `Stepwise`, offsets and resets.
Ours, where the first is silent: 1. left to right by default, k 3, groups of one word, progress counts epochs; 2. a
sentence is left whole where its stub would not be shorter, in characters and in what `count` counts, so a chain never
grows; 3. Japanese words by script and particles; 4. the second's removed positions are not kept as gaps.
"""

import itertools
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from earwise.errors import ConfigError

Order = Literal["left", "right", "random"]
Side = Literal["left", "right"]
T = TypeVar("T")

MARKER = re.compile(r"^\[([a-z]{2,3})(?:-response)?\] ?", re.MULTILINE)
"""What a part of a chain begins with; the code is the part's language."""

_ABBREVIATIONS = {
    "en": "mr mrs ms dr prof st sr jr vs etc e.g i.e a.m p.m u.s u.k no fig vol approx dept est inc ltd co",
    "de": "z.b d.h u.a usw bzw ca dr prof hr fr frl nr st str vgl s.o s.u o.ä u.ä evtl ggf inkl max min mio mrd sog "
    "abs bd geb jh v.chr n.chr z.t i.d.r",
    "fr": "m mm mme mmes mlle mlles dr pr st ste etc p.ex c.-à-d env av apr j.-c no vol fig cf éd chap tél",
}
_NO_END = {code: frozenset(words.split()) for code, words in _ABBREVIATIONS.items()}
_STOP = re.compile(r"([.!?…]+)([\"'”’»)\]]*)(\s+|$)|(\n\s*)")
_JA_STOP = re.compile(r"[。！？!?．…]+[」』）)\"”]*\s*|\n\s*")
_WORD = re.compile(r"\S+\s*|\s+")
_JA_RUN = re.compile(
    r"(?P<hiragana>[\u3041-\u309f]+)|(?P<katakana>[\u30a0-\u30ff\uff66-\uff9f]+)|(?P<han>[\u3400-\u4dbf\u4e00-\u9fff々〆]+)"
    r"|(?P<latin>[A-Za-zÀ-ɏＡ-Ｚａ-ｚ]+)|(?P<digit>[0-9０-９.,]+)|(?P<space>\s+)|(?P<mark>.)",
    re.DOTALL,
)
# A particle with which the kana after a word begin, and something left to begin the next word with.
_PARTICLE = re.compile(
    r"(?:から|まで|より|には|では|とは|のは|のが|のを|は|が(?!ら)|を|に|で(?![すしき])|と(?!き)|も|の(?!で)|へ)(?=[\u3041-\u309f]{2})"
)


@dataclass(frozen=True, slots=True)
class Stubs:
    """What is left of an internalised sentence, and in which order sentences are taken."""

    k: int = 3
    """Groups of words that stay; 0 with an empty ellipsis leaves nothing (fully implicit)."""
    group: int = 1
    """Words a group."""
    ellipsis: str = "..."
    order: Order = "left"

    def __post_init__(self) -> None:
        if self.k < 0 or self.group < 1:
            raise ConfigError(f"k {self.k} must be 0 or more, group {self.group} 1 or more")
        if self.order not in ("left", "right", "random"):
            raise ConfigError(f"order {self.order!r} is none of left, right, random")


def sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a text with the blanks behind them; joined they are the text.

    >>> sentences("Dr. No came. He sat!  Why?", "en")
    ['Dr. No came. ', 'He sat!  ', 'Why?']
    >>> sentences("雨です。傘は？", "ja"), sentences("Am 3. Mai regnet es, z. B. hier.", "de")
    (['雨です。', '傘は？'], ['Am 3. Mai regnet es, z. B. hier.'])
    """
    ends = [found.end() for found in _JA_STOP.finditer(text)] if language in ("ja", "zh") else _ends(text, language)
    cuts = [0, *(end for end in ends if end < len(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts) if start < end]
    blank_first = len(pieces) > 1 and not pieces[0].strip()
    return [pieces[0] + pieces[1], *pieces[2:]] if blank_first else pieces


def words(sentence: str, language: str = "en") -> list[str]:
    """The words of a sentence with the blanks behind them; joined they are the sentence.

    >>> words("Où est la gare ?", "fr")
    ['Où ', 'est ', 'la ', 'gare ', '?']
    >>> words("フランスの首都はどこですか。", "ja")
    ['フランスの', '首都は', 'どこですか。']
    """
    return _japanese_words(sentence) if language in ("ja", "zh") else _WORD.findall(sentence)


def stub(sentence: str, language: str = "en", stubs: Stubs | None = None) -> str:
    """The first `k` groups of a sentence and the ellipsis; the sentence itself where nothing would be dropped.

    >>> stub("The dog barks at the red car. ")
    'The dog barks... '
    >>> stub("It barks loudly."), stub("犬が赤い車に向かって吠えています。", "ja")
    ('It barks loudly.', '犬が赤い車に...')
    """
    stubs = stubs or Stubs()
    parts = words(sentence, language)
    keep = stubs.k * stubs.group
    if len(parts) <= keep:
        return sentence
    kept = "".join(parts[:keep]).rstrip() + stubs.ellipsis
    return kept + sentence[len(sentence.rstrip()) :] if kept else ""


def count_sentences(chain: str, language: str = "en") -> int:
    """How many sentences a chain has (x in the schedule); its markers count for nothing."""
    return len(_cut(chain, language)[1])


def compress(
    chain: str,
    internalised: int,
    stubs: Stubs | None = None,
    *,
    language: str = "en",
    key: str = "",
    seed: int = 0,
    count: Callable[[str], int] = len,
) -> str:
    """A chain with its first `internalised` sentences cut to stubs.

    Args:
        chain: The whole, uncompressed chain.
        internalised: How many sentences are internalised, in the order of `stubs`; 0 gives the chain as it is.
        stubs: What is left of a sentence.
        language: Of a part without marker.
        key: Names the chain: with `seed` it decides a random order.
        seed: See `key`.
        count: Length that must not grow, of a text: pass the tokenizer's.
    Returns:
        The chain, markers in place. Never longer than with fewer sentences internalised.

    >>> compress("[de] Was ist der höchste Berg?\\n[en] What is the highest mountain?", 1)
    '[de] Was ist der...\\n[en] What is the highest mountain?'
    """
    stubs = stubs or Stubs()
    pieces, places = _cut(chain, language)
    order = list(range(len(places)))
    if stubs.order == "right":
        order.reverse()
    elif stubs.order == "random":
        random.Random(f"{seed}:{key}").shuffle(order)
    length = count(chain)
    for number in order[: max(0, internalised)]:
        place, code = places[number]
        whole, short = pieces[place], stub(pieces[place], code, stubs)
        if len(short) >= len(whole):
            continue
        pieces[place] = short
        shorter = count("".join(pieces))
        if shorter > length:
            pieces[place] = whole
        else:
            length = shorter
    return "".join(pieces)


def n_internalised(progress: int, sentences_in_chain: int, cutover: int) -> int:
    """How many sentences are internalised at a point of training: one more a step of progress, all from `cutover` on.

    >>> [n_internalised(progress, 3, 5) for progress in range(7)], n_internalised(5, 9, 5)
    ([0, 1, 2, 3, 3, 3, 3], 9)
    """
    return min(sentences_in_chain, progress) if progress < cutover else sentences_in_chain


def progress_at(epochs: float, rate: float = 1.0) -> int:
    """Steps of progress after so many epochs, `rate` of them an epoch.

    >>> progress_at(0.9), progress_at(1.5, 2.0)
    (0, 3)
    """
    return math.floor(epochs * rate + 1e-9)


def grows(before: int, now: int, cutover: int) -> bool:
    """True if more is internalised than before: the place for a fresh optimizer, where a recipe wants one."""
    return now > before and before < cutover


def cutover_for(counts: Sequence[int]) -> int:
    """The progress from which everything is internalised: the 95th percentile (nearest rank) of sentences a chain.

    >>> cutover_for([2] * 95 + [9] * 5), cutover_for([])
    (2, 0)
    """
    return sorted(counts)[math.ceil(0.95 * len(counts)) - 1] if counts else 0


def random_offset(smoothing: float, key: str, seed: int = 0, longest: int = 100) -> int:
    """Sentences (or tokens) to internalise beyond the schedule, so that the model meets every length early: geometric.

    Args:
        smoothing: P(o) is proportional to exp(-smoothing * o), o below `longest`; infinity gives 0. Off in validation.
        key: Chain and step; with `seed` it decides the draw.
        seed: See `key`.
        longest: Number of offsets that can be drawn.
    Raises:
        ConfigError: if `smoothing` is not above 0.
    """
    if smoothing <= 0:
        raise ConfigError(f"smoothing {smoothing} must be above 0; .inf turns offsets off")
    if math.isinf(smoothing):
        return 0
    weights = [math.exp(-smoothing * offset) for offset in range(longest)]
    return random.Random(f"{seed}:{key}").choices(range(longest), weights)[0]


def at_progress(
    chain: str,
    progress: int,
    cutover: int,
    stubs: Stubs | None = None,
    *,
    language: str = "en",
    key: str = "",
    seed: int = 0,
    smoothing: float = math.inf,
    count: Callable[[str], int] = len,
) -> str:
    """A chain as it is trained on at a point of training: schedule, offset and stubs in one; see their functions.

    Deterministic in `(chain, key, progress, seed)`, in any process.
    """
    total = count_sentences(chain, language)
    extra = random_offset(smoothing, f"{key}:{progress}", seed) if progress < cutover else 0
    internalised = min(total, n_internalised(progress, total, cutover) + extra)
    return compress(chain, internalised, stubs, language=language, key=key, seed=seed, count=count)


@dataclass(frozen=True, slots=True)
class Stepwise:
    """Stepwise internalisation of tokens (ICoT-SI): how many tokens of the chain are left out at each batch.

    In closed form, so that a resumed run needs no counter. A batch that is skipped counts like any other.
    """

    steps_per_epoch: int
    """Batches an epoch."""
    per_epoch: float
    """Tokens more to leave out an epoch; above twice the batches the released code takes one more every batch."""
    start: int = 0
    pretrain_epochs: int = 0
    """Epochs at `start` before anything more goes."""
    all_beyond: float = math.inf
    """Leave out all, from so many tokens on."""

    def scheduled(self, batch: int) -> float:
        """Tokens scheduled for removal at a batch (counted from 0); infinity: all."""
        every = round(self.steps_per_epoch / self.per_epoch)
        trained = max(0, batch - self.pretrain_epochs * self.steps_per_epoch)
        count = self.start + (trained // every if every else batch + 1)
        return math.inf if max(count, self.start) >= self.all_beyond else count

    def applied(self, batch: int) -> float:
        """Tokens left out at a batch: the schedule's, and `start` while pretraining."""
        return self.start if batch < self.pretrain_epochs * self.steps_per_epoch else self.scheduled(batch)

    def grows(self, batch: int) -> bool:
        """True where the schedule takes a step; the released code makes a new optimizer there, unless the batch before
        had nothing left to leave out."""
        first = math.inf if self.start >= self.all_beyond else self.start
        return self.scheduled(batch) > (self.scheduled(batch - 1) if batch else first)


def without_tokens(chain: Sequence[T], count: float, side: Side = "left") -> Sequence[T]:
    """A chain of tokens without `count` of them from one side.

    >>> without_tokens("abcd", 1), without_tokens("abcd", 3, "right"), without_tokens("abcd", math.inf)
    ('bcd', 'a', '')
    """
    keep = max(0, len(chain) - int(min(count, len(chain))))
    return chain[len(chain) - keep :] if side == "left" else chain[:keep]


def _cut(chain: str, language: str) -> tuple[list[str], list[tuple[int, str]]]:
    """A chain in pieces, and which of them are sentences: index and language. Sentences never cross a marker."""
    pieces: list[str] = []
    places: list[tuple[int, str]] = []

    def add(text: str, code: str) -> None:
        body = text.rstrip("\n")
        for sentence in sentences(body, code):
            if sentence.strip():
                places.append((len(pieces), code))
            pieces.append(sentence)
        pieces.append(text[len(body) :])  # the line break before the next marker is no part of a sentence

    at, code = 0, language
    for found in MARKER.finditer(chain):
        add(chain[at : found.start()], code)
        pieces.append(found[0])
        at, code = found.end(), found[1]
    add(chain[at:], code)
    return pieces, places


def _ends(text: str, language: str) -> list[int]:
    """Where sentences end, for languages with blanks between words."""
    short = _NO_END.get(language, _NO_END["en"])
    ends = []
    for found in _STOP.finditer(text):
        if found[4] is None and found[1] == "." and not found[2]:
            before = text[: found.start()].rsplit(None, 1)[-1:] or [""]
            word = before[0].lower().lstrip("(\"'„“«")
            following = text[found.end() :][:1]
            if word == "no" and not following.isdigit():
                ends.append(found.end())  # "No. 5" is a number, "No." an answer
                continue
            if word in short or following.islower() or (len(word) == 1 and word.isalpha() and language != "fr"):
                continue
            if language == "de" and word.isdecimal() and len(word) <= 2:
                continue  # an ordinal: am 3. Mai
        ends.append(found.end())
    return ends


def _japanese_words(sentence: str) -> list[str]:
    """Roughly bunsetsu: a word and the kana that hang on it, by changes of script and leading particles."""
    parts: list[str] = []
    last = ""
    for found in _JA_RUN.finditer(sentence):
        run, kind = found[0], str(found.lastgroup)
        after_stop = bool(parts) and parts[-1][-1] in "、。，．,.！？!?…"
        joins = (
            kind in ("space", "mark")
            or (kind == "hiragana" and not after_stop)
            or (kind != "hiragana" and last == "digit")
            or (last == "mark" and bool(parts) and parts[-1][-1] in '「『（(["“')
            or bool(parts and parts[-1] in ("お", "ご"))
        )
        particle = _PARTICLE.match(run) if kind == "hiragana" and joins and last not in ("", "space") else None
        if particle:
            parts[-1] += particle[0]
            parts.append(run[particle.end() :])
        elif joins and parts:
            parts[-1] += run
        else:
            parts.append(run)
        last = kind
    return parts
