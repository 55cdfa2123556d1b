"""Which prompts share one token tree: those about the same clip, as long as sharing costs less than it saves.

A tree computes the common prefix of its prompts once, but its attention is dense: every token is compared with all
tokens of the tree, also with those of other branches, and masked. Prompts with a long common prefix and short questions
gain much; prompts that differ for most of their length would make one large tree that costs more than they do alone.

Used by `engine.local` for the trees themselves, and by the server to know the size of a batch before it is started.
"""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

LAYER_COST = 2048
"""Number of attended tokens that cost as much as one token's passage through the layers of a small decoder."""


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
