"""KV cache in buffers of fixed shapes, so that a CUDA device replays a whole decoding step as one CUDA graph.

A decoding step of a large model is about a thousand small kernels, and launching them one by one takes several times
as long as running them. A CUDA graph launches them all at once, but it is bound to fixed addresses and shapes.
Therefore the buffers of keys and values stay where they are between rollouts, and every shape is rounded up to a bucket
(`bucket_size`), so that few graphs are needed. The layout is that of `engine.kv_cache`, one row of slots per token
tree: branches share the slots of their common prefix, and forking copies nothing. `engine.decode_loop` runs on either
cache and samples the same tokens.

Padding changes no result: extra tokens repeat the first token and write the same keys to the same slot again; padded
queries see slot 0 only; slots that hold no key are masked, and contain finite numbers.

A shape is run eagerly the first time it occurs and captured the second time. Captured graphs are valid while the
weights stay at their addresses; in-place updates are fine. Decoders that copy from the device to the host during a step
(some mixtures of experts) are never captured, and neither is anything on a CPU, where the tests compare this file with
`TreeCache`.

Source: CUDA graphs as documented by torch (`torch.cuda.CUDAGraph`). The bucketing of shapes is ours.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from earwise.engine.kv_cache import StepLayout, TreeCache, window_mask
from earwise.models.base import AudioLM
from earwise.models.parts.attention import attend

MIN_SLOTS = 128
"""Smallest number of slots of a buffer."""
MAX_SHAPES = 96
"""Number of shapes to remember. When it is exceeded, all are forgotten and captured anew."""
RETAINED_SHARE = 0.25
"""Buffers of up to this share of the device's memory are kept between rollouts."""


def bucket_size(count: int, minimum: int = 1) -> int:
    """Round a size up to a bucket: 1, 2, 4, 8 ... times `minimum`; with `minimum` above 1 also those halfway between.

    >>> [bucket_size(n) for n in (1, 3, 8, 9)], [bucket_size(n, 128) for n in (5, 130, 200, 600)]
    ([1, 4, 8, 16], [128, 192, 256, 768])
    """
    size = minimum
    while size < count:
        if minimum > 1 and size + size // 2 >= count:
            return size + size // 2
        size *= 2
    return size


@dataclass(frozen=True, slots=True)
class StepShape:
    """The padded sizes of a decoding step.

    Attributes:
        tokens: Tokens that are computed.
        trees: Token trees.
        queries: Queries per tree.
        slots: Slots per tree that attention reads.
    """

    tokens: int
    trees: int
    queries: int
    slots: int


class _StepBuffers:
    """The input buffers of one shape, and its CUDA graph once it is captured."""

    def __init__(self, shape: StepShape, device: torch.device) -> None:
        self.shape = shape
        self.token_table = torch.zeros(5, shape.tokens, dtype=torch.long, device=device)
        """Five rows: token id, position, tree, query, and slot of each token."""
        self.mask = torch.zeros(shape.trees, 1, shape.queries, shape.slots, dtype=torch.bool, device=device)
        self.uses = 0
        """How often the shape has occurred."""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None
        """Output buffer of the graph."""

    def fill(self, ids: Tensor, positions: Tensor, layout: StepLayout) -> None:
        """Copy a step's inputs into the buffers and pad them."""
        count, (trees, _, queries, slots) = len(ids), layout.mask.shape
        columns = torch.stack((ids, positions, layout.tree_index, layout.query_index, layout.slot_index))
        self.token_table[:, :count] = columns
        self.token_table[:, count:] = columns[:, :1]
        self.mask.zero_()
        self.mask[:trees, :, :queries, :slots] = layout.mask
        self.mask[..., 0] = True


class StaticCache:
    """Keys and values of token trees in fixed buffers; the `AttentionFn` of the step that it computes.

    Args:
        model: Model that decodes.
        capture: True captures steps as CUDA graphs; False runs the same code eagerly, on any device.
    """

    def __init__(self, model: AudioLM, *, capture: bool) -> None:
        self._model = model
        self.capture = capture
        self._keys: list[Tensor] = []
        """Per layer `(trees, kv_heads, slots, head_dim)`."""
        self._values: list[Tensor] = []
        self._capacity = (0, 0)
        """Trees and slots that the buffers have room for."""
        self.mask = torch.zeros(0, 1, 0, 0, dtype=torch.bool)
        """Mask of the last step, `(trees, 1, queries, slots)`."""
        self._steps: dict[StepShape, _StepBuffers] = {}
        self._current: _StepBuffers | None = None
        self._biases: dict[int | None, Tensor] = {}
        """By sliding window: the mask of the step that is computed as an additive bias."""
        self._slot_positions: Tensor | None = None
        """Position of the token in each slot, `(trees, slots)`; None until a layer has a sliding window."""
        self._weight_addresses: tuple[tuple[int, bool], ...] = ()
        self._graph_pool: Any = None

    @property
    def shapes(self) -> list[StepShape]:
        """Shapes that have occurred."""
        return list(self._steps)

    @property
    def num_captured(self) -> int:
        """Number of shapes that are captured as CUDA graphs."""
        return sum(step.graph is not None for step in self._steps.values())

    @property
    def nbytes(self) -> int:
        """Size of the key and value buffers in bytes."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    @contextmanager
    def loaded(self, cache: TreeCache) -> Iterator[None]:
        """Take over the prompts of a prefill; inside the context, `advance` and `select_trees` continue them.

        Args:
            cache: Cache of the prefill. Its layers are moved out of it.
        """
        module = self._model.module
        addresses = tuple(
            (weight.data_ptr(), weight.requires_grad) for weight in (*module.parameters(), *module.buffers())
        )
        if addresses != self._weight_addresses:  # moved, or LoRA was switched: the captured graphs use other weights
            self._weight_addresses = addresses
            self._forget(buffers=True)
        self.mask = cache.mask
        trees, _, _, slots = cache.mask.shape
        self._ensure_capacity(trees, slots)
        if cache.slot_positions is not None:
            if self._slot_positions is None:
                self._slot_positions = cache.slot_positions.new_zeros(self._capacity)
            self._slot_positions[:trees, :slots] = cache.slot_positions[:, :slots]
        for buffer in (*self._keys, *self._values):
            buffer.zero_()
        for layer, (keys, values) in enumerate(cache.pop_layers()):
            if layer == len(self._keys):
                shape = (self._capacity[0], keys.shape[1], self._capacity[1], keys.shape[3])
                self._keys.append(keys.new_zeros(shape))
                self._values.append(keys.new_zeros(shape))
            self._keys[layer][:trees, :, :slots] = keys[:, :, :slots]
            self._values[layer][:trees, :, :slots] = values[:, :, :slots]
        try:
            yield
        finally:
            if self._keys and self.nbytes > _retained_bytes(self._keys[0].device):
                self._forget(buffers=True)

    def select_trees(self, trees: Tensor) -> None:
        """Keep only these trees, renumbered in this order."""
        self.mask = self.mask[trees]
        for buffer in (*self._keys, *self._values):
            buffer[: len(trees)] = buffer[trees]
        if self._slot_positions is not None:
            self._slot_positions[: len(trees)] = self._slot_positions[trees]

    def advance(self, model: AudioLM, ids: Tensor, positions: Tensor, layout: StepLayout) -> Tensor:
        """Compute a decoding pass.

        Args:
            model: Model that decodes.
            ids: Token ids, `(tokens,)`.
            positions: Position of each token in its sequence, `(tokens,)`.
            layout: Trees, slots and mask of the pass.
        Returns:
            Logits of the token that follows each one, `(tokens, vocab)`. The next call overwrites them.
        """
        self.mask = layout.mask
        trees, _, queries, slots = layout.mask.shape
        self._ensure_capacity(trees, slots)
        shape = StepShape(
            bucket_size(len(ids)), bucket_size(trees), bucket_size(queries), bucket_size(slots, MIN_SLOTS)
        )
        if shape not in self._steps:
            if len(self._steps) == MAX_SHAPES:
                self._forget()
            self._steps[shape] = _StepBuffers(shape, ids.device)
        step = self._current = self._steps[shape]
        step.fill(ids, positions, layout)
        return self._run_or_replay(model, step)[: len(ids)]

    def __call__(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None = None
    ) -> Tensor:
        """Store the step's keys and values and attend to the slots that the mask allows; see `AttentionFn`."""
        assert self._current is not None, "advance() comes before attention"
        shape, (_, _, tree_index, query_index, slot_index) = self._current.shape, self._current.token_table
        heads, width = queries.shape[1], queries.shape[3]
        kv_heads, group_size = keys.shape[1], heads // keys.shape[1]
        self._keys[layer][tree_index, :, slot_index] = keys[0].transpose(0, 1)
        self._values[layer][tree_index, :, slot_index] = values[0].transpose(0, 1)
        bias = self._biases.get(window)
        if bias is None or bias.shape[2] != group_size * shape.queries or bias.dtype != queries.dtype:
            mask = self._visible(self._current, window)
            bias = queries.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf).repeat(1, 1, group_size, 1)
            self._biases[window] = bias
        by_tree = queries.new_zeros(shape.trees, heads, shape.queries, width)
        by_tree[tree_index, :, query_index] = queries[0].transpose(0, 1)
        # Query heads that share a key/value head become further queries of it: the attention kernels that accept a
        # mask do not support grouped heads, and this needs no copies of the keys.
        attended = attend(
            by_tree.reshape(shape.trees, kv_heads, group_size * shape.queries, width),
            self._keys[layer][: shape.trees, :, : shape.slots],
            self._values[layer][: shape.trees, :, : shape.slots],
            bias,
            scale,
        ).reshape(by_tree.shape)
        return attended[tree_index, :, query_index].transpose(0, 1)[None]

    def _visible(self, step: _StepBuffers, window: int | None) -> Tensor:
        """The mask of a layer with this window; written with operations that a CUDA graph can hold."""
        if window is None:
            return step.mask
        if self._slot_positions is None:
            self._slot_positions = torch.zeros(self._capacity, dtype=torch.long, device=step.mask.device)
        _, _, tree_index, query_index, slot_index = step.token_table
        layout = StepLayout(tree_index, query_index, slot_index, step.mask)
        return step.mask & window_mask(layout, self._slot_positions, window)

    def _run_or_replay(self, model: AudioLM, step: _StepBuffers) -> Tensor:
        """The logits of a step whose buffers are filled: replayed, captured, or run eagerly."""
        step.uses += 1
        if step.graph is not None and step.logits is not None:
            step.graph.replay()
            return step.logits
        if not self.capture:
            return self._run(model, step)
        if step.uses == 1:
            with HostReadDetector() as detector:
                logits = self._run(model, step)
            self.capture = not detector.reads
            return logits
        try:
            self._capture_graph(model, step)
        except RuntimeError as error:
            warnings.warn(f"{model.name}: decodes without CUDA graphs ({str(error).splitlines()[0]})", stacklevel=2)
            self.capture, step.graph = False, None
            return self._run(model, step)
        return self._run_or_replay(model, step)

    def _run(self, model: AudioLM, step: _StepBuffers) -> Tensor:
        """Run a step eagerly."""
        self._biases = {}
        return model.logits(model.decode(model.embed(step.token_table[0]), step.token_table[1], self))

    def _capture_graph(self, model: AudioLM, step: _StepBuffers) -> None:
        """Capture a step. Its outputs are used up before the next step, so all graphs share one memory pool."""
        self._graph_pool = self._graph_pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(step.mask.device),
            torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"),
        ):
            step.logits = self._run(model, step)
        step.graph = graph

    def _forget(self, *, buffers: bool = False) -> None:
        """Drop all graphs with their memory pool (torch needs a new pool once the last graph is gone).

        Args:
            buffers: True drops the buffers of keys and values as well.
        """
        self._steps.clear()
        self._current, self._graph_pool = None, None
        if buffers:
            self._keys, self._values, self._capacity, self._slot_positions = [], [], (0, 0), None

    def _ensure_capacity(self, trees: int, slots: int) -> None:
        """Enlarge the buffers if they are too small; graphs that use the old buffers are dropped."""
        capacity = (max(self._capacity[0], bucket_size(trees)), max(self._capacity[1], bucket_size(slots, MIN_SLOTS)))
        if capacity == self._capacity:
            return
        more_trees, more_slots = capacity[0] - self._capacity[0], capacity[1] - self._capacity[1]
        self._capacity = capacity
        self._forget()
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = pad(buffer, (0, 0, 0, more_slots, 0, 0, 0, more_trees))
        if self._slot_positions is not None:
            self._slot_positions = pad(self._slot_positions, (0, more_slots, 0, more_trees))


class HostReadDetector(TorchDispatchMode):
    """Detects operations that read values or shapes back from the device, which cannot be captured in a CUDA graph.

    Attributes:
        reads: True once such an operation ran inside the context.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Inspect one operation and run it."""
        # Indexing is tagged as data dependent as a whole; only a boolean index really is.
        boolean_index = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        dynamic_shape = torch.Tag.dynamic_output_shape in func.tags and func is not torch.ops.aten.index.Tensor
        self.reads |= boolean_index or dynamic_shape or torch.Tag.data_dependent_output in func.tags
        out = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, out) if isinstance(value, Tensor) and value.dim()]
        self.reads |= len({tensor.device.type for tensor in tensors}) > 1
        return out


def _retained_bytes(device: torch.device) -> float:
    """Largest size of buffers that stay allocated between rollouts; unlimited without a CUDA device."""
    on_cuda = device.type == "cuda" and torch.cuda.is_available()
    return RETAINED_SHARE * torch.cuda.mem_get_info(device)[1] if on_cuda else torch.inf
