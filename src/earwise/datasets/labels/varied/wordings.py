"""The many wordings of one label or question, and which of them are held back for validation.

A model that has met each label in one wording learns to write it by heart, and then cannot choose "a woman" for a clip
that it knows as "woman". Questions in many wordings teach it to read the options; whether it reads is measured with
wordings that it has never met. The tables are files (`assets/wordings`): before `||` stands what is trained on, behind
it what only validation uses. All functions are pure.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from earwise.datasets.labels.label_names import with_article

FOLDER = Path(__file__).parents[3] / "assets" / "wordings"
ARTICLE = "~"
"""First character of a wording that may take an indefinite article."""
BARE_SHARE = 0.4
"""Share of the wordings that could take an article and are used without it."""


@dataclass(frozen=True, slots=True)
class Wordings:
    """The wordings of one label or question.

    Attributes:
        train: Wordings to train on, at least one.
        val: Wordings that are never trained on; empty if there are none.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]

    def of_split(self, split: str) -> tuple[str, ...]:
        """The wordings of a split; those for training where validation has none of its own."""
        return self.train if split == "train" or not self.val else self.val


def read_table(text: str) -> dict[str, Wordings]:
    """Parse a table of wordings.

    Args:
        text: Lines `key: wording | wording || wording`; empty lines and lines that begin with `#` are ignored.

    >>> read_table("sound.dog: ~barking dog | barking || canine")["sound.dog"].val
    ('canine',)
    """
    table = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, _, wordings = line.partition(": ")
        train, _, val = wordings.partition("||")
        table[key] = Wordings(_split(train), _split(val))
    return table


def _split(wordings: str) -> tuple[str, ...]:
    """The wordings of one side, without spaces around them."""
    return tuple(wording.strip() for wording in wordings.split("|") if wording.strip())


@cache
def label_wordings() -> Mapping[str, Wordings]:
    """`FIELD.LABEL` -> wordings of the label."""
    return read_table((FOLDER / "labels.txt").read_text(encoding="utf-8"))


@cache
def question_wordings() -> Mapping[str, Wordings]:
    """`FIELD` or `yes_no.FIELD` -> wordings of the question."""
    return read_table((FOLDER / "questions.txt").read_text(encoding="utf-8"))


def draw_label(field: str, label: str, name: str, split: str, rng: random.Random) -> str:
    """A wording of a label.

    Args:
        field: Field of the label.
        label: The label as the collection states it.
        name: Its display name, a wording of its own: the only one of labels that are in no table.
        split: `train` or another split; see `Wordings.of_split`.
        rng: Source of randomness.
    """
    known = label_wordings().get(f"{field}.{label}")
    if known is None:
        options: Sequence[str] = (ARTICLE + name,)
    elif split == "train":
        options = (*known.train, name)
    else:
        options = known.of_split(split)
    return with_random_article(rng.choice(options), rng)


def with_random_article(wording: str, rng: random.Random) -> str:
    """A wording without its mark, and often with its article.

    >>> with_random_article("~owl", random.Random(0)), with_random_article("rain", random.Random(0))
    ('an owl', 'rain')
    """
    bare = wording.removeprefix(ARTICLE)
    return bare if bare == wording or rng.random() < BARE_SHARE else with_article(bare)


def draw_question(field: str, split: str, rng: random.Random) -> str:
    """A wording of the question about a field; `yes_no.FIELD` holds `{x}`."""
    return rng.choice(question_wordings()[field].of_split(split))
