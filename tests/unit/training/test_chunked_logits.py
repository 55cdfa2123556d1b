"""Logits at answer positions in chunks: equal values and gradients, and never more than one chunk in memory."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from builders import max_abs, tiny_qwen2_audio, tone, user_question
from earwise.config.stages import TrainableConfig
from earwise.forest import Forest, TokenPath, branch_logprobs, build_tree, pack, target_logprobs
from earwise.models.parts.gradient_checkpointing import enable_gradient_checkpointing
from earwise.models.prompt_encoding import answer_path, conversation_path
from earwise.training.policy import Policy
from earwise.training.trainable import set_trainable

DIM, VOCAB = 6, 1000


def forest_of(answers: int, length: int) -> Forest:
    """A prompt of two tokens with `answers` branches of `length` tokens, which differ from their first token on."""
    paths = []
    for number in range(answers):
        answer = tuple(10 + (number * 7 + 3 * place) % 90 for place in range(length))
        answer = (200 + number, *answer[1:])
        paths.append(TokenPath((1, 2, *answer), (False, False, *[True] * length), (-1,) * (2 + length)))
    return pack([build_tree(paths)])


class LogitsMemory(TorchDispatchMode):
    """Records the size of all tensors over the vocabulary that operations create.

    Attributes:
        rows: Largest number of rows of one `(rows, vocab)` tensor.
        alive: Largest number of elements of such tensors in memory at once; shared memory is counted once.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.rows = self.alive = 0
        self._weight = weight
        self._live: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            is_logits = isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[1] == VOCAB
            if is_logits and tensor.shape[0] != DIM:  # the head has DIM rows
                self.rows = max(self.rows, tensor.shape[0])
                storage = tensor.untyped_storage()
                self._live[storage.data_ptr()] = (weakref.ref(storage), tensor.numel())
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if ref() is not None}
        self.alive = max(self.alive, sum(size for _, size in self._live.values()))
        return out


def run(forest: Forest, chunk: int) -> tuple[Tensor, list[Tensor], LogitsMemory]:
    """Log-probabilities, gradients of a weighted sum with respect to hidden states and head, and the memory used."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(forest), DIM, generator=generator, requires_grad=True)
    head = torch.randn(DIM, VOCAB, generator=generator, requires_grad=True)
    weights = torch.randn(len(forest.target_ids), generator=generator)
    gc.collect()
    with LogitsMemory(head) as memory:
        values = target_logprobs(hidden, forest, lambda states: states @ head, chunk=chunk)
        (values * weights).sum().backward()
    assert hidden.grad is not None and head.grad is not None
    return values.detach(), [hidden.grad, head.grad], memory


@pytest.mark.parametrize("chunk", [1, 5, 16, 39, 40, 41])
def test_any_chunk_gives_the_same_values_and_gradients(chunk: int) -> None:
    forest = forest_of(8, 6)
    assert len(forest.source_indices) == 1 + 8 * 5
    values, gradients, _ = run(forest, 10_000)
    chunked_values, chunked_gradients, _ = run(forest, chunk)
    assert max_abs([values - chunked_values]) < 1e-5
    for gradient, chunked_gradient in zip(gradients, chunked_gradients, strict=True):
        assert float((gradient - chunked_gradient).norm() / gradient.norm()) < 1e-6


def test_values_are_log_softmax_at_the_parent() -> None:
    """Compared with dense logits: the prediction of a token is read at the token before it."""
    forest = forest_of(3, 4)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(len(forest), DIM, generator=generator)
    head = torch.randn(DIM, VOCAB, generator=generator)
    dense = (hidden @ head).log_softmax(-1)
    rows = branch_logprobs(target_logprobs(hidden, forest, lambda states: states @ head, chunk=2), forest)
    for branch in range(3):
        start = 2 + 4 * branch  # depth first: the prompt at 0 and 1, then one branch after the other
        parents = [1, start, start + 1, start + 2]
        ids = forest.ids[start : start + 4]
        assert torch.allclose(rows[branch], dense[parents, ids], atol=1e-5)


def test_logits_of_one_chunk_at_most_are_in_memory() -> None:
    """Forward and backward hold a few tensors of one chunk, however many chunks there are; prompts have no logits."""
    few, many = forest_of(8, 5), forest_of(32, 9)
    alive = []
    for forest in (few, many):
        assert len(forest.source_indices) > 2 * 16
        memory = run(forest, 16)[2]
        assert memory.rows == 16
        alive.append(memory.alive / (16 * VOCAB))
    assert alive[0] == alive[1] <= 6
    unchunked = run(many, 10_000)[2]
    assert unchunked.rows == len(many.source_indices) and unchunked.alive > 10 * alive[1] * 16 * VOCAB, (
        "without chunks the difference shows"
    )


class CountingLayer(nn.Module):
    """A layer that counts how often it is computed."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.layer(*args, **kwargs)


def test_recomputed_layers_give_the_same_gradients() -> None:
    results = []
    for recompute in (False, True):
        model = tiny_qwen2_audio(2)
        set_trainable(model, TrainableConfig(encoder="full", connector="full", decoder="full"))
        layers = model.module.model.language_model.layers
        for layer in layers:
            layer.mlp = CountingLayer(layer.mlp)
        if recompute:
            assert enable_gradient_checkpointing(model.module) == 4
        waveform = tone(0.4)
        prompt = conversation_path(model, user_question("Which?"), [0], [len(waveform)], generate=True)
        forest = pack([build_tree([prompt + answer_path(model, text) for text in ("a dog", "a door")])])
        model.module.train()
        values = Policy(model)(forest, {}, {0: waveform})
        values.sum().backward()
        gradients = [parameter.grad for parameter in model.module.parameters() if parameter.grad is not None]
        gradient = torch.cat([gradient.flatten() for gradient in gradients])
        results.append((values.detach(), gradient, [layer.mlp.calls for layer in layers]))
    (values, gradient, calls), (recomputed_values, recomputed_gradient, recomputed_calls) = results
    assert calls == [1, 1] and recomputed_calls == [2, 2]
    assert torch.equal(values, recomputed_values)
    assert float((gradient - recomputed_gradient).norm() / gradient.norm()) < 1e-6
