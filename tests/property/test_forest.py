"""Trees of token paths and their attention mask against their definitions, for any set of paths."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earwise.forest import TokenPath, assign_bins, branch_logprobs, build_tree, pack, target_logprobs


@st.composite
def paths(draw: st.DrawFn) -> list[TokenPath]:
    """Up to six paths over three token ids, so that many share a prefix; the first token is never trained."""
    generated = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, 2), min_size=1, max_size=7))
        trained = (False, *draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1)))
        clips = draw(st.lists(st.sampled_from([-1, -1, -1, 0]), min_size=len(ids), max_size=len(ids)))
        generated.append(TokenPath(tuple(ids), trained, tuple(clips)))
    return generated


def prefixes(group: list[TokenPath]) -> set[tuple[tuple[int, int], ...]]:
    """All distinct prefixes: each must be in the tree exactly once."""
    return {
        tuple(zip(path.ids, path.clips, strict=True))[:end] for path in group for end in range(1, len(path.ids) + 1)
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(paths(), min_size=1, max_size=3), st.booleans())
def test_every_token_attends_to_its_path_and_nothing_else(groups: list[list[TokenPath]], merge: bool) -> None:
    trees = [build_tree(group, merge=merge) for group in groups]
    forest = pack(trees)
    mask = forest.attention_mask()
    ancestors = []
    for tree, start in zip(trees, forest.tree_offsets, strict=False):
        for token in range(len(tree)):
            path = {start + token}
            while tree.parents[token] >= 0:
                token = tree.parents[token]
                path.add(start + token)
            ancestors.append(path)
    assert [set(row.nonzero().flatten().tolist()) for row in mask] == ancestors
    assert forest.positions.tolist() == [len(path) - 1 for path in ancestors]


@settings(max_examples=30, deadline=None)
@given(st.lists(paths(), min_size=1, max_size=3), st.booleans())
def test_every_branch_predicts_the_tokens_of_its_path(groups: list[list[TokenPath]], merge: bool) -> None:
    trees = [build_tree(group, merge=merge) for group in groups]
    for tree, group in zip(trees, groups, strict=True):
        assert len(tree) == (len(prefixes(group)) if merge else sum(len(path.ids) for path in group))
    forest = pack(trees)
    mask = forest.attention_mask()
    row = 0
    for number, group in enumerate(groups):
        for path in group:
            trained_positions = [position for position, trained in enumerate(path.trained) if trained]
            assert int(forest.branch_trees[row]) == number
            assert forest.loss_mask[row].tolist() == [True] * len(trained_positions) + [False] * (
                forest.loss_mask.shape[1] - len(trained_positions)
            )
            for target, position in zip(forest.branch_targets[row].tolist(), trained_positions, strict=False):
                source = int(forest.source_indices[forest.target_sources[target]])
                attended = mask[source].nonzero().flatten()
                assert forest.ids[attended].tolist() == list(path.ids[:position])
                assert int(forest.target_ids[target]) == path.ids[position]
            row += 1
    assert (
        len(forest.audio_indices) == len(forest.audio_clips) == sum(clip >= 0 for tree in trees for clip in tree.clips)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(paths(), min_size=1, max_size=3), st.integers(1, 5))
def test_log_probabilities_do_not_depend_on_the_chunk(groups: list[list[TokenPath]], chunk: int) -> None:
    forest = pack([build_tree(group) for group in groups])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(forest), 4, generator=generator, requires_grad=True)
    head = torch.randn(4, 3, generator=generator)
    whole = target_logprobs(hidden, forest, lambda states: states @ head)
    parts = target_logprobs(hidden, forest, lambda states: states @ head, chunk)
    assert torch.allclose(whole, parts, atol=1e-6)
    direct = (hidden @ head).log_softmax(-1)[forest.source_indices[forest.target_sources], forest.target_ids]
    assert torch.allclose(whole, direct, atol=1e-6)
    if len(whole):
        weight = torch.randn(len(whole), generator=generator)
        expected, chunked = (
            torch.autograd.grad((value * weight).sum(), hidden, retain_graph=True)[0] for value in (direct, parts)
        )
        # Float32 sums over many branches differ by rounding that grows with the largest gradient.
        assert torch.allclose(expected, chunked, atol=1e-6 * (1 + float(expected.abs().max())))
    rows = branch_logprobs(whole, forest)
    assert (
        torch.equal(rows[forest.loss_mask], whole[forest.branch_targets[forest.loss_mask]])
        and not rows[~forest.loss_mask].any()
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 50))
def test_packs_keep_order_and_capacity(sizes: list[int], capacity: int) -> None:
    packs = assign_bins(sizes, capacity)
    assert [number for members in packs for number in members] == list(range(len(sizes)))
    for members in packs:
        assert members
        assert sum(sizes[number] for number in members) <= capacity or len(members) == 1
