"""FlexAttention over a forest: the block masks are the dense test's, and what comes out is what dense masks give."""

import random

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex

from builders import user_question, max_abs, tone, tiny_qwen2_audio
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
from earwise.models.parts.flex import BlockSparseAttention, block_mask, filled
from earwise.models.prompt_encoding import answer_path, conversation_path


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's plain implementation without its tracing, which takes seconds a call."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def grown(seed: int, trees: int = 3) -> Forest:
    """Random trees over an alphabet of three, so that paths share much and branch anywhere."""
    rng = random.Random(seed)
    planted = []
    for _ in range(trees):
        trunk = [rng.randrange(3) for _ in range(rng.randrange(1, 60))]
        paths = []
        for _ in range(rng.randrange(1, 7)):
            ids = (*trunk, *(rng.randrange(3) for _ in range(rng.randrange(1, 50))))
            paths.append(TokenPath(ids, (False, *[True] * (len(ids) - 1)), (-1,) * len(ids)))
        planted.append(build_tree(paths))
    return pack(planted)


def shown(listed: tuple[Tensor, Tensor], count: int) -> Tensor:
    """Blocks as a boolean table, from the counts and columns that the kernels read."""
    numbers, columns = listed
    table = torch.zeros(count, count, dtype=torch.bool)
    for row in range(count):
        table[row, columns[0, 0, row, : int(numbers[0, 0, row])].long()] = True
    return table


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_those_of_the_dense_mask(seed: int) -> None:
    block = (8, 16)[seed % 2]
    forest = grown(seed)
    ends = torch.cat([forest.subtree_ends, torch.arange(len(forest), filled(len(forest), block)) + 1])
    dense = torch.eye(len(ends), dtype=torch.bool)
    dense[: len(forest), : len(forest)] = forest.attention_mask()
    count = len(ends) // block
    tiles = dense.view(count, block, count, block).transpose(1, 2).flatten(2)
    mask = block_mask(ends, block)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    some = shown((mask.kv_num_blocks, mask.kv_indices), count)
    whole = shown((mask.full_kv_num_blocks, mask.full_kv_indices), count)
    assert torch.equal(whole, tiles.all(2))
    assert torch.equal(some | whole, tiles.any(2))
    assert not (some & whole).any()
    query, key = torch.meshgrid(torch.arange(len(ends)), torch.arange(len(ends)), indexing="ij")
    assert torch.equal(mask.mask_mod(query, query, query, key), dense)


def test_a_trunk_is_whole_blocks_and_siblings_are_none() -> None:
    """By hand: a trunk of 8, branches of 4 and 4, blocks of 4. The branches see the trunk whole, not each other."""
    trunk = (0,) * 8
    forest = pack([build_tree([TokenPath(trunk + (n,) * 4, (False,) * 12, (-1,) * 12) for n in (1, 2)])])
    assert forest.subtree_ends.tolist() == [16] * 8 + [12] * 4 + [16] * 4
    mask = block_mask(forest.subtree_ends, 4)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    assert shown((mask.kv_num_blocks, mask.kv_indices), 4).int().tolist() == torch.eye(4).int().tolist()
    whole = shown((mask.full_kv_num_blocks, mask.full_kv_indices), 4).int().tolist()
    assert whole == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_lengths_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match="130 tokens are no whole number of blocks of 128"):
        block_mask(torch.arange(130) + 1)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_equals_dense_masks(heads: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(heads + kv_heads)
    for seed in range(3):
        forest = grown(seed)
        queries = torch.randn(1, heads, len(forest), 16, generator=generator)
        keys, values = (torch.randn(1, kv_heads, len(forest), 16, generator=generator) for _ in range(2))
        dense = TreeAttention(forest, "dense")(0, queries, keys, values, 0.3)
        for shortest in (64, 512):
            sparse = BlockSparseAttention(forest, compiled=False, shortest=shortest)(0, queries, keys, values, 0.3)
            assert sparse.shape == dense.shape
            assert max_abs([sparse - dense]) < 1e-5


@pytest.mark.slow
def test_gradients_equal_dense_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses gradients of this call on a CPU, where its plain implementation has them all the same."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    forest = grown(7)
    generator = torch.Generator().manual_seed(7)
    parts = [torch.randn(1, 2, len(forest), 16, generator=generator, requires_grad=True) for _ in range(3)]
    weight = torch.randn(1, 2, len(forest), 16, generator=generator)
    found = []
    for attention in (TreeAttention(forest, "dense"), BlockSparseAttention(forest, compiled=False, shortest=64)):
        found.append(torch.autograd.grad((attention(0, *parts, 0.25) * weight).sum(), parts))  # type: ignore[arg-type]
    for dense, sparse in zip(*found, strict=True):
        assert float((dense - sparse).norm() / dense.norm()) < 1e-5


@pytest.mark.usefixtures("plain")
@torch.no_grad()
def test_a_model_says_the_same_through_both_kernels() -> None:
    model = tiny_qwen2_audio(4)
    wave = tone(0.5)
    trunk = conversation_path(model, user_question("Which?"), [0], [len(wave)], generate=True)
    forest = pack([build_tree([trunk + answer_path(model, text) for text in ("a dog", "a door", "a dog")])] * 2)
    connected = dict(enumerate(model.project_audio(model.encode_audio([wave]))))
    embeddings = insert_audio_embeddings(model.embed(forest.ids), forest, connected)
    said = []
    for attention in (TreeAttention(forest, "dense"), BlockSparseAttention(forest, compiled=False, shortest=128)):
        hidden = model.decode(embeddings, forest.positions, attention)
        said.append(branch_logprobs(target_logprobs(hidden, forest, model.logits), forest))
    assert max_abs([said[0] - said[1]]) < 1e-5
    assert max_abs([said[0]]) > 0.1


def test_dense_is_taken_on_a_cpu() -> None:
    assert TreeAttention(grown(0)).kernel == "dense"


@torch.no_grad()
def test_one_compilation_a_length() -> None:
    """What torch traces is counted: forests of any length and any trees share one trace per power of two."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    traced = torch.compile(torch_flex.flex_attention, dynamic=False, backend=counter)
    lengths, rounded = set(), set()
    for seed, trees in enumerate((1, 2, 4, 14)):
        forest = grown(seed, trees)
        parts = [torch.randn(1, 2, len(forest), 16, generator=torch.Generator().manual_seed(seed)) for _ in range(3)]
        sparse = BlockSparseAttention(forest, compiled=False)
        sparse._run = traced
        assert max_abs([sparse(0, *parts, 0.25) - TreeAttention(forest, "dense")(0, *parts, 0.25)]) < 1e-5
        lengths.add(len(forest))
        rounded.add(filled(len(forest)))
    assert len(lengths) > len(rounded) == 2
    assert counter.frame_count == len(rounded)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_once_for_all_packs_of_a_length() -> None:
    """The compiled call takes every forest of a length without compiling again, and gives the same."""
    compiles = torch._dynamo.utils.counters["stats"]
    seen = []
    for seed in range(3):
        forest = grown(seed)
        parts = [torch.randn(1, 2, len(forest), 16, generator=torch.Generator().manual_seed(seed)) for _ in range(3)]
        assert filled(len(forest)) == 1024
        fused = BlockSparseAttention(forest)(0, *parts, 0.25)
        assert max_abs([fused - TreeAttention(forest, "dense")(0, *parts, 0.25)]) < 1e-5
        seen.append(compiles["unique_graphs"])
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.gpu
def test_on_cuda_gradients_equal_dense_masks() -> None:
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        forest = grown(3, trees=8)
        ends = forest.subtree_ends.cuda()
        on_gpu = Forest(
            **{name: getattr(forest, name) for name in Forest.__slots__} | {"ids": forest.ids.cuda(), "ends": ends}
        )
        shape = (1, 4, len(forest), 64)
        parts = [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
        found = []
        for kernel in ("dense", "flex"):
            out = TreeAttention(on_gpu, kernel)(0, *parts, 0.125)
            found.append((out, *torch.autograd.grad(out.float().square().sum(), parts)))
        for dense, sparse in zip(*found, strict=True):
            assert float((dense - sparse).norm() / dense.norm()) < limit
