"""The forest by hand: one small prefix tree, and every refusal."""

import pytest
import torch

from earwise.forest import (
    TokenPath,
    assign_bins,
    branch_logprobs,
    build_tree,
    insert_audio_embeddings,
    pack,
    target_logprobs,
)

A, B, C, D, END, AUDIO = 10, 11, 12, 13, 2, 3


def path(prompt: list[int], completion: list[int], clip: int = 0) -> TokenPath:
    ids = (*prompt, *completion)
    return TokenPath(
        ids, (False,) * len(prompt) + (True,) * len(completion), tuple(clip if i == AUDIO else -1 for i in ids)
    )


# prompt A AUDIO AUDIO, completions "B C end", "B end", "B C end" again, "B C", "D"
GROUP = [path([A, AUDIO, AUDIO], completion) for completion in ([B, C, END], [B, END], [B, C, END], [B, C], [D])]


def test_a_small_tree() -> None:
    tree = build_tree(GROUP)
    #               0  1      2      3  4  5    6    7
    assert tree.ids == (A, AUDIO, AUDIO, B, C, END, END, D)
    assert tree.parents == (-1, 0, 1, 2, 3, 4, 3, 2)
    assert tree.depths == (0, 1, 2, 3, 4, 5, 4, 3)
    assert tree.subtree_ends == (8, 8, 8, 7, 6, 6, 7, 8)
    assert tree.clips == (-1, 0, 0, -1, -1, -1, -1, -1)
    assert tree.branches == ((3, 4, 5), (3, 6), (3, 4, 5), (3, 4), (7,))
    assert len(tree) == 8


def test_packed_with_another_tree() -> None:
    forest = pack([build_tree(GROUP), build_tree([path([A], [B])])])
    assert forest.tree_offsets == (0, 8, 10) and len(forest) == 10
    assert forest.subtree_ends.tolist() == [8, 8, 8, 7, 6, 6, 7, 8, 10, 10]
    assert forest.positions.tolist() == [0, 1, 2, 3, 4, 5, 4, 3, 0, 1]
    assert forest.audio_indices.tolist() == [1, 2] and forest.audio_clips == (0, 0)
    # The prompt's last token predicts B and D; B predicts C and the end token.
    assert forest.source_indices.tolist() == [2, 3, 4, 8]
    assert forest.target_ids.tolist() == [B, C, END, END, D, B]
    assert forest.target_sources.tolist() == [0, 1, 2, 1, 0, 3]
    assert forest.branch_targets.tolist() == [[0, 1, 2], [0, 3, 0], [0, 1, 2], [0, 1, 0], [4, 0, 0], [5, 0, 0]]
    assert forest.loss_mask.sum(1).tolist() == [3, 2, 3, 2, 1, 1]
    assert forest.branch_trees.tolist() == [0, 0, 0, 0, 0, 1]
    rows = forest.attention_mask().int().tolist()
    assert rows[6] == [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]  # the end token after "B" attends to the prompt, B and itself
    assert rows[9] == [0] * 8 + [1, 1]


def test_unmerged_paths_share_nothing() -> None:
    tree = build_tree(GROUP, merge=False)
    assert len(tree) == sum(len(path.ids) for path in GROUP)
    assert tree.parents.count(-1) == len(GROUP)


def test_equal_ids_of_another_clip_are_another_token() -> None:
    tree = build_tree([path([A, AUDIO], [B], clip=0), path([A, AUDIO], [B], clip=1)])
    assert tree.ids == (A, AUDIO, B, AUDIO, B) and tree.clips == (-1, 0, -1, 1, -1)


def test_rows_of_log_probabilities() -> None:
    forest = pack([build_tree(GROUP)])
    values = torch.arange(1.0, 6.0)
    assert branch_logprobs(values, forest).tolist() == [[1, 2, 3], [1, 4, 0], [1, 2, 3], [1, 2, 0], [5, 0, 0]]
    uniform = target_logprobs(torch.zeros(8, 2), forest, lambda states: states @ torch.zeros(2, 20), chunk=2)
    assert torch.allclose(uniform, torch.full((5,), -torch.tensor(20.0).log().item()))


def test_nothing_trained() -> None:
    forest = pack([build_tree([path([A, B], [])])])
    values = target_logprobs(torch.zeros(2, 2), forest, lambda states: states)
    assert values.shape == (0,) and branch_logprobs(values, forest).shape == (1, 0)


def test_audio_embeddings_replace_their_placeholders() -> None:
    forest = pack([build_tree([path([A, AUDIO, AUDIO, B], [C], clip=7)]), build_tree([path([AUDIO, A], [B], clip=4)])])
    embeddings = torch.zeros(len(forest), 1)
    placed = insert_audio_embeddings(embeddings, forest, {7: torch.tensor([[1.0], [2.0]]), 4: torch.tensor([[3.0]])})
    assert placed.flatten().tolist() == [0, 1, 2, 0, 0, 3, 0, 0]
    assert not embeddings.any()
    with pytest.raises(ValueError, match="clip 4 of the forest has no embeddings"):
        insert_audio_embeddings(embeddings, forest, {7: torch.zeros(2, 1)})
    for count in (1, 3, 0):
        with pytest.raises(ValueError, match=f"clip 7 has {count} embeddings but 2 placeholders"):
            insert_audio_embeddings(embeddings, forest, {7: torch.zeros(count, 1), 4: torch.zeros(1, 1)})


def test_refusals() -> None:
    with pytest.raises(ValueError, match="path of 2 ids has 1 trained flags"):
        TokenPath((A, B), (False,), (-1, -1))
    with pytest.raises(ValueError, match="at least one path"):
        build_tree([])
    with pytest.raises(ValueError, match=r"no empty ones; got lengths \[1, 0\]"):
        build_tree([path([A], []), path([], [])])
    with pytest.raises(ValueError, match="first token of a path cannot be trained"):
        build_tree([path([], [A])])


def test_packs() -> None:
    assert assign_bins([4, 4, 4, 20, 1, 1], 8) == [[0, 1], [2], [3], [4, 5]]
    assert assign_bins([], 8) == []


def test_a_deep_tree_needs_no_recursion() -> None:
    assert len(build_tree([path([A] * 5000, [B]), path([A] * 5000, [C])])) == 5002
