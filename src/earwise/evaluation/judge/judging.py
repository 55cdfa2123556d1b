"""What a task says about its judge: which requests an item makes, how a reply is read, what it is worth.

Below the panel, which asks. A reply that cannot be read has no value: it is asked again, and never guessed at.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from earwise.evaluation.results import Row
from earwise.types import Example

Values = Mapping[str, Any]
"""Part of an item -> value that was read from the judge's reply."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A prompt to a judge. Its name holds a version, which changes whenever a word of it does."""

    name: str
    user: str
    """The user's message, with `{placeholders}`."""
    system: str = ""
    """The system message; empty: none."""
    max_tokens: int = 64
    """Longest reply, in tokens."""

    def messages(self, fields: Mapping[str, str]) -> tuple[dict[str, str], ...]:
        """The messages of a request; braces that are no placeholder of `fields` stay as they are."""
        text = _PLACEHOLDER.sub(lambda match: fields.get(match[1], match[0]), self.user)
        system = ({"role": "system", "content": self.system},) if self.system else ()
        return (*system, {"role": "user", "content": text})


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One question to a judge about one row."""

    item: str
    """Id of the row, with the number of its permutation where it has one."""
    part: str
    """What is asked about the row, where it is several things: an order of two answers, one of five runs."""
    prompt: str
    """Name of the prompt."""
    messages: tuple[dict[str, str], ...]
    max_tokens: int
    seed: int = 0
    """Seed that is sent along; requests that differ in nothing else are told apart by `part`."""


@dataclass(frozen=True, slots=True)
class Judging:
    """How a judge scores the items of a task."""

    prompts: tuple[JudgePrompt, ...]
    """All prompts that the requests use."""
    score_notes: Mapping[str, str]
    """Names of the scores and what each one measures."""
    headline: str
    """Name of the score that sums up a run."""
    requests: Callable[[Example, Row], Sequence[JudgeRequest]]
    """`requests(example, row)`: none for a row whose score needs no judge."""
    read: Callable[[Example, str, str], Any]
    """`read(example, part, text)`: value of a reply; None if it cannot be read."""
    score: Callable[[Example, Row, Values], dict[str, float]]
    """`score(example, row, values)`: the scores of a row from the values of its requests, all of which were read; no
    values for a row without requests."""
    sample_reply: Callable[[Example, str, bool], str]
    """`sample_reply(example, part, good)`: what a judge would write about a good answer, or a bad one; for audits."""
    applies: Callable[[Example], bool] = lambda example: True
    """`applies(example)`: whether an item is scored by the judge."""
    alone: bool = True
    """Whether such an item has no other score, so that its row has none until it is judged."""

    @property
    def name(self) -> str:
        """Names of the prompts."""
        return ", ".join(prompt.name for prompt in self.prompts)


def row_key(row: Row) -> str:
    """Name of a row among those of its run: the item's id, with the number of the order of its options after the
    first."""
    return f"{row['id']}#{row['permutation']}" if row["permutation"] else str(row["id"])


def request(row: Row, part: str, prompt: JudgePrompt, fields: Mapping[str, str], seed: int = 0) -> JudgeRequest:
    """A request about a row.

    Args:
        row: The row.
        part: What is asked about it.
        prompt: The prompt.
        fields: Texts for its placeholders.
        seed: Seed that is sent along.
    """
    return JudgeRequest(row_key(row), part, prompt.name, prompt.messages(fields), prompt.max_tokens, seed)
