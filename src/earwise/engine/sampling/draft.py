"""N-gram drafts for speculative decoding: guess a sample's next tokens, so that one pass computes several of them.

A decoding pass costs the same for every row count up to a limit: on a CPU, prepacked weights are padded to a fixed
number of rows; on an accelerator, the pass waits for the weights to be read. Rows that would be padding therefore
compute draft tokens instead. `engine.decode_loop` verifies them exactly: at each draft token it draws with the same
random number that the sample would have used anyway, so a draft token is accepted if and only if it is what the sample
draws. Drafts change how many passes a rollout takes and nothing else.

Drafts are looked up in n-gram counts of the prompts (options and tags are often repeated) and of the samples drawn so
far (answers to one question resemble each other). The counts live for one `generate` call only, so that a resumed run
computes the same passes as an uninterrupted one.

Source: prompt lookup decoding (n-grams of the context as drafts) and token-tree verification in one pass are known
forms of speculative decoding. Deviation: verification reuses the sampler's own random numbers instead of rejection
sampling.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_CONTEXT = 3
"""Longest context that is looked up, in tokens."""
MIN_PROBABILITY = 0.1
"""Draft tokens whose estimated probability is lower are not worth a row."""

NgramCounts = dict[tuple[int, ...], dict[int, int]]
"""Context -> next token -> how often it followed."""


@dataclass(frozen=True, slots=True)
class DraftToken:
    """A token that is computed before it is known whether a sample draws it.

    Attributes:
        leaf: Index of the leaf of the token tree below which the draft stands.
        parent: Index of the draft token that it follows, in the order of the list; -1 if it follows the leaf's own
            token.
        token: Token id.
        depth: Distance from the leaf's token, from 1.
    """

    leaf: int
    parent: int
    token: int
    depth: int


class NgramDrafter:
    """N-gram counts of the prompts and completions of one `generate` call.

    Args:
        prompts: Token ids of each prompt.
        end_ids: Ids of end tokens. They are never drafted, since nothing follows them.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], end_ids: Sequence[int] = ()) -> None:
        self._end_ids = frozenset(end_ids)
        self._prompt_counts: list[NgramCounts] = []
        self._completion_counts: NgramCounts = {}
        for ids in prompts:
            counts: NgramCounts = {}
            for index in range(1, len(ids)):
                _count(counts, ids[max(0, index - MAX_CONTEXT) : index], ids[index], 1)
            self._prompt_counts.append(counts)

    def update(self, context: Sequence[int], token: int, samples: int = 1) -> None:
        """Count a drawn token.

        Args:
            context: Tokens before it; only the last `MAX_CONTEXT` are used.
            token: Token id that was drawn.
            samples: Number of samples that drew it.
        """
        _count(self._completion_counts, context[-MAX_CONTEXT:], token, samples)

    def propose(self, leaves: Sequence[tuple[int, Sequence[int], int]], max_tokens: int) -> list[DraftToken]:
        """The likeliest continuations of some leaves, as token trees.

        A best-first search: the draft token with the highest estimated probability (the product along its path) is
        taken next, and offers its own successors.

        Args:
            leaves: For each leaf the index of its prompt, its last tokens (the one about to be computed included), and
                the largest allowed depth of a draft token below it.
            max_tokens: Largest number of draft tokens over all leaves.
        Returns:
            Draft tokens ordered by depth, so that parents come before their children.
        """
        heap: list[tuple[float, int, int, tuple[int, ...], int, int]] = []
        drafts: list[DraftToken] = []
        pushed = 0

        def push_successors(leaf: int, parent: int, context: tuple[int, ...], probability: float, depth: int) -> None:
            nonlocal pushed
            prompt, _, max_depth = leaves[leaf]
            if depth > max_depth:
                return
            for token, share in self._successors(prompt, context):
                if token not in self._end_ids and probability * share >= MIN_PROBABILITY:
                    pushed += 1  # breaks ties between equal probabilities: first in, first out
                    extended = (*context, token)[-MAX_CONTEXT:]
                    heapq.heappush(heap, (-probability * share, pushed, leaf, extended, parent, depth))

        if max_tokens > 0:
            for leaf, (_, last_tokens, _) in enumerate(leaves):
                push_successors(leaf, -1, tuple(last_tokens[-MAX_CONTEXT:]), 1.0, 1)
        while heap and len(drafts) < max_tokens:
            negative, _, leaf, context, parent, depth = heapq.heappop(heap)
            drafts.append(DraftToken(leaf, parent, context[-1], depth))
            push_successors(leaf, len(drafts) - 1, context, -negative, depth + 1)
        order = sorted(range(len(drafts)), key=lambda index: drafts[index].depth)
        new_index = {old: new for new, old in enumerate(order)} | {-1: -1}
        return [replace(drafts[index], parent=new_index[drafts[index].parent]) for index in order]

    def _successors(self, prompt: int, context: tuple[int, ...]) -> list[tuple[int, float]]:
        """Next tokens and their estimated probabilities, after the longest suffix of the context that was counted."""
        for start in range(len(context)):
            in_prompt = self._prompt_counts[prompt].get(context[start:])
            in_completions = self._completion_counts.get(context[start:])
            if in_prompt or in_completions:
                counts = dict(in_completions or {})
                for token, count in (in_prompt or {}).items():
                    counts[token] = counts.get(token, 0) + count
                total = sum(counts.values()) + 1  # one more: a context seen once is no certainty
                return [(token, count / total) for token, count in counts.items()]
        return []


def _count(counts: NgramCounts, context: Sequence[int], token: int, times: int) -> None:
    """Add to the counts of a token after every suffix of a context."""
    for start in range(len(context)):
        followers = counts.setdefault(tuple(context[start:]), {})
        followers[token] = followers.get(token, 0) + times
