"""The one idea: many continuations of one sound as a tree, many trees as one packed sequence.

A `Path` is one whole sequence (prompt and completion) as token ids. `plant` merges paths that begin alike into a trie:
every distinct token is there once, written in depth-first order. `pack` lays trees end to end. In that order one
comparison says who sees whom:

    token q sees token k   iff   k <= q < end[k]          (end[k]: where the subtree that hangs on token k ends)

which holds for k's own later tokens and for everything that branches off them, and for no sibling and no other tree. A
token's position is its depth. A token's prediction is read at its parent, so log-probabilities and gradients are those
of the paths run one by one, while shared tokens, above all the audio, are computed once. (Others share prefixes in text
training only; the ancestor test by entry and exit of a depth-first walk is also TRL's #7328.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class Path:
    """One sequence from the first prompt token to the end of a completion.

    Attributes:
        ids: Token ids; each clip stands as a run of the model's placeholder id.
        trained: True for tokens whose log-probability is wanted.
        clips: For each token the clip it belongs to (any integers that name clips in this batch), -1 for text.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    clips: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.trained) == len(self.clips):
            raise ValueError(
                f"path of {len(self.ids)} ids has {len(self.trained)} trained flags and {len(self.clips)} clip marks"
            )

    def __add__(self, other: "Path") -> "Path":
        return Path(self.ids + other.ids, self.trained + other.trained, self.clips + other.clips)


@dataclass(frozen=True, slots=True)
class Tree:
    """Paths merged into a trie, tokens in depth-first order, indices local to the tree.

    Attributes:
        ids: Token ids.
        parents: Index of the token before, -1 at a root.
        depths: Position of the token in its own sequence.
        ends: One past the last token of the subtree that hangs on the token.
        clips: Clip of the token, -1 for text.
        branches: For each path, in the order given, the indices of its trained tokens.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    clips: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)


def plant(paths: Sequence[Path], *, merge: bool = True) -> Tree:
    """Merge paths that begin alike.

    Args:
        paths: At least one, none empty.
        merge: False keeps every path apart from its first token on (the one-by-one run, for checks and benchmarks).
    Returns:
        The trie. Equal paths share all their tokens and remain two branches, so their losses add up.
    """
    if not paths or not all(path.ids for path in paths):
        raise ValueError(
            f"a tree needs at least one path and no empty ones; got lengths {[len(path.ids) for path in paths]}"
        )
    if any(path.trained[0] for path in paths):
        raise ValueError("the first token of a path cannot be trained: nothing predicts it")
    ids: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    clips: list[int] = []
    trained: list[list[int]] = [[] for _ in paths]
    # Depth first without recursion: a task is (paths standing on the same token, their depth, that token); -1 closes
    # a token.
    tasks: list[tuple[list[int], int, int]] = []

    def fork(group: list[int], depth: int, parent: int) -> None:
        heads: dict[tuple[int, int, int], list[int]] = {}
        for number in group:
            path = paths[number]
            if depth < len(path.ids):
                apart = number if not merge else 0
                heads.setdefault((path.ids[depth], path.clips[depth], apart), []).append(number)
        tasks.extend((members, depth, parent) for members in reversed(heads.values()))

    fork(list(range(len(paths))), 0, -1)
    while tasks:
        group, depth, parent = tasks.pop()
        if depth < 0:
            ends[parent] = len(ids)
            continue
        token = len(ids)
        first = paths[group[0]]
        ids.append(first.ids[depth])
        clips.append(first.clips[depth])
        parents.append(parent)
        depths.append(depth)
        ends.append(-1)
        for number in group:
            if paths[number].trained[depth]:
                trained[number].append(token)
        tasks.append(([], -1, token))
        fork(group, depth + 1, token)
    return Tree(tuple(ids), tuple(parents), tuple(depths), tuple(ends), tuple(clips), tuple(tuple(b) for b in trained))


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees laid end to end as tensors.

    Attributes:
        ids: Token ids.
        positions: Depth of each token.
        ends: Exclusive end of each token's subtree.
        bounds: Start of each tree, and the length at the end.
        audio: Indices of audio tokens.
        clips: Clip of each audio token.
        runs: Length of each unbroken run of one clip's audio tokens, in order.
        sources: Distinct tokens whose hidden state predicts something wanted.
        target_sources: For each wanted token, which of `sources` predicts it.
        target_ids: Id of each wanted token.
        branch_targets: For each branch, indices into the wanted tokens, padded with 0.
        loss_mask: True where `branch_targets` is not padding.
        branch_trees: Tree of each branch.
    """

    ids: Int[Tensor, " seq"]
    positions: Int[Tensor, " seq"]
    ends: Int[Tensor, " seq"]
    bounds: tuple[int, ...]
    audio: Int[Tensor, " audio_seq"]
    clips: tuple[int, ...]
    runs: tuple[int, ...]
    sources: Int[Tensor, " sources"]
    target_sources: Int[Tensor, "*targets"]
    target_ids: Int[Tensor, "*targets"]
    branch_targets: Int[Tensor, "branches tokens"]
    loss_mask: Bool[Tensor, "branches tokens"]
    branch_trees: Int[Tensor, " branches"]

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def mask(self) -> Bool[Tensor, "seq seq"]:
        """Dense visibility, True where the row's token sees the column's."""
        index = torch.arange(len(self), device=self.ids.device)
        return (index[None, :] <= index[:, None]) & (index[:, None] < self.ends[None, :])


def pack(trees: Sequence[Tree], device: torch.device | str = "cpu") -> Forest:
    """Lay trees end to end; block-diagonal by construction, so nothing is padded."""
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    clips: list[int] = []
    bounds = [0]
    wanted: dict[int, int] = {}  # packed token -> target number
    sources: dict[int, int] = {}  # packed token -> source number
    target_sources: list[int] = []
    target_ids: list[int] = []
    rows: list[list[int]] = []
    branch_trees: list[int] = []
    for number, tree in enumerate(trees):
        base = bounds[-1]
        ids += tree.ids
        positions += tree.depths
        ends += [base + end for end in tree.ends]
        clips += tree.clips
        for branch in tree.branches:
            row = []
            for token in branch:
                target = wanted.setdefault(base + token, len(wanted))
                if target == len(target_ids):
                    target_sources.append(sources.setdefault(base + tree.parents[token], len(sources)))
                    target_ids.append(tree.ids[token])
                row.append(target)
            rows.append(row)
            branch_trees.append(number)
        bounds.append(base + len(tree))
    runs: list[int] = []
    for i, clip in enumerate(clips):
        if clip >= 0 and i and clips[i - 1] == clip and positions[i] == positions[i - 1] + 1:
            runs[-1] += 1
        elif clip >= 0:
            runs.append(1)
    width = max((len(row) for row in rows), default=0)

    def ints(values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.long, device=device)

    return Forest(
        ids=ints(ids),
        positions=ints(positions),
        ends=ints(ends),
        bounds=tuple(bounds),
        audio=ints([i for i, clip in enumerate(clips) if clip >= 0]),
        clips=tuple(clip for clip in clips if clip >= 0),
        runs=tuple(runs),
        sources=ints(list(sources)),
        target_sources=ints(target_sources),
        target_ids=ints(target_ids),
        branch_targets=torch.tensor(
            [row + [0] * (width - len(row)) for row in rows], dtype=torch.long, device=device
        ).reshape(len(rows), width),
        loss_mask=torch.tensor(
            [[True] * len(row) + [False] * (width - len(row)) for row in rows], dtype=torch.bool, device=device
        ).reshape(len(rows), width),
        branch_trees=ints(branch_trees),
    )


def bins(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Split trees, in order, into packs of at most `capacity` tokens; a tree that is larger than that stands alone."""
    packs: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes):
        if not packs or size > room:
            packs.append([])
            room = capacity
        packs[-1].append(number)
        room -= size
    return packs


def place_audio(
    embeddings: Float[Tensor, "seq dim"], forest: Forest, connected: dict[int, Float[Tensor, "audio_seq dim"]]
) -> Float[Tensor, "seq dim"]:
    """Put each clip's embeddings where its placeholders stand.

    Raises:
        ValueError: if a clip is missing, or has another number of embeddings than placeholders.
    """
    if not forest.clips:
        return embeddings
    pieces = []
    at = 0
    for run in forest.runs:
        clip = forest.clips[at]
        if clip not in connected:
            raise ValueError(f"clip {clip} of the forest has no embeddings")
        if len(connected[clip]) != run:
            raise ValueError(f"clip {clip} has {len(connected[clip])} embeddings but {run} placeholders")
        pieces.append(connected[clip])
        at += run
    return embeddings.index_copy(0, forest.audio, torch.cat(pieces).to(embeddings.dtype))


def target_logprobs(
    hidden: Float[Tensor, "seq dim"], forest: Forest, logits: Callable[[Tensor], Tensor], chunk: int = 512
) -> Float[Tensor, "*targets"]:
    """Natural-log probability of every wanted token; logits exist at answer positions only, `chunk` positions at a
    time.

    Args:
        hidden: Decoder output for the packed tokens.
        forest: What was packed.
        logits: The model's output head.
        chunk: Positions whose logits are alive at once (recomputed in the backward pass when there are several chunks).
    """
    count = len(forest.sources)
    at_sources = hidden[forest.sources]
    order = torch.argsort(forest.target_sources, stable=True)
    starts = list(range(0, count, chunk))
    bounds = [0, len(order)]
    if count > chunk:  # read from the device once, not chunk by chunk
        edges = torch.tensor([*starts, count], device=order.device)
        bounds = torch.searchsorted(forest.target_sources[order], edges).tolist()
    out = []
    for start, low, high in zip(starts, bounds, bounds[1:], strict=False):
        stop = min(start + chunk, count)
        chosen = order[low:high]
        args = (at_sources[start:stop], forest.target_sources[chosen] - start, forest.target_ids[chosen])

        def piece(states: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
            scores = logits(states).float()
            picked: Tensor = scores[rows, ids] - torch.logsumexp(scores, -1)[rows]
            return picked

        if count > chunk and torch.is_grad_enabled():
            out.append(checkpoint(piece, *args, use_reentrant=False, preserve_rng_state=False))
        else:
            out.append(piece(*args))
    flat = torch.cat(out) if out else hidden.new_zeros(0)
    return torch.zeros_like(flat).index_copy(0, order, flat)


def by_branch(values: Float[Tensor, "*targets"], forest: Forest) -> Float[Tensor, "branches tokens"]:
    """Spread per-token values over branches (padding holds 0): the rectangle that losses see."""
    if not len(values):
        return values.new_zeros(forest.branch_targets.shape)
    return values[forest.branch_targets].masked_fill(~forest.loss_mask, 0.0)
