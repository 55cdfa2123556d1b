"""Logits at answer positions, a chunk at a time: the same numbers and gradients, and never more than a chunk alive."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from builders import user_question, max_abs, tone, tiny_qwen2_audio
from earwise.config.stages import TrainableConfig
from earwise.forest import Forest, TokenPath, branch_logprobs, build_tree, pack, target_logprobs
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.train.policy import Policy
from earwise.train.trainable import set_trainable

DIM, VOCAB = 6, 1000


def forest_of(answers: int, length: int) -> Forest:
    """One trunk of two tokens, `answers` branches of `length` tokens that part at once."""
    paths = []
    for number in range(answers):
        said = tuple(10 + (number * 7 + 3 * at) % 90 for at in range(length))
        said = (200 + number, *said[1:])
        paths.append(TokenPath((1, 2, *said), (False, False, *[True] * length), (-1,) * (2 + length)))
    return pack([build_tree(paths)])


class Largest(TorchDispatchMode):
    """Watches every tensor that an operation makes: the largest over the vocabulary, and how much of it lives at once.

    Attributes:
        rows: Most rows of one `(rows, vocab)` tensor.
        alive: Most elements of such tensors alive at once, shared memory counted once.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.rows = self.alive = 0
        self._weight = weight
        self._live: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor) and made.dim() == 2 and made.shape[1] == VOCAB and made.shape[0] != DIM:
                self.rows = max(self.rows, made.shape[0])
                storage = made.untyped_storage()
                self._live[storage.data_ptr()] = (weakref.ref(storage), made.numel())
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if ref() is not None}
        self.alive = max(self.alive, sum(size for _, size in self._live.values()))
        return out


def run(forest: Forest, chunk: int) -> tuple[Tensor, list[Tensor], Largest]:
    """Log-probabilities, gradients of a weighted sum by hidden states and head, and what was alive meanwhile."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(forest), DIM, generator=generator, requires_grad=True)
    head = torch.randn(DIM, VOCAB, generator=generator, requires_grad=True)
    weights = torch.randn(len(forest.target_ids), generator=generator)
    gc.collect()
    with Largest(head) as watched:
        values = target_logprobs(hidden, forest, lambda states: states @ head, chunk=chunk)
        (values * weights).sum().backward()
    assert hidden.grad is not None and head.grad is not None
    return values.detach(), [hidden.grad, head.grad], watched


@pytest.mark.parametrize("chunk", [1, 5, 16, 39, 40, 41])
def test_any_chunk_gives_the_same_values_and_gradients(chunk: int) -> None:
    forest = forest_of(8, 6)
    assert len(forest.source_indices) == 1 + 8 * 5
    values, grads, _ = run(forest, 10_000)
    again, again_grads, _ = run(forest, chunk)
    assert max_abs([values - again]) < 1e-5
    for one, other in zip(grads, again_grads, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-6


def test_values_are_log_softmax_at_the_parent() -> None:
    """By hand on the dense logits: every wanted token is read where the token before it stands."""
    forest = forest_of(3, 4)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(forest), DIM, generator=generator)
    head = torch.randn(DIM, VOCAB, generator=generator)
    dense = (hidden @ head).log_softmax(-1)
    rows = branch_logprobs(target_logprobs(hidden, forest, lambda states: states @ head, chunk=2), forest)
    for branch in range(3):
        start = 2 + 4 * branch  # depth first: trunk 0 1, then one branch after the other
        parents = [1, start, start + 1, start + 2]
        ids = forest.ids[start : start + 4]
        assert torch.allclose(rows[branch], dense[parents, ids], atol=1e-5)


def test_no_more_than_a_chunk_is_ever_alive() -> None:
    """Forward and backward hold a few tensors of one chunk, however many chunks there are; prompts have no logits."""
    few, many = forest_of(8, 5), forest_of(32, 9)
    alive = []
    for forest in (few, many):
        assert len(forest.source_indices) > 2 * 16
        watched = run(forest, 16)[2]
        assert watched.rows == 16
        alive.append(watched.alive / (16 * VOCAB))
    assert alive[0] == alive[1] <= 6
    whole = run(many, 10_000)[2]
    assert whole.rows == len(many.sources) and whole.alive > 10 * alive[1] * 16 * VOCAB, "what chunks save is seen"


class Counted(nn.Module):
    """A layer that counts how often it is computed."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.layer(*args, **kwargs)


def test_recomputed_layers_give_the_same_gradients() -> None:
    found = []
    for on in (False, True):
        model = tiny_qwen2_audio(2)
        set_trainable(model, TrainableConfig(encoder="full", connector="full", decoder="full"))
        layers = model.module.model.language_model.layers
        for layer in layers:
            layer.mlp = Counted(layer.mlp)
        if on:
            assert enable_gradient_checkpointing(model.module) == 4
        wave = tone(0.4)
        trunk = conversation_path(model, user_question("Which?"), [0], [len(wave)], generate=True)
        forest = pack([build_tree([trunk + answer_path(model, text) for text in ("a dog", "a door")])])
        model.module.train()
        values = Policy(model)(forest, {}, {0: wave})
        values.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])
        found.append((values.detach(), gradient, [layer.mlp.calls for layer in layers]))
    (values, gradient, once), (again, again_gradient, twice) = found
    assert once == [1, 1] and twice == [2, 2]
    assert torch.equal(values, again)
    assert float((gradient - again_gradient).norm() / gradient.norm()) < 1e-6
