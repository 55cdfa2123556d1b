"""Listen once, branch many: token sequences that share a prefix become one tree, and trees are packed into one forward.

Almost everything that is asked about a sound shares its beginning: eight sampled completions of one prompt, four
options scored by likelihood, ten questions about one clip. The modules here turn such sequences into a single packed
forward pass in which every shared token (above all the audio tokens) is computed once:

1. `TokenPath`: one whole sequence, prompt and completion, as token ids.
2. `build_tree`: merges paths with equal beginnings into a prefix tree (trie), tokens in depth-first order.
3. `pack`: concatenates trees into one `Forest` of tensors.
4. `target_logprobs` and `branch_logprobs`: log-probabilities of the wanted tokens, per token and per branch.

In depth-first order the attention rule of a tree is a single comparison:

    query q attends to key k   iff   k <= q < subtree_ends[k]

where `subtree_ends[k]` is one past the last descendant of token k. It holds for k's own later tokens and for every
branch below them, and for no sibling branch and no other tree. A token's position is its depth, and its log-probability
is read at its parent. Log-probabilities and gradients therefore equal those of the paths run one by one.

Related work: prefix sharing in text-only training, and the ancestor test by entry and exit times of a depth-first
traversal (TRL pull request #7328).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class TokenPath:
    """One token sequence, from the first prompt token to the last completion token.

    Attributes:
        ids: Token ids; each audio clip is a run of the model's placeholder id.
        trained: True for the tokens whose log-probability is needed (the completion, or the tokens of a loss).
        clips: For each token the number of the clip that it belongs to, or -1 for text. Any integers that identify a
            clip within the batch will do.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    clips: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.trained) == len(self.clips):
            raise ValueError(
                f"a path of {len(self.ids)} ids has {len(self.trained)} trained flags and {len(self.clips)} clip "
                "numbers; give one of each per token"
            )

    def __add__(self, other: "TokenPath") -> "TokenPath":
        return TokenPath(self.ids + other.ids, self.trained + other.trained, self.clips + other.clips)


@dataclass(frozen=True, slots=True)
class Tree:
    """Paths merged into a prefix tree; tokens stand in depth-first order and indices are local to the tree.

    Attributes:
        ids: Token ids.
        parents: Index of the preceding token, or -1 for a first token.
        depths: Position of the token in its own path, from 0.
        subtree_ends: One past the index of the token's last descendant.
        clips: Clip number of the token, or -1 for text.
        branches: For each path, in the order in which the paths were given, the indices of its trained tokens.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    subtree_ends: tuple[int, ...]
    clips: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)


def build_tree(paths: Sequence[TokenPath], *, merge: bool = True) -> Tree:
    """Merge paths that begin with the same tokens into a prefix tree.

    Args:
        paths: At least one path; none may be empty.
        merge: False gives every path its own root, so that nothing is shared (the one-by-one forward that checks and
            benchmarks compare with).
    Returns:
        The tree. Equal paths share all their tokens but remain separate branches, so each contributes to the loss.
    Raises:
        ValueError: if there is no path, a path is empty, or the first token of a path is trained.
    """
    if not paths or not all(path.ids for path in paths):
        raise ValueError(
            f"a tree needs at least one path and no empty ones; got lengths {[len(path.ids) for path in paths]}"
        )
    if any(path.trained[0] for path in paths):
        raise ValueError("the first token of a path cannot be trained: nothing precedes it to predict it from")
    ids: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    subtree_ends: list[int] = []
    clips: list[int] = []
    branches: list[list[int]] = [[] for _ in paths]
    # Depth-first traversal with an explicit stack, because a path may be longer than Python's recursion limit. An entry
    # is (numbers of the paths that share a token, depth of the token, index of its parent); the first one stands for
    # the place before all first tokens. An entry without paths closes the subtree of `parent`.
    stack: list[tuple[list[int], int, int]] = [(list(range(len(paths))), -1, -1)]
    while stack:
        group, depth, parent = stack.pop()
        if not group:
            subtree_ends[parent] = len(ids)
            continue
        token = -1
        if depth >= 0:
            token = len(ids)
            ids.append(paths[group[0]].ids[depth])
            clips.append(paths[group[0]].clips[depth])
            parents.append(parent)
            depths.append(depth)
            subtree_ends.append(-1)
            for number in group:
                if paths[number].trained[depth]:
                    branches[number].append(token)
            stack.append(([], depth, token))
        children: dict[tuple[int, int, int], list[int]] = {}
        for number in group:
            path = paths[number]
            if depth + 1 < len(path.ids):
                distinct = number if not merge else 0
                children.setdefault((path.ids[depth + 1], path.clips[depth + 1], distinct), []).append(number)
        stack.extend((members, depth + 1, token) for members in reversed(children.values()))
    return Tree(
        tuple(ids), tuple(parents), tuple(depths), tuple(subtree_ends), tuple(clips), tuple(map(tuple, branches))
    )


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees concatenated into tensors for one forward pass.

    A *target* is a token whose log-probability is needed; its *source* is the token before it, whose hidden state
    predicts it. Several targets may share a source (where branches separate), and several branches a target.

    Attributes:
        ids: Token ids.
        positions: Position of each token in its own path (its depth in the tree).
        subtree_ends: One past the last descendant of each token.
        tree_offsets: Index of each tree's first token, followed by the total length.
        audio_indices: Indices of the audio tokens.
        audio_clips: Clip number of each audio token.
        audio_run_lengths: Length of each contiguous run of one clip's audio tokens, in order.
        source_indices: Indices of the distinct source tokens.
        target_sources: For each target, the number of its source in `source_indices`.
        target_ids: Token id of each target.
        branch_targets: For each branch, the numbers of its targets in order, padded with 0.
        loss_mask: True where `branch_targets` is not padding.
        branch_trees: Number of the tree that each branch belongs to.
    """

    ids: Int[Tensor, " seq"]
    positions: Int[Tensor, " seq"]
    subtree_ends: Int[Tensor, " seq"]
    tree_offsets: tuple[int, ...]
    audio_indices: Int[Tensor, " audio_seq"]
    audio_clips: tuple[int, ...]
    audio_run_lengths: tuple[int, ...]
    source_indices: Int[Tensor, " sources"]
    target_sources: Int[Tensor, "*targets"]
    target_ids: Int[Tensor, "*targets"]
    branch_targets: Int[Tensor, "branches tokens"]
    loss_mask: Bool[Tensor, "branches tokens"]
    branch_trees: Int[Tensor, " branches"]

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def attention_mask(self) -> Bool[Tensor, "seq seq"]:
        """Dense attention mask; True where the row's token attends to the column's token."""
        index = torch.arange(len(self), device=self.ids.device)
        return (index[None, :] <= index[:, None]) & (index[:, None] < self.subtree_ends[None, :])


def pack(trees: Sequence[Tree], device: torch.device | str = "cpu") -> Forest:
    """Concatenate trees into one forest. Attention is block-diagonal by construction, so there is no padding.

    Args:
        trees: The trees, in the order in which their branches are numbered.
        device: Device of the forest's tensors.
    """
    ids: list[int] = []
    positions: list[int] = []
    subtree_ends: list[int] = []
    clips: list[int] = []
    tree_offsets = [0]
    targets: dict[int, int] = {}  # packed index of a target token -> number of the target
    sources: dict[int, int] = {}  # packed index of a source token -> number of the source
    target_sources: list[int] = []
    target_ids: list[int] = []
    branch_rows: list[list[int]] = []
    branch_trees: list[int] = []
    for tree_number, tree in enumerate(trees):
        offset = tree_offsets[-1]
        ids += tree.ids
        positions += tree.depths
        subtree_ends += [offset + end for end in tree.subtree_ends]
        clips += tree.clips
        for branch in tree.branches:
            row = []
            for token in branch:
                target = targets.setdefault(offset + token, len(targets))
                if target == len(target_ids):  # a target that no earlier branch holds
                    target_sources.append(sources.setdefault(offset + tree.parents[token], len(sources)))
                    target_ids.append(tree.ids[token])
                row.append(target)
            branch_rows.append(row)
            branch_trees.append(tree_number)
        tree_offsets.append(offset + len(tree))
    width = max((len(row) for row in branch_rows), default=0)
    shape = (len(branch_rows), width)
    index_tensor = functools.partial(torch.tensor, dtype=torch.long, device=device)
    return Forest(
        ids=index_tensor(ids),
        positions=index_tensor(positions),
        subtree_ends=index_tensor(subtree_ends),
        tree_offsets=tuple(tree_offsets),
        audio_indices=index_tensor([index for index, clip in enumerate(clips) if clip >= 0]),
        audio_clips=tuple(clip for clip in clips if clip >= 0),
        audio_run_lengths=_audio_run_lengths(clips, positions),
        source_indices=index_tensor(list(sources)),
        target_sources=index_tensor(target_sources),
        target_ids=index_tensor(target_ids),
        branch_targets=index_tensor([row + [0] * (width - len(row)) for row in branch_rows]).reshape(shape),
        loss_mask=torch.tensor(
            [[True] * len(row) + [False] * (width - len(row)) for row in branch_rows], dtype=torch.bool, device=device
        ).reshape(shape),
        branch_trees=index_tensor(branch_trees),
    )


def _audio_run_lengths(clips: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
    """Length of each contiguous run of audio tokens of one clip at consecutive positions."""
    lengths: list[int] = []
    for index, clip in enumerate(clips):
        if clip >= 0 and index and clips[index - 1] == clip and positions[index] == positions[index - 1] + 1:
            lengths[-1] += 1
        elif clip >= 0:
            lengths.append(1)
    return tuple(lengths)


def assign_bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign items, in order, to bins of at most `capacity`; an item larger than that gets a bin of its own.

    Args:
        sizes: Size of each item (here: tokens of each tree).
        capacity: Largest total size of a bin (here: tokens of one forward pass).
    Returns:
        The item numbers of each bin.

    >>> assign_bins([3, 4, 9, 1], capacity=8)
    [[0, 1], [2], [3]]
    """
    bins: list[list[int]] = []
    free = 0
    for number, size in enumerate(sizes):
        if not bins or size > free:
            bins.append([])
            free = capacity
        bins[-1].append(number)
        free -= size
    return bins


def insert_audio_embeddings(
    embeddings: Float[Tensor, "seq dim"], forest: Forest, audio_embeddings: dict[int, Float[Tensor, "audio_seq dim"]]
) -> Float[Tensor, "seq dim"]:
    """Replace the embeddings of audio placeholders by the embeddings of their clips.

    Args:
        embeddings: Text embeddings of the packed tokens (whatever the placeholder embeds to at audio tokens).
        forest: The packed trees.
        audio_embeddings: Clip number -> embeddings of the clip, one row per audio token.
    Raises:
        ValueError: if a clip is missing, or the number of its embeddings differs from its placeholders.
    """
    if not forest.audio_clips:
        return embeddings
    runs = []
    start = 0
    for length in forest.audio_run_lengths:
        clip = forest.audio_clips[start]
        if clip not in audio_embeddings:
            raise ValueError(f"clip {clip} of the forest has no embeddings")
        if len(audio_embeddings[clip]) != length:
            raise ValueError(f"clip {clip} has {len(audio_embeddings[clip])} embeddings but {length} placeholders")
        runs.append(audio_embeddings[clip])
        start += length
    return embeddings.index_copy(0, forest.audio_indices, torch.cat(runs).to(embeddings.dtype))


def target_logprobs(
    hidden: Float[Tensor, "seq dim"],
    forest: Forest,
    logits: Callable[[Tensor], Tensor],
    chunk: int = 512,
    temperature: float = 1.0,
) -> Float[Tensor, "*targets"]:
    """Natural-log probability of every target token; see `target_scores`."""
    return target_scores(hidden, forest, logits, chunk, temperature)[0]


def target_scores(
    hidden: Float[Tensor, "seq dim"],
    forest: Forest,
    logits: Callable[[Tensor], Tensor],
    chunk: int = 512,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> tuple[Float[Tensor, "*targets"], Float[Tensor, "*targets"] | None]:
    """Natural-log probability of every target token, and the entropy of the distribution that it was drawn from.

    Logits are computed at source tokens only, `chunk` of them at a time, and are recomputed in the backward pass when
    there are several chunks, so at most one chunk's logits exist at any time.

    Args:
        hidden: Decoder output for the packed tokens, final norm applied.
        forest: The packed trees.
        logits: The model's output head.
        chunk: Source tokens whose logits are held at once.
        temperature: Logits are divided by it.
        with_entropy: Whether entropies are computed, without gradients.
    Returns:
        Log-probabilities (nats), and entropies (nats) or None.
    """
    count = len(forest.source_indices)
    source_states = hidden[forest.source_indices]
    order = torch.argsort(forest.target_sources, stable=True)
    chunk_starts = list(range(0, count, chunk))
    target_offsets = [0, len(order)]
    if count > chunk:  # one read from the device for all chunks
        edges = torch.tensor([*chunk_starts, count], device=order.device)
        target_offsets = torch.searchsorted(forest.target_sources[order], edges).tolist()
    chunk_scores = functools.partial(_chunk_scores, logits, temperature, with_entropy)
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for start, low, high in zip(chunk_starts, target_offsets, target_offsets[1:], strict=False):
        stop = min(start + chunk, count)
        targets = order[low:high]
        inputs = (source_states[start:stop], forest.target_sources[targets] - start, forest.target_ids[targets])
        if count > chunk and torch.is_grad_enabled():
            chunk_logprobs, chunk_entropies = checkpoint(
                chunk_scores, *inputs, use_reentrant=False, preserve_rng_state=False
            )
        else:
            chunk_logprobs, chunk_entropies = chunk_scores(*inputs)
        logprobs.append(chunk_logprobs)
        entropies.append(chunk_entropies)
    flat_logprobs, flat_entropies = (torch.cat(values or [hidden.new_zeros(0)]) for values in (logprobs, entropies))
    in_order = torch.zeros_like(flat_logprobs).index_copy(0, order, flat_logprobs)
    return in_order, torch.zeros_like(flat_entropies).index_copy(0, order, flat_entropies) if with_entropy else None


def _chunk_scores(
    logits: Callable[[Tensor], Tensor],
    temperature: float,
    with_entropy: bool,
    states: Tensor,
    rows: Tensor,
    ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of targets: their ids, and the rows of their sources among a chunk's states."""
    scores = logits(states).float()
    if temperature != 1:
        scores = scores / temperature
    normalisers = torch.logsumexp(scores, -1)
    return scores[rows, ids] - normalisers[rows], _entropy(scores, normalisers, with_entropy)[rows]


@torch.no_grad()
def _entropy(scores: Tensor, normalisers: Tensor, wanted: bool) -> Tensor:
    """Entropy (nats) of the softmax of each row of `scores`, whose logsumexp is given; zeros where it is not wanted."""
    if not wanted:
        return torch.zeros_like(normalisers)
    return normalisers - (scores * (scores - normalisers[:, None]).exp()).sum(-1)


def branch_logprobs(values: Float[Tensor, "*targets"], forest: Forest) -> Float[Tensor, "branches tokens"]:
    """Arrange per-target values as the rectangle that losses expect: one row per branch, padding is 0.

    Args:
        values: One value per target, usually its log-probability.
        forest: The packed trees.
    """
    if not len(values):
        return values.new_zeros(forest.branch_targets.shape)
    return values[forest.branch_targets].masked_fill(~forest.loss_mask, 0.0)
