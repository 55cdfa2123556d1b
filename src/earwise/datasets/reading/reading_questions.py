"""Questions about words that a model is given as text, with options that say the same otherwise.

The embedded model's connector tells the decoder what it hears in words ("Sound: dog, wolf, fox, cat"). Whoever asks
words the options otherwise ("a domestic animal that barks"), and the decoder has to find the likeliest word among them.
These rows teach that on a few thousand nouns, without sound: four words behind a lead, the likeliest first, and options
that are synonyms or definitions; the right option is that of the first word that has one. Others ask yes or no. Options
of one question share no word and are no kind of each other. A share of the nouns is kept for validation, with wordings
of questions of its own. `reading.build_reading` reads WordNet and writes the manifest. All functions are pure. Ours.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from earwise.datasets.labels.label_names import with_article
from earwise.datasets.labels.varied import wordings
from earwise.datasets.labels.varied.wordings import BARE_SHARE
from earwise.datasets.reading.wordnet import Synset, ancestors
from earwise.types import Example, Text, Turn

TASK = "reading"
TOPICS = frozenset({4, 5, 6, 11, 13, 17, 18, 19, 20})
"""Lexicographer's files whose nouns can be heard or seen: acts, animals, artifacts, events, food, natural objects,
persons, phenomena, plants."""
MAX_NOUNS = 5000
"""Number of the most frequent meanings that are used."""
DEFINITION_WORDS = (2, 9)
"""Smallest and largest number of words of a definition that serves as an option."""
LEADS: Mapping[str, float] = {"Sound": 0.44, "Instrument": 0.44, "Type": 0.04, "Mood": 0.04, "Language": 0.04}
"""Lead in front of the words -> its share. These are words that the connector `labels` uses."""
KINDS = ("sound", "music", "speech")
NUM_WORDS = 4
PLACES = (0.65, 0.18, 0.10, 0.07)
"""Share of the questions in which the first, second ... word is the one with an option."""
NUM_CHOICES: Mapping[int, float] = {2: 2, 3: 2, 4: 5, 5: 1, 6: 1, 8: 0.5}
"""Number of options -> weight."""
YES_NO_SHARE = 0.12
SAME_SHARE = 0.15
"""Share of the right options that are the word itself."""
NEAR_SHARE = 0.7
"""Share of the questions whose other options are of the right one's topic."""
TRIES = 50


@dataclass(frozen=True, slots=True)
class Noun:
    """A meaning that can be asked for.

    Attributes:
        synset: The meaning.
        words: Its common words, at least one.
        definition: Its definition, or None if that is no option.
        ancestors: Offsets of what it is a kind of.
    """

    synset: Synset
    words: tuple[str, ...]
    definition: str | None
    ancestors: frozenset[str]


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """Which questions to write."""

    limit: int = 10_000
    """Number of questions."""
    val_share: float = 0.05
    """Share of the nouns, and about of the questions, of the split val."""
    seed: int = 0
    """Seed of all choices."""


def build_reading_questions(synsets: Mapping[str, Synset], options: ReadingOptions | None = None) -> Iterator[Example]:
    """The questions, of which each split's use nouns of that split alone.

    Args:
        synsets: Offset -> synset (`wordnet.read_nouns`).
        options: Which questions to write; None for the defaults.
    """
    options = options or ReadingOptions()
    nouns = common_nouns(synsets)
    random.Random(f"{options.seed}:nouns").shuffle(nouns)
    num_val = round(options.val_share * len(nouns))
    for split, members in (("val", nouns[:num_val]), ("train", nouns[num_val:])):
        share = options.val_share if split == "val" else 1 - options.val_share
        by_topic: dict[int, list[Noun]] = {}
        for noun in members:
            by_topic.setdefault(noun.synset.file_number, []).append(noun)
        for number in range(round(options.limit * share)):
            writer = _Writer(members, by_topic, split, random.Random(f"{options.seed}:{split}:{number}"))
            example = writer.write(f"{TASK}-{split}-{number}")
            if example is not None:
                yield example


def common_nouns(synsets: Mapping[str, Synset]) -> list[Noun]:
    """The meanings that are used, the most frequent first.

    Args:
        synsets: Offset -> synset.
    """
    nouns = []
    for synset in synsets.values():
        words = tuple(word for word in synset.words if _is_common(word))
        definition = synset.definition if _is_option(synset.definition) else None
        if synset.file_number in TOPICS and synset.count > 0 and words and (len(words) > 1 or definition):
            nouns.append(Noun(synset, words, definition, frozenset(ancestors(synset, synsets))))
    return sorted(nouns, key=lambda noun: (-noun.synset.count, noun.synset.offset))[:MAX_NOUNS]


def _is_common(word: str) -> bool:
    """Whether a word is one or two plain words in lower case."""
    return (
        word.islower() and word.isascii() and word.replace(" ", "").replace("-", "").isalpha() and word.count(" ") < 2
    )


def _is_option(definition: str) -> bool:
    """Whether a definition is short and plain enough to be an option."""
    shortest, longest = DEFINITION_WORDS
    return shortest <= len(definition.split()) <= longest and definition.isascii() and definition[0].islower()


class _Writer:
    """Writes one question.

    Args:
        nouns: All nouns of the split.
        by_topic: The same by topic.
        split: The split.
        rng: Source of randomness.
    """

    def __init__(
        self, nouns: Sequence[Noun], by_topic: Mapping[int, Sequence[Noun]], split: str, rng: random.Random
    ) -> None:
        self._nouns, self._by_topic, self._split, self._rng = nouns, by_topic, split, rng

    def write(self, identifier: str) -> Example | None:
        """A question about a random noun; None if there are too few nouns to ask about it."""
        # Topics are of very different sizes: a third of the nouns is drawn by topic.
        topic = self._rng.choice(sorted(self._by_topic)) if self._by_topic and self._rng.random() < 0.3 else None
        pool = self._nouns if topic is None else self._by_topic[topic]
        if not pool:
            return None
        noun = self._rng.choice(pool)
        if self._rng.random() < YES_NO_SHARE:
            return self._yes_no(identifier, noun)
        return self._choice(identifier, noun)

    def _choice(self, identifier: str, noun: Noun) -> Example | None:
        """Which of the options the words name."""
        place = self._rng.choices(range(NUM_WORDS), PLACES)[0]
        others = self._draw(NUM_WORDS - 1, [noun], near=self._rng.random() < 0.6)
        shown = self._rng.choice(noun.words)
        right = self._form(noun, shown) if self._rng.random() >= SAME_SHARE else self._article(shown)
        size = self._rng.choices(list(NUM_CHOICES), list(NUM_CHOICES.values()))[0]
        # Words behind the right one may have an option too: they are less likely.
        later = [other for other in others[place:] if self._rng.random() < 0.5]
        wrong = [*later, *self._draw(size, [noun, *others], near=self._rng.random() < NEAR_SHARE)]
        wrong_texts = [self._form(other, "") for other in wrong]
        texts = list(dict.fromkeys([right, *(text for text in wrong_texts if text)]))[:size]
        if right is None or len(texts) < 2 or len(others) < NUM_WORDS - 1:
            return None
        words = [self._rng.choice(other.words) for other in others]
        words.insert(place, shown)
        question = wordings.draw_question(TASK, self._split, self._rng)
        choices = self._rng.sample([text for text in texts if text], len(texts))
        return self._example(identifier, noun, f"{self._shown(words)}\n{question}", tuple(choices), right)

    def _yes_no(self, identifier: str, noun: Noun) -> Example | None:
        """Whether the first of the words is something."""
        is_true = self._rng.random() < 0.5
        others = self._draw(NUM_WORDS - 1, [noun], near=False)
        shown = self._rng.choice(noun.words)
        wrong = self._draw(1, [noun, *others], near=True)
        asked = self._form(noun, shown) if is_true else self._form(wrong[0], "") if wrong else None
        if asked is None or len(others) < NUM_WORDS - 1:
            return None
        words = [shown, *(self._rng.choice(other.words) for other in others)]
        question = wordings.draw_question(f"yes_no.{TASK}", self._split, self._rng).format(x=asked)
        choices = self._rng.choice((("yes", "no"), ("no", "yes"), ()))
        answer = "yes" if is_true else "no"
        return self._example(identifier, noun, f"{self._shown(words)}\n{question}", choices, answer)

    def _draw(self, number: int, taken: Sequence[Noun], *, near: bool) -> list[Noun]:
        """Nouns that share no word with those that are taken or each other, and are no kind of them.

        Args:
            number: How many; fewer are returned if the pool has no more.
            taken: The nouns that are in the question; the first is the one that is asked for.
            near: Whether they are of the topic of the first.
        """
        pool = self._by_topic[taken[0].synset.file_number] if near else self._nouns
        drawn: list[Noun] = []
        for _ in range(TRIES):
            if len(drawn) >= number:
                break
            candidate = self._rng.choice(pool)
            if not any(_are_related(candidate, other) for other in (*taken, *drawn)):
                drawn.append(candidate)
        return drawn

    def _form(self, noun: Noun, shown: str) -> str | None:
        """A noun in other words than the one that is shown; None if there are none."""
        synonyms = [word for word in noun.words if word != shown]
        if noun.definition and (not synonyms or self._rng.random() < 0.5):
            return noun.definition
        return self._article(self._rng.choice(synonyms)) if synonyms else None

    def _article(self, word: str) -> str:
        """A word, often with its article."""
        return word if self._rng.random() < BARE_SHARE else with_article(word)

    def _shown(self, words: Sequence[str]) -> str:
        """The words as the connector would say them."""
        lead = self._rng.choices(list(LEADS), list(LEADS.values()))[0]
        text = f"{lead}: {', '.join(words)}" + ("." if self._rng.random() < 0.5 else "")
        return text + (f" Type: {self._rng.choice(KINDS)}" if self._rng.random() < 0.3 else "")

    def _example(self, identifier: str, noun: Noun, text: str, choices: tuple[str, ...], answer: str) -> Example:
        """A row without sound."""
        return Example(
            id=identifier,
            turns=(Turn("user", (Text(text),)),),
            answer=(answer,),
            choices=choices,
            task=TASK,
            category="text",
            source="WordNet",
            licence="WordNet",
            group=f"wordnet-{noun.synset.offset}",
            split=self._split,  # type: ignore[arg-type]  # train or val
            text_only=True,
            meta={"field": TASK},
        )


def _are_related(noun: Noun, other: Noun) -> bool:
    """Whether two nouns share a word, or one is a kind of the other."""
    offsets = (noun.synset.offset, other.synset.offset)
    is_kind = offsets[0] in other.ancestors or offsets[1] in noun.ancestors
    return is_kind or offsets[0] == offsets[1] or bool(set(noun.synset.words) & set(other.synset.words))
