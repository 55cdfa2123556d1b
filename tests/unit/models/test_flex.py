"""Block-sparse attention over packed trees: block masks and results equal those of dense masks."""

import random

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex

from builders import max_abs, tiny_qwen2_audio, tone, user_question
from earwise.forest import (
    Forest,
    TokenPath,
    branch_logprobs,
    build_tree,
    insert_audio_embeddings,
    pack,
    target_logprobs,
)
from earwise.models.parts.attention import TreeAttention
from earwise.models.parts.flex import BlockSparseAttention, block_mask, padded_length
from earwise.models.prompt_encoding import answer_path, conversation_path


@pytest.fixture
def eager_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use torch's eager implementation without tracing, which takes seconds per call."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def random_forest(seed: int, num_trees: int = 3) -> Forest:
    """Random trees over three tokens, so that paths share long prefixes and branch anywhere."""
    rng = random.Random(seed)
    trees = []
    for _ in range(num_trees):
        prefix = [rng.randrange(3) for _ in range(rng.randrange(1, 60))]
        paths = []
        for _ in range(rng.randrange(1, 7)):
            ids = (*prefix, *(rng.randrange(3) for _ in range(rng.randrange(1, 50))))
            paths.append(TokenPath(ids, (False, *[True] * (len(ids) - 1)), (-1,) * len(ids)))
        trees.append(build_tree(paths))
    return pack(trees)


def block_table(block_lists: tuple[Tensor, Tensor], count: int) -> Tensor:
    """Blocks as a boolean table, from the counts and columns that the kernels read."""
    counts, columns = block_lists
    table = torch.zeros(count, count, dtype=torch.bool)
    for row in range(count):
        table[row, columns[0, 0, row, : int(counts[0, 0, row])].long()] = True
    return table


@pytest.mark.parametrize("window", [None, 5, 20])
@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_those_of_the_dense_mask(seed: int, window: int | None) -> None:
    """With a window, a block of which nothing is visible may still be listed as partly visible: it costs time only."""
    block = (8, 16)[seed % 2]
    forest = random_forest(seed)
    ends = torch.cat([forest.subtree_ends, torch.arange(len(forest), padded_length(len(forest), block)) + 1])
    positions = torch.cat([forest.positions, torch.zeros(len(ends) - len(forest), dtype=torch.long)])
    dense = torch.eye(len(ends), dtype=torch.bool)
    dense[: len(forest), : len(forest)] = forest.attention_mask()
    if window is not None:
        dense &= positions[:, None] - positions[None, :] < window
    count = len(ends) // block
    tiles = dense.view(count, block, count, block).transpose(1, 2).flatten(2)
    mask = block_mask(ends, block, positions=positions, window=window)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    partly = block_table((mask.kv_num_blocks, mask.kv_indices), count)
    fully = block_table((mask.full_kv_num_blocks, mask.full_kv_indices), count)
    assert torch.equal(fully, tiles.all(2))
    assert not (tiles.any(2) & ~(partly | fully)).any()
    assert window is not None or torch.equal(partly | fully, tiles.any(2))
    assert not (partly & fully).any()
    query, key = torch.meshgrid(torch.arange(len(ends)), torch.arange(len(ends)), indexing="ij")
    assert torch.equal(mask.mask_mod(query, query, query, key), dense)


def test_a_shared_prefix_is_fully_visible_and_siblings_are_not() -> None:
    """By hand: a prefix of 8 tokens, two branches of 4, blocks of 4."""
    prefix = (0,) * 8
    forest = pack([build_tree([TokenPath(prefix + (n,) * 4, (False,) * 12, (-1,) * 12) for n in (1, 2)])])
    assert forest.subtree_ends.tolist() == [16] * 8 + [12] * 4 + [16] * 4
    mask = block_mask(forest.subtree_ends, 4)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    assert block_table((mask.kv_num_blocks, mask.kv_indices), 4).int().tolist() == torch.eye(4).int().tolist()
    fully = block_table((mask.full_kv_num_blocks, mask.full_kv_indices), 4).int().tolist()
    assert fully == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_a_length_must_be_a_multiple_of_the_block_size() -> None:
    with pytest.raises(ValueError, match="130 tokens are not a multiple of the block size 128"):
        block_mask(torch.arange(130) + 1)


@pytest.mark.usefixtures("eager_flex_attention")
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_equals_dense_masks(heads: int, kv_heads: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(heads + kv_heads)
    for seed in range(3):
        forest = random_forest(seed)
        queries = torch.randn(1, heads, len(forest), 16, generator=generator)
        keys, values = (torch.randn(1, kv_heads, len(forest), 16, generator=generator) for _ in range(2))
        dense = TreeAttention(forest, "dense")(0, queries, keys, values, 0.3, window)
        for min_length in (64, 512):
            attention = BlockSparseAttention(forest, compiled=False, min_length=min_length)
            sparse = attention(0, queries, keys, values, 0.3, window)
            assert sparse.shape == dense.shape
            assert max_abs([sparse - dense]) < 1e-5


@pytest.mark.slow
def test_gradients_equal_dense_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch rejects gradients of this call on a CPU, but its eager implementation has them."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    forest = random_forest(7)
    generator = torch.Generator().manual_seed(7)
    projections = [torch.randn(1, 2, len(forest), 16, generator=generator, requires_grad=True) for _ in range(3)]
    weight = torch.randn(1, 2, len(forest), 16, generator=generator)
    gradients = []
    for attention in (TreeAttention(forest, "dense"), BlockSparseAttention(forest, compiled=False, min_length=64)):
        gradients.append(torch.autograd.grad((attention(0, *projections, 0.25) * weight).sum(), projections))  # type: ignore[arg-type]
    for dense, sparse in zip(*gradients, strict=True):
        assert float((dense - sparse).norm() / dense.norm()) < 1e-5


@pytest.mark.usefixtures("eager_flex_attention")
@torch.no_grad()
def test_a_model_gives_the_same_log_probabilities_with_both_kernels() -> None:
    model = tiny_qwen2_audio(4)
    waveform = tone(0.5)
    prompt = conversation_path(model, user_question("Which?"), [0], [len(waveform)], generate=True)
    forest = pack([build_tree([prompt + answer_path(model, text) for text in ("a dog", "a door", "a dog")])] * 2)
    audio_embeddings = dict(enumerate(model.project_audio(model.encode_audio([waveform]))))
    embeddings = insert_audio_embeddings(model.embed(forest.ids), forest, audio_embeddings)
    logprobs = []
    for attention in (TreeAttention(forest, "dense"), BlockSparseAttention(forest, compiled=False, min_length=128)):
        hidden = model.decode(embeddings, forest.positions, attention)
        logprobs.append(branch_logprobs(target_logprobs(hidden, forest, model.logits), forest))
    assert max_abs([logprobs[0] - logprobs[1]]) < 1e-5
    assert max_abs([logprobs[0]]) > 0.1


def test_the_dense_kernel_is_the_default_on_a_cpu() -> None:
    assert TreeAttention(random_forest(0)).kernel == "dense"


@torch.no_grad()
def test_one_trace_per_padded_length() -> None:
    """Forests of any length and any trees share one torch trace per power of two."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    traced = torch.compile(torch_flex.flex_attention, dynamic=False, backend=counter)
    lengths, padded_lengths = set(), set()
    for seed, num_trees in enumerate((1, 2, 4, 14)):
        forest = random_forest(seed, num_trees)
        projections = [
            torch.randn(1, 2, len(forest), 16, generator=torch.Generator().manual_seed(seed)) for _ in range(3)
        ]
        sparse = BlockSparseAttention(forest, compiled=False)
        sparse._run = traced
        assert max_abs([sparse(0, *projections, 0.25) - TreeAttention(forest, "dense")(0, *projections, 0.25)]) < 1e-5
        lengths.add(len(forest))
        padded_lengths.add(padded_length(len(forest)))
    assert len(lengths) > len(padded_lengths) == 2
    assert counter.frame_count == len(padded_lengths)


@pytest.mark.slow
@torch.no_grad()
def test_the_compiled_kernel_is_compiled_once_per_padded_length() -> None:
    """The compiled call takes every forest of a padded length without recompiling, and gives the same results."""
    compiles = torch._dynamo.utils.counters["stats"]
    num_graphs = []
    for seed in range(3):
        forest = random_forest(seed)
        projections = [
            torch.randn(1, 2, len(forest), 16, generator=torch.Generator().manual_seed(seed)) for _ in range(3)
        ]
        assert padded_length(len(forest)) == 1024
        fused = BlockSparseAttention(forest)(0, *projections, 0.25)
        assert max_abs([fused - TreeAttention(forest, "dense")(0, *projections, 0.25)]) < 1e-5
        num_graphs.append(compiles["unique_graphs"])
    assert num_graphs[0] == num_graphs[1] == num_graphs[2]


@pytest.mark.gpu
def test_on_cuda_gradients_equal_dense_masks() -> None:
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        forest = random_forest(3, num_trees=8)
        ends = forest.subtree_ends.cuda()
        on_gpu = Forest(
            **{name: getattr(forest, name) for name in Forest.__slots__} | {"ids": forest.ids.cuda(), "ends": ends}
        )
        shape = (1, 4, len(forest), 64)
        projections = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
        outputs = []
        for kernel in ("dense", "flex"):
            out = TreeAttention(on_gpu, kernel)(0, *projections, 0.125)
            outputs.append((out, *torch.autograd.grad(out.float().square().sum(), projections)))
        for dense, sparse in zip(*outputs, strict=True):
            assert float((dense - sparse).norm() / dense.norm()) < limit
