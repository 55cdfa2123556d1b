"""The decoding loop: sample many completions as one growing radix tree, with speculative decoding in spare rows.

Samples of a prompt that are equal so far stand on the same leaf of a token tree. One iteration of the loop

1. computes the last token of every leaf, and draft tokens below the leaves, in one forward pass (`_forward`);
2. draws, at every leaf and at every draft token, the next token of every sample of the leaf as if the sample stood
   there (`_draw`); its random number depends on the position only (`engine.sampling.rng`), so this is what the
   sample would draw there in any batch and with any drafts;
3. walks every sample down the draft tokens for as long as they are what it drew (`_walk`). Accepted drafts thus
   advance a sample by several tokens per pass; where samples draw different tokens, the leaf splits.

A leaf computes its next-token distribution once however many samples stand on it, and forking copies nothing
(`engine.kv_cache`). The samples are nevertheless independent and identically distributed, as if drawn one by one.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from earwise.engine.base import SamplingParams
from earwise.engine.kv_cache import TreeCache, next_layout
from earwise.engine.sampling.draft import MAX_CONTEXT, DraftToken, NgramDrafter
from earwise.engine.sampling.draw import DrawnTokens, draw_tokens
from earwise.engine.sampling.pause import PauseRule
from earwise.engine.sampling.rng import UniformDraws
from earwise.engine.static_cache import StaticCache
from earwise.models.base import AudioLM


@dataclass(slots=True)
class PartialCompletion:
    """One sample while it is being decoded.

    Attributes:
        token_ids: Tokens drawn so far, the end token included.
        logprobs: Natural-log probability of each token at temperature 1.
        finished: True once the end token was drawn.
        entropies: Entropy of the next token before each token, where pauses are made; see `Completion`.
        confidences: Confidence at each token, where it was asked for; see `Completion`.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    entropies: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)


StepCallback = Callable[[Sequence[Sequence[PartialCompletion]]], Collection[tuple[int, int]]]
"""Called after every token with the samples of every prompt; returns the samples to stop early, as (prompt, sample)."""


@dataclass(slots=True)
class Leaf:
    """A leaf of a token tree: the samples that have drawn the same tokens so far.

    Attributes:
        prompt: Index of the prompt.
        tree: Index of the tree in the KV cache.
        samples: Indices of the samples among the prompt's samples.
        parent_query: Query index, in the previous pass, of the token before the leaf's.
        token: Token id at the leaf, which is not computed yet.
        position: Position of that token in its sequence.
    """

    prompt: int
    tree: int
    samples: list[int]
    parent_query: int
    token: int
    position: int


@dataclass(slots=True)
class DecodeStats:
    """Counts of the work done by an engine since it was made.

    Attributes:
        computed_tokens: Tokens computed that belong to a prompt or a completion, each once however many samples
            share it.
        draft_tokens: Draft tokens computed.
        accepted_tokens: Draft tokens that at least one sample drew.
        sampled_tokens: Tokens of all completions together.
        forward_passes: Decoding passes, prefill not included.
    """

    computed_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    sampled_tokens: int = 0
    forward_passes: int = 0


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """The completions that one loop samples.

    Attributes:
        prompts: Token ids of each prompt.
        completions: One list of samples per prompt; the loop fills them in.
        draws: Random numbers of each prompt's samples.
        sampling_params: Length limit, temperature and truncation.
        callback: Called after every token, or None.
        pause: Where pause tokens are put, or None.
    """

    prompts: Sequence[Sequence[int]]
    completions: list[list[PartialCompletion]]
    draws: Sequence[UniformDraws]
    sampling_params: SamplingParams
    callback: StepCallback | None = None
    pause: PauseRule | None = None


@dataclass(slots=True)
class _PassResult:
    """One forward pass: a row for each leaf, then a row for each draft token.

    Attributes:
        leaves: The leaves that were computed.
        drafts: Draft tokens below them, parents first.
        queries: Query index of each row within its tree.
        draft_slots: KV slot of each draft token.
        logits: Next-token logits, `(rows, vocab)`.
    """

    leaves: list[Leaf]
    drafts: list[DraftToken]
    queries: list[int]
    draft_slots: list[int]
    logits: Tensor

    def rows(self) -> Iterator[tuple[Leaf, int]]:
        """For each row its leaf and its depth below the leaf's token (0 for the leaf itself)."""
        yield from ((leaf, 0) for leaf in self.leaves)
        yield from ((self.leaves[draft.leaf], draft.depth) for draft in self.drafts)

    def draft_tokens(self) -> list[list[int]]:
        """For each row the draft tokens from below its leaf's token down to the row's own."""
        below: list[list[int]] = []
        for draft in self.drafts:
            below.append([*(below[draft.parent] if draft.parent >= 0 else ()), draft.token])
        return [*([] for _ in self.leaves), *below]


class DecodeLoop:
    """Decodes one group of prompts whose prefill is in the cache.

    Args:
        model: Model that decodes.
        cache: KV cache that holds the prompts.
        next_slots: First unused slot of each tree.
        request: Prompts, samples to fill in, and how to draw them.
        row_capacity: Number of rows that a pass over this many leaves can have at no extra cost; drafts fill the rest.
        stats: Counters, increased here.
    """

    def __init__(
        self, model: AudioLM, cache: TreeCache | StaticCache, next_slots: list[int], request: DecodeRequest, *,
        row_capacity: Callable[[int], int], stats: DecodeStats,
    ) -> None:  # fmt: skip
        self._model, self._cache = model, cache
        self._next_slots = next_slots
        self._free_slots: list[list[int]] = [[] for _ in next_slots]
        """Slots of each tree that hold rejected draft tokens and may be overwritten."""
        self._request, self._completions = request, request.completions
        self._max_new_tokens = request.sampling_params.max_new_tokens
        self._row_capacity, self._stats = row_capacity, stats
        self._drafter = NgramDrafter(request.prompts, model.eos_ids) if row_capacity(1) > 1 else None

    def run(self, leaves: list[Leaf], logits: Tensor) -> None:
        """Decode until every sample has ended; the arguments are those of `steps`."""
        deque(self.steps(leaves, logits), maxlen=0)

    def steps(self, leaves: list[Leaf], logits: Tensor) -> Iterator[None]:
        """Decode until every sample has ended, and yield after every pass.

        Args:
            leaves: One leaf per prompt. Its `parent_query` is that of the prompt's last token; its token is not used.
            logits: Logits of the first completion token, `(leaves, vocab)`.
        """
        result = _PassResult(leaves, [], [leaf.parent_query for leaf in leaves], [], logits)
        while leaves := self._walk(result):
            self._drop_finished_trees(leaves)
            result = self._forward(leaves, self._propose_drafts(leaves))
            yield

    def _walk(self, result: _PassResult) -> list[Leaf]:
        """Draw the next tokens of every sample and follow accepted drafts.

        Returns:
            The leaves of the samples that continue.
        """
        rows = list(result.rows())
        drawn = self._draw(result, rows)
        num_leaves = len(result.leaves)
        child_rows = {
            (draft.parent + num_leaves if draft.parent >= 0 else draft.leaf, draft.token): num_leaves + index
            for index, draft in enumerate(result.drafts)
        }
        leaf_of_row = [*range(num_leaves), *(draft.leaf for draft in result.drafts)]
        columns = [{sample: column for column, sample in enumerate(leaf.samples)} for leaf in result.leaves]
        frontier = [(row, leaf.samples) for row, leaf in enumerate(result.leaves)]
        new_leaves: list[Leaf] = []
        accepted_rows: set[int] = set()
        while frontier:
            next_frontier = []
            for row, samples in frontier:
                (leaf, depth), column = rows[row], columns[leaf_of_row[row]]
                places = {sample: column[sample] for sample in samples}
                for token, continuing in self._append(leaf.prompt, places, drawn, row).items():
                    if (child := child_rows.get((row, token))) is None:
                        position = leaf.position + depth
                        new_leaves.append(
                            Leaf(leaf.prompt, leaf.tree, continuing, result.queries[row], token, position)
                        )
                    else:
                        accepted_rows.add(child)
                        next_frontier.append((child, continuing))
            frontier = next_frontier
            callback = self._request.callback
            if callback is not None and (stopped := callback(self._completions)):
                frontier = [
                    (row, remaining)
                    for row, samples in frontier
                    if (remaining := _without(samples, rows[row][0].prompt, stopped))
                ]
                for leaf in new_leaves:
                    leaf.samples = _without(leaf.samples, leaf.prompt, stopped)
        self._count_drafts(result, accepted_rows)
        return [leaf for leaf in new_leaves if leaf.samples]

    def _count_drafts(self, result: _PassResult, accepted_rows: set[int]) -> None:
        """Count the draft tokens of a pass, and free the slots of those that nobody drew."""
        self._stats.computed_tokens += len(accepted_rows)
        self._stats.draft_tokens += len(result.drafts)
        self._stats.accepted_tokens += len(accepted_rows)
        for index, (draft, slot) in enumerate(zip(result.drafts, result.draft_slots, strict=True)):
            if len(result.leaves) + index not in accepted_rows:
                self._free_slots[result.leaves[draft.leaf].tree].append(slot)

    def _draw(self, result: _PassResult, rows: Sequence[tuple[Leaf, int]]) -> DrawnTokens:
        """Draw, at every row, the next token of every sample of the row's leaf.

        Args:
            result: The pass.
            rows: Leaf and depth of each row.
        """
        width = max(len(leaf.samples) for leaf, _ in rows)
        uniforms = None
        if self._request.sampling_params.temperature:
            uniforms = torch.zeros(len(rows), width, dtype=torch.float64)
            for row, (leaf, depth) in zip(uniforms, rows, strict=True):
                position = len(self._completions[leaf.prompt][leaf.samples[0]].token_ids) + depth
                row[: len(leaf.samples)] = self._request.draws[leaf.prompt].numbers_at(position, leaf.samples)
        pauses = None if self._request.pause is None else partial(self._pauses, result, self._request.pause)
        return draw_tokens(result.logits, uniforms, width, self._request.sampling_params, pauses)

    def _pauses(self, result: _PassResult, pause: PauseRule, entropies: Sequence[float]) -> tuple[list[bool], int]:
        """The rows where a pause is made in place of a token, and the pause token.

        Args:
            result: The pass.
            pause: Where pauses are made.
            entropies: Entropy at each row, in nats.
        """
        makes_pause = []
        for (leaf, _), below, entropy in zip(result.rows(), result.draft_tokens(), entropies, strict=True):
            so_far = self._completions[leaf.prompt][leaf.samples[0]].token_ids
            makes_pause.append(pause.applies([*so_far, *below], entropy))
        return makes_pause, pause.token_id

    def _append(self, prompt: int, places: dict[int, int], drawn: DrawnTokens, row: int) -> dict[int, list[int]]:
        """Append drawn tokens to samples that were equal so far.

        Args:
            prompt: Index of the prompt.
            places: Sample -> its place among the samples of the row's leaf.
            drawn: What was drawn.
            row: Row of the pass that the samples stand on.
        Returns:
            Token -> the samples that drew it, without samples that have ended.
        """
        first = next(iter(places))
        context = self._context(prompt, first)
        groups: dict[int, list[int]] = {}
        for sample, place in places.items():
            completion, token = self._completions[prompt][sample], drawn.tokens[row][place]
            completion.token_ids.append(token)
            completion.logprobs.append(drawn.logprobs[row][place])
            completion.entropies += drawn.entropies[row : row + 1]
            completion.confidences += drawn.confidences[row : row + 1]
            completion.finished = token in self._model.eos_ids
            groups.setdefault(token, []).append(sample)
        self._stats.sampled_tokens += len(places)
        if self._drafter is not None:
            for token, samples in groups.items():
                self._drafter.update(context, token, len(samples))
        if len(self._completions[prompt][first].token_ids) == self._max_new_tokens:
            return {}
        return {token: samples for token, samples in groups.items() if token not in self._model.eos_ids}

    def _context(self, prompt: int, sample: int) -> list[int]:
        """The last tokens of a sample for the drafter, filled up from its prompt if the completion is short."""
        ids = self._completions[prompt][sample].token_ids[-MAX_CONTEXT:]
        if len(ids) == MAX_CONTEXT:
            return ids
        return [*self._request.prompts[prompt][-MAX_CONTEXT:], *ids][-MAX_CONTEXT:]

    def _propose_drafts(self, leaves: Sequence[Leaf]) -> list[DraftToken]:
        """Draft tokens for the rows that the leaves leave free."""
        spare_rows = self._row_capacity(len(leaves)) - len(leaves)
        if self._drafter is None or spare_rows <= 0:
            return []
        contexts = []
        for leaf in leaves:
            sample = leaf.samples[0]
            max_depth = self._max_new_tokens - len(self._completions[leaf.prompt][sample].token_ids) - 1
            contexts.append((leaf.prompt, self._context(leaf.prompt, sample), max_depth))
        return self._drafter.propose(contexts, spare_rows)

    def _drop_finished_trees(self, leaves: Sequence[Leaf]) -> None:
        """Remove trees without leaves from the cache, once they are half of all trees."""
        alive = sorted({leaf.tree for leaf in leaves})
        if len(alive) > len(self._next_slots) // 2:
            return
        self._cache.select_trees(torch.tensor(alive, device=self._device))
        new_index = {old: new for new, old in enumerate(alive)}
        for leaf in leaves:
            leaf.tree = new_index[leaf.tree]
        self._next_slots = [self._next_slots[tree] for tree in alive]
        self._free_slots = [self._free_slots[tree] for tree in alive]

    def _forward(self, leaves: list[Leaf], drafts: list[DraftToken]) -> _PassResult:
        """Compute the last token of every leaf and the draft tokens below them in one pass."""
        tree_sizes = [0] * len(self._next_slots)
        queries: list[int] = []
        table: list[list[int]] = []  # one row per token: id, position, tree, parent query, query, slot

        def add_token(tree: int, token: int, position: int, parent_query: int) -> None:
            if self._free_slots[tree]:
                slot = self._free_slots[tree].pop()
            else:
                slot, self._next_slots[tree] = self._next_slots[tree], self._next_slots[tree] + 1
            queries.append(tree_sizes[tree])
            table.append([token, position, tree, parent_query, tree_sizes[tree], slot])
            tree_sizes[tree] += 1

        for leaf in leaves:
            add_token(leaf.tree, leaf.token, leaf.position, leaf.parent_query)
        for draft in drafts:
            leaf, parent_row = leaves[draft.leaf], draft.leaf if draft.parent < 0 else len(leaves) + draft.parent
            add_token(leaf.tree, draft.token, leaf.position + draft.depth, queries[parent_row])
        for leaf in leaves:
            leaf.position += 1
        # One copy to the device for all integers of the pass.
        ids, positions, tree_index, parent_query, query_index, slot_index = torch.tensor(
            table, device=self._device
        ).unbind(1)
        depths = [draft.depth for draft in drafts]
        level_sizes = [len(leaves), *(depths.count(depth) for depth in sorted(set(depths)))]
        mask_shape = (max(tree_sizes), max(self._next_slots))
        layout = next_layout(
            self._cache.mask, tree_index, parent_query, query_index, slot_index, mask_shape, level_sizes
        )
        self._stats.computed_tokens += len(leaves)
        self._stats.forward_passes += 1
        logits = self._cache.advance(self._model, ids, positions, layout)
        return _PassResult(leaves, drafts, queries, [row[-1] for row in table[len(leaves) :]], logits)

    @property
    def _device(self) -> torch.device:
        return self._cache.mask.device


def _without(samples: list[int], prompt: int, stopped: Collection[tuple[int, int]]) -> list[int]:
    """The samples of a prompt that are not stopped."""
    return [sample for sample in samples if (prompt, sample) not in stopped]
