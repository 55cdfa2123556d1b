"""Guesses of what a sample will say next, so that one pass computes several of its tokens.

A decoding pass on a CPU is filled up to the number of rows that weights were packed for, and on an accelerator it waits
for the weights whatever it computes: rows that would hold nothing hold guesses instead. The sampler draws at a guessed
token as it would have drawn had the token been its own; who drew something else never sees it. So a guess changes how
many passes a rollout takes, and nothing else.

Guesses are read off what was said: options and tags stand in the prompt, and answers to one question are much alike.
They depend on the prompts and draws of one call alone, so that a run that is resumed computes what it would have
computed.

Source: prompt lookup (the n-grams of a text as its own draft) and token trees verified in one pass are known ways of
speculative decoding. Verified by the numbers that the sampler would have used anyway, they leave every draw as it is.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

LONGEST = 3
"""Tokens of context that are looked up at most."""
UNLIKELY = 0.1
"""Guesses that are less likely than this are not worth their row."""

Counts = dict[tuple[int, ...], dict[int, int]]


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that may come next.

    Attributes:
        state: Number of the state that it follows.
        parent: Number of the guess that it follows, in the order of the list; -1 for the state's own token.
        token: Its id.
        depth: 1 after the state's token, 2 after that.
    """

    state: int
    parent: int
    token: int
    depth: int


class Drafts:
    """What followed what in the prompts and answers of one call.

    Args:
        prompts: Token ids of each prompt.
        ends: Tokens that nothing follows; they are not guessed.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], ends: Sequence[int] = ()) -> None:
        self._ends = frozenset(ends)
        self._asked: list[Counts] = []
        self._said: Counts = {}
        for ids in prompts:
            counts: Counts = {}
            for at in range(1, len(ids)):
                _count(counts, ids[max(0, at - LONGEST) : at], ids[at], 1)
            self._asked.append(counts)

    def learn(self, before: Sequence[int], token: int, samples: int = 1) -> None:
        """So many samples said `token` after `before` (its last tokens are enough)."""
        _count(self._said, before[-LONGEST:], token, samples)

    def guess(self, states: Sequence[tuple[int, Sequence[int], int]], rows: int) -> list[Guess]:
        """The likeliest continuations of some states, those of least depth first.

        Args:
            states: Prompt, last tokens said (the one that is about to be computed is the last), and how many tokens
                deep guesses may go.
            rows: Guesses at most, over all states.
        """
        heap: list[tuple[float, int, int, tuple[int, ...], int, int]] = []
        out: list[Guess] = []
        pushed = 0

        def offer(state: int, parent: int, context: tuple[int, ...], chance: float, depth: int) -> None:
            nonlocal pushed
            prompt, _, deepest = states[state]
            if depth > deepest:
                return
            for token, share in self._likely(prompt, context):
                if token not in self._ends and chance * share >= UNLIKELY:
                    pushed += 1
                    follows = (*context, token)[-LONGEST:]
                    heapq.heappush(heap, (-chance * share, pushed, state, follows, parent, depth))

        if rows > 0:
            for number, (_, last, _) in enumerate(states):
                offer(number, -1, tuple(last[-LONGEST:]), 1.0, 1)
        while heap and len(out) < rows:
            chance, _, state, context, parent, depth = heapq.heappop(heap)
            out.append(Guess(state, parent, context[-1], depth))
            offer(state, len(out) - 1, context, -chance, depth + 1)
        order = sorted(range(len(out)), key=lambda number: out[number].depth)
        place = {old: new for new, old in enumerate(order)} | {-1: -1}
        return [replace(out[number], parent=place[out[number].parent]) for number in order]

    def _likely(self, prompt: int, context: tuple[int, ...]) -> list[tuple[int, float]]:
        """What followed the longest part of the context that was met, and how often of all times."""
        for start in range(len(context)):
            asked, said = self._asked[prompt].get(context[start:]), self._said.get(context[start:])
            if asked or said:
                both = dict(said or {})
                for token, count in (asked or {}).items():
                    both[token] = both.get(token, 0) + count
                total = sum(both.values()) + 1
                return [(token, count / total) for token, count in both.items()]
        return []


def _count(counts: Counts, before: Sequence[int], token: int, times: int) -> None:
    for start in range(len(before)):
        followers = counts.setdefault(tuple(before[start:]), {})
        followers[token] = followers.get(token, 0) + times
