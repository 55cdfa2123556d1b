"""The forest against the plain one-by-one forward of transformers' own Qwen2-Audio class: log-probabilities and
gradients, float32.

Random trees of depth 1 to 3 with uneven branches and clips in trunks and in branches, several trees in a pack, all
parameters trained or LoRA. Mutants at the end: with a wrong mask, or wrong positions, the same comparison fails by
orders of magnitude.
"""

import dataclasses
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from builders import hf_copy, hf_logprobs, max_abs, tiny_qwen2_audio, tone
from earwise.algorithms.policy_loss import grpo_loss
from earwise.config.stages import LoraConfig, TrainableConfig
from earwise.forest import (
    Forest,
    TokenPath,
    branch_logprobs,
    build_tree,
    insert_audio_embeddings,
    pack,
    target_logprobs,
)
from earwise.models.families.qwen2_audio import Qwen2Audio
from earwise.models.parts.attention import TreeAttention
from earwise.training.batches import build_micro_batches
from earwise.training.policy import Policy
from earwise.training.trainable import set_trainable
from earwise.types import Waveform

LOGPROB_LIMIT = 1e-5
GRADIENT_LIMIT = 1e-4
FULL = TrainableConfig(encoder="full", connector="full", decoder="full")
LORA = TrainableConfig(encoder="frozen", connector="full", decoder="lora", lora=LoraConfig(r=4, lora_alpha=8.0))
LORA_ONLY = TrainableConfig(
    encoder="frozen",
    connector="frozen",
    decoder="lora",
    lora=LoraConfig(r=2, lora_alpha=4.0, target_modules=("q_proj", "v_proj")),
)


class TreeGenerator:
    """Random trees over one batch of clips."""

    def __init__(self, model: Qwen2Audio, seed: int) -> None:
        self.model = model
        self.rng = random.Random(seed)
        self.waveforms: dict[int, Waveform] = {}

    def clip(self) -> TokenPath:
        """A new clip of 60 ms to 1 s as a run of placeholders."""
        number = len(self.waveforms)
        self.waveforms[number] = tone(self.rng.uniform(0.06, 1.0), self.rng.uniform(100, 3000), number)
        run = self.model.audio_tokens(len(self.waveforms[number]))
        return TokenPath((self.model.placeholder_id,) * run, (False,) * run, (number,) * run)

    def text(self, low: int, high: int, trained: bool) -> TokenPath:
        ids = tuple(self.rng.randrange(6, 262) for _ in range(self.rng.randint(low, high)))
        return TokenPath(ids, (trained,) * len(ids), (-1,) * len(ids))

    def tree(self, depth: int) -> list[TokenPath]:
        """Paths of a tree whose longest branches have `depth` forks; some branches end early, a few have a
        second clip.
        """
        trunk = self.text(1, 4, False) + self.clip() + self.text(1, 5, False)
        return self.branches(trunk, depth)

    def branches(self, trunk: TokenPath, depth: int) -> list[TokenPath]:
        paths = []
        for number in range(self.rng.randint(2, 4)):
            path = trunk
            if depth > 1 and self.rng.random() < 0.3:
                path += self.clip()
            path += self.text(1, 7, trained=depth == 1 or self.rng.random() < 0.5)
            if depth == 1 or (number and self.rng.random() < 0.3):
                paths.append(path + self.text(1, 6, True))
            else:
                paths += self.branches(path, depth - 1)
        return paths


def build(config: TrainableConfig, seed: int) -> Qwen2Audio:
    """A tiny model made ready for training, LoRA away from its zero start."""
    model = tiny_qwen2_audio(seed)
    torch.manual_seed(seed)  # LoRA's first matrix is drawn from torch's own generator
    set_trainable(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def worst_gradient(ours: nn.Module, theirs: nn.Module) -> float:
    """Largest relative difference of a parameter tensor's gradient, norm of difference over norm."""
    mine, plain = gradients(ours), gradients(theirs)
    assert mine.keys() == plain.keys() and len(plain) > 3
    # The position table's rows behind the last clip and a few more get no gradient at all; then both must be exactly
    # zero.
    return max(
        float((mine[name] - plain[name]).norm() / plain[name].norm()) if plain[name].any() else float(mine[name].norm())
        for name in plain
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("config", [FULL, LORA, LORA_ONLY], ids=["full", "lora+connector", "lora"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_forest_equals_one_by_one(depth: int, config: TrainableConfig, implementation: str) -> None:
    seed = 10 * depth + len(config.lora.target_modules)
    model = build(config, seed)
    generated = TreeGenerator(model, seed)
    trees = [generated.tree(d) for d in (depth, 1 + depth % 3, depth)]
    forest = pack([build_tree(paths) for paths in trees])
    paths = [path for paths in trees for path in paths]
    assert len(forest) < sum(len(path.ids) for path in paths), "nothing is shared"
    plain = hf_copy(model, implementation)
    ours = Policy(model)(forest, {}, generated.waveforms)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    (ours * weights).sum().backward()
    separate = []
    for row, path in enumerate(paths):
        separate.append(hf_logprobs(plain, path, generated.waveforms))
        assert int(forest.loss_mask[row].sum()) == len(separate[row]) == sum(path.trained)
        (separate[row] * weights[row, : len(separate[row])]).sum().backward()
    assert max_abs([ours[row, : len(logprobs)] - logprobs for row, logprobs in enumerate(separate)]) < LOGPROB_LIMIT
    assert not ours[~forest.loss_mask].any()
    assert worst_gradient(model.module, plain) < GRADIENT_LIMIT


def test_merged_equals_unmerged_and_packs_do_not_mix() -> None:
    model = build(FULL, 7)
    generated = TreeGenerator(model, 7)
    trees = [generated.tree(2) for _ in range(4)]
    policy = Policy(model)
    together = policy(pack([build_tree(paths) for paths in trees]), {}, generated.waveforms)
    apart = policy(pack([build_tree(paths, merge=False) for paths in trees]), {}, generated.waveforms)
    assert max_abs([together - apart]) < LOGPROB_LIMIT
    row = 0
    for paths in trees:
        single = policy(pack([build_tree(paths)]), {}, generated.waveforms)
        assert max_abs([together[row : row + len(paths), : single.shape[1]] - single]) < LOGPROB_LIMIT
        row += len(paths)
    packs = build_micro_batches(model, None, trees, generated.waveforms, 150)
    assert len(packs) > 1
    split = [policy(micro_batch.forest, micro_batch.encoder_states, micro_batch.waveforms) for micro_batch in packs]
    rows = torch.cat([torch.nn.functional.pad(part, (0, together.shape[1] - part.shape[1])) for part in split])
    assert max_abs([together - rows]) < LOGPROB_LIMIT


def completions(generated: TreeGenerator) -> list[TokenPath]:
    """A group of eight: equal ones, ones that begin alike, and some that are prefixes of others."""
    long, short = generated.text(6, 6, True), generated.text(4, 4, True)
    cut = TokenPath(long.ids[:3], long.trained[:3], long.clips[:3])
    return [long, short, long, cut, cut + generated.text(2, 2, True), long + generated.text(3, 3, True), short, cut]


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora+connector"])
def test_grpo_on_a_trie_equals_separate_sequences(config: TrainableConfig) -> None:
    """R1-AQA's loss with KL on a group with repeats and prefixes: same loss, same gradients as eight sequences of
    their own.
    """
    model = build(config, 4)
    generated = TreeGenerator(model, 4)
    groups = []
    for _ in range(2):
        trunk = generated.text(2, 5, False) + generated.clip() + generated.text(2, 5, False)
        groups.append([trunk + end for end in completions(generated)])
    generator = torch.Generator().manual_seed(4)
    advantages = torch.randn(16, generator=generator)
    forest = pack([build_tree(group) for group in groups])
    assert len(forest) < sum(max(len(path.ids) for path in group) for group in groups) + 2 * 25
    plain = hf_copy(model)
    ours = Policy(model)(forest, {}, generated.waveforms)
    reference = ours.detach() + 0.3 * torch.randn(ours.shape, generator=generator)
    old = ours.detach() + 0.1 * torch.randn(ours.shape, generator=generator)
    mine = grpo_loss(ours, old, reference, advantages, forest.loss_mask, beta=0.04)
    mine.loss.backward()
    rows = [hf_logprobs(plain, path, generated.waveforms) for group in groups for path in group]
    theirs = torch.stack([torch.nn.functional.pad(row, (0, ours.shape[1] - len(row))) for row in rows])
    separate = grpo_loss(theirs, old, reference, advantages, forest.loss_mask, beta=0.04)
    separate.loss.backward()
    assert abs(float(mine.loss.detach() - separate.loss.detach())) < 1e-5
    assert worst_gradient(model.module, plain) < GRADIENT_LIMIT


def test_equal_completions_are_one_branch_whose_advantages_add() -> None:
    def gradient(advantages: Sequence[float], repeats: Sequence[int]) -> tuple[dict[str, Tensor], int]:
        model = build(LORA, 9)
        generated = TreeGenerator(model, 9)
        trunk = generated.text(3, 3, False) + generated.clip() + generated.text(3, 3, False)
        ends = [generated.text(5, 5, True), generated.text(7, 7, True)]
        forest = pack([build_tree([trunk + ends[number] for number in repeats])])
        logprobs = Policy(model)(forest, {}, generated.waveforms)
        (logprobs.sum(1) * torch.tensor(advantages)).sum().backward()
        return gradients(model.module), len(forest)

    repeated, size = gradient([0.5, -1.0, 0.25, 2.0], [0, 1, 0, 0])
    added, size_once = gradient([2.75, -1.0], [0, 1])
    assert size == size_once
    assert max(float((repeated[name] - added[name]).norm() / added[name].norm()) for name in added) < 1e-5


def run(
    model: Qwen2Audio, forest: Forest, mask_forest: Forest, positions: Tensor, waveforms: dict[int, Waveform]
) -> Tensor:
    """Log-probabilities of `forest` under the attention mask of `mask_forest` and the given positions."""
    clips = sorted(waveforms)
    projected = model.project_audio(model.encode_audio([waveforms[clip] for clip in clips]))
    embeddings = insert_audio_embeddings(model.embed(forest.ids), forest, dict(zip(clips, projected, strict=True)))
    hidden = model.decode(embeddings, positions, TreeAttention(mask_forest))
    return branch_logprobs(target_logprobs(hidden, forest, model.logits), forest)


@torch.no_grad()
def test_the_comparison_sees_a_wrong_mask() -> None:
    model = tiny_qwen2_audio(2)
    generated = TreeGenerator(model, 2)
    paths = generated.tree(2)
    forest = pack([build_tree(paths)])
    plain = hf_copy(model)
    separate = [hf_logprobs(plain, path, generated.waveforms) for path in paths]

    def error(mask_forest: Forest, positions: Tensor) -> float:
        ours = run(model, forest, mask_forest, positions, generated.waveforms)
        return max_abs([ours[row, : len(logprobs)] - logprobs for row, logprobs in enumerate(separate)])

    siblings_visible = dataclasses.replace(forest, subtree_ends=torch.full_like(forest.subtree_ends, len(forest)))
    one_too_long = dataclasses.replace(forest, subtree_ends=(forest.subtree_ends + 1).clamp(max=len(forest)))
    # A subtree's last token predicts nothing, so hiding something from it is no error; from the last two it is.
    shortened = torch.maximum(forest.subtree_ends - 2, torch.arange(len(forest)) + 1)
    two_too_short = dataclasses.replace(forest, subtree_ends=shortened)
    assert error(forest, forest.positions) < LOGPROB_LIMIT
    for mutant in (siblings_visible, one_too_long, two_too_short):
        assert error(mutant, forest.positions) > 100 * LOGPROB_LIMIT
    assert error(forest, torch.arange(len(forest))) > 100 * LOGPROB_LIMIT
    assert error(forest, forest.positions.roll(1)) > 100 * LOGPROB_LIMIT


@torch.no_grad()
def test_the_comparison_sees_trees_that_mix() -> None:
    model = tiny_qwen2_audio(3)
    generated = TreeGenerator(model, 3)
    trees = [generated.tree(1), generated.tree(1)]
    forest = pack([build_tree(paths) for paths in trees])
    ends = forest.subtree_ends.where(forest.subtree_ends != forest.tree_offsets[1], len(forest))
    leaking = dataclasses.replace(forest, subtree_ends=ends, tree_offsets=(0, len(forest)))
    good = run(model, forest, forest, forest.positions, generated.waveforms)
    assert max_abs([run(model, forest, leaking, forest.positions, generated.waveforms) - good]) > 100 * LOGPROB_LIMIT
