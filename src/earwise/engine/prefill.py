"""Prefill: all prompts of a batch go through the decoder as token trees, whole or in chunks, before sampling begins.

Between `engine.local`, which encodes the prompts, and `engine.decode_loop`, which continues them. In chunks, a long
prompt can be interrupted by other work, or given up, and needs no attention mask of its whole length.

Which prompts share one token tree (`group_prompts`): those about the same clip, as long as sharing costs less than it
saves. A tree computes the common prefix of its prompts once, but its attention is dense: every token is compared with
all tokens of the tree, also with those of other branches, and masked. Prompts with a long common prefix and short
questions gain much; prompts that differ for most of their length would make one large tree that costs more than they do
alone. The server asks for the groups, too, to know the size of a batch before it is started.
"""

from bisect import bisect_left
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from earwise.engine.decode_loop import DecodeStats, Leaf
from earwise.engine.kv_cache import StepLayout, TreeCache
from earwise.forest import Forest, TokenPath, build_tree, insert_audio_embeddings, pack
from earwise.models.base import AudioLM

LAYER_COST = 2048
"""Number of attended tokens that cost as much as one token's passage through the layers of a small decoder."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts whose keys and values are in the cache.

    Attributes:
        leaves: One leaf per prompt with all its samples.
        logits: Logits of the first token of each prompt's completion, `(prompts, vocab)`.
        next_slots: Next free slot of each tree.
    """

    leaves: list[Leaf]
    logits: Tensor
    next_slots: list[int]


def prefill(
    model: AudioLM, paths: Sequence[TokenPath], audio_embeddings: dict[int, Tensor], cache: TreeCache, n: int,
    stats: DecodeStats, chunk_tokens: int | None = None,
) -> Generator[None, None, Prefill]:  # fmt: skip
    """Compute all prompts in one packed pass, or in chunks.

    Args:
        model: The model.
        paths: Token path of each prompt.
        audio_embeddings: Embeddings of each clip, by the number that the paths give it.
        cache: Empty cache; receives the prompts' keys and values.
        n: Number of samples per prompt.
        stats: Counters, increased here.
        chunk_tokens: Largest number of tokens of a tree in one pass; None computes all in one.
    Yields:
        Nothing, after each chunk but the last.
    Returns:
        Where sampling continues.
    """
    device = next(model.module.parameters()).device
    tree_groups = group_by_clip(paths)
    # Only the last token of each prompt is a target, so that the tree's branches say where the prompts end.
    trees = [build_tree([_with_last_token_as_target(paths[index]) for index in group]) for group in tree_groups]
    forest = pack(trees, device)
    sizes = [len(tree) for tree in trees]
    layout = _WholeLayout(forest, sizes, device)
    embeddings = insert_audio_embeddings(model.embed(forest.ids), forest, audio_embeddings)
    if chunk_tokens is None or layout.width <= chunk_tokens:
        cache.begin(layout.chunk(slice(None), 0, layout.width))
        hidden = model.decode(embeddings, forest.positions, cache)
    else:
        cache.reserve(layout.width)
        hidden = torch.zeros_like(embeddings)
        for start in range(0, layout.width, chunk_tokens):
            stop = min(start + chunk_tokens, layout.width)
            tokens = ((layout.slot_index >= start) & (layout.slot_index < stop)).nonzero()[:, 0]
            cache.begin(layout.chunk(tokens, start, stop))
            hidden[tokens] = model.decode(embeddings[tokens], forest.positions[tokens], cache)
            if stop < layout.width:
                yield
    stats.computed_tokens += len(forest)
    leaves: list[Leaf] = [Leaf(-1, -1, [], -1, -1, -1) for _ in paths]
    last_tokens = torch.zeros(len(paths), dtype=torch.long)
    queries: list[tuple[int, int, int]] = []  # tree, query, slot
    for tree, group in enumerate(tree_groups):
        for query, (index, branch) in enumerate(zip(group, trees[tree].branches, strict=True)):
            leaves[index] = Leaf(index, tree, list(range(n)), query, token=-1, position=len(paths[index].ids))
            last_tokens[index] = forest.tree_offsets[tree] + branch[0]
            queries.append((tree, query, branch[0]))
    cache.begin(layout.of_queries(torch.tensor(queries, device=device), max(map(len, tree_groups))))
    return Prefill(leaves, model.logits(hidden[last_tokens.to(device)]), sizes)


class _WholeLayout:
    """Trees, slots and subtree ends of all tokens of a prefill, from which the layouts of its passes are cut."""

    def __init__(self, forest: Forest, sizes: list[int], device: torch.device) -> None:
        self.width = max(sizes)
        starts = torch.tensor(forest.tree_offsets[:-1], device=device)
        repeats = torch.tensor(sizes, device=device)
        self._num_trees = len(sizes)
        self._slots = torch.arange(self.width, device=device)
        self.tree_index = torch.repeat_interleave(
            torch.arange(len(sizes), device=device), repeats, output_size=len(forest)
        )
        self.slot_index = torch.arange(len(forest), device=device) - starts[self.tree_index]
        self._subtree_ends = torch.zeros(len(sizes), self.width, dtype=torch.long, device=device)
        self._subtree_ends[self.tree_index, self.slot_index] = forest.subtree_ends - starts[self.tree_index]

    def chunk(self, tokens: Tensor | slice, start: int, stop: int) -> StepLayout:
        """The layout of the pass that computes the slots from `start` to `stop` of every tree."""
        queries, keys = self._slots[start:stop], self._slots[:stop]
        mask = (keys[None, None] <= queries[None, :, None]) & (
            queries[None, :, None] < self._subtree_ends[:, None, :stop]
        )
        mask |= keys[None, None] == queries[None, :, None]  # a padded query must see something
        slot_index = self.slot_index[tokens]
        return StepLayout(self.tree_index[tokens], slot_index - start, slot_index, mask[:, None])

    def of_queries(self, table: Tensor, num_queries: int) -> StepLayout:
        """The layout of given tokens, for the pass that continues them.

        Args:
            table: One row for each token: tree, query and slot.
            num_queries: Largest number of queries of a tree.
        """
        tree_index, query_index, slot_index = table.unbind(1)
        mask = torch.zeros(self._num_trees, 1, num_queries, self.width, dtype=torch.bool, device=table.device)
        visible = (self._slots <= slot_index[:, None]) & (slot_index[:, None] < self._subtree_ends[tree_index])
        mask[tree_index, 0, query_index] = visible
        return StepLayout(tree_index, query_index, slot_index, mask)


def group_by_clip(paths: Sequence[TokenPath]) -> list[list[int]]:
    """Group prompts into trees: those with the same first clip may share one; a prompt without audio has its own."""
    first_clips = [next((clip for clip in path.clips if clip >= 0), None) for path in paths]
    return [group.members for group in group_prompts([path.ids for path in paths], first_clips)]


def _with_last_token_as_target(path: TokenPath) -> TokenPath:
    """The same path with its last token as the only target."""
    return TokenPath(path.ids, (False,) * (len(path.ids) - 1) + (True,), path.clips)


@dataclass(slots=True)
class TreeGroup:
    """Prompts that share a tree.

    Attributes:
        members: Indices of the prompts.
        size: Number of tokens of the tree, as far as the first prompt's prefix is shared.
    """

    members: list[int] = field(default_factory=list)
    size: int = 0


def group_prompts(prompts: Sequence[Sequence[int]], first_clips: Sequence[Hashable]) -> list[TreeGroup]:
    """Group prompts into trees.

    Args:
        prompts: Token ids of each prompt, as tuples or lists.
        first_clips: What identifies the first clip of each prompt; None for a prompt without audio, which has a tree of
            its own.
    Returns:
        The groups, in the order of their first prompts.

    >>> audio = [7] * 100
    >>> [group.members for group in group_prompts([audio + [1], audio + [2], [3], [3]], ["a", "a", None, None])]
    [[0, 1], [2], [3]]
    >>> groups = group_prompts([[7] + [1] * 900, [7] + [2] * 900, [7] + [3] * 900], ["a"] * 3)
    >>> [(group.members, group.size) for group in groups]
    [([0], 901), ([1], 901), ([2], 901)]
    """
    groups: list[TreeGroup] = []
    open_groups: dict[Hashable, TreeGroup] = {}
    for index, (ids, clip) in enumerate(zip(prompts, first_clips, strict=True)):
        group = open_groups.get(clip) if clip is not None else None
        if group is not None:
            shared = shared_prefix(prompts[group.members[0]], ids)
            own = len(ids) - shared
            if 2 * group.size * own + own * own <= shared * LAYER_COST + len(ids) ** 2:
                group.members.append(index)
                group.size += own
                continue
        group = TreeGroup([index], len(ids))
        groups.append(group)
        if clip is not None:
            open_groups[clip] = group
    return groups


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal tokens at the beginning of two prompts.

    >>> shared_prefix((1, 2, 3, 4), (1, 2, 4)), shared_prefix((), (1,)), shared_prefix((1, 2), (1, 2))
    (2, 0, 2)
    """
    shorter = min(len(first), len(second))
    return bisect_left(range(1, shorter + 1), True, key=lambda length: first[:length] != second[:length])
