"""Decoding in buffers of fixed shapes, so that a CUDA device replays a whole step as one graph.

A step of a large decoder is a thousand small kernels; launching them one by one takes several times as long as running
them. A CUDA graph launches them at once, but knows only addresses and shapes: so keys and values live in buffers that
stay where they are between rollouts, and every shape is rounded up to a rung of a ladder (`rung`). Trees keep
`cache.py`'s layout, one row of slots each, whichever branch a token belongs to: a branch that parts copies nothing, and
every key is read once for all branches that see it. The bookkeeping is `local.py`'s own, so both ways sample the same.

What fills a shape up changes nothing: rows beyond the last repeat the first one, which writes the same keys to the same
slot again; queries that are no token see slot 0; slots that are no key are not seen, and hold finite numbers.

A shape is run plainly the first time it is met and recorded the second. Graphs hold while the weights stay where they
are. A decoder whose step reads from the device (some mixtures of experts do) is never recorded; nor is anything on a
CPU, where tests run this file against `TreeCache`.

Source: CUDA graphs as torch documents them (`torch.cuda.CUDAGraph`); rounding shapes is ours.
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

from earwise.engine.kv_cache import Step, TreeCache
from earwise.models.base import AudioLM
from earwise.models.parts.attention import attend

FEWEST_SLOTS = 128
RECORDED = 96
"""Shapes that are remembered; beyond them all are forgotten and met anew."""
KEPT_SHARE = 0.25
"""Buffers of up to this share of the device's memory stay there between rollouts."""


def rung(count: int, lowest: int = 1) -> int:
    """The next number of the ladder 1, 2, 4, 8 ... times `lowest`; with `lowest` above 1 also those halfway between.

    >>> [rung(n) for n in (1, 3, 8, 9)], [rung(n, 128) for n in (5, 130, 200, 600)]
    ([1, 4, 8, 16], [128, 192, 256, 768])
    """
    step = lowest
    while step < count:
        if lowest > 1 and step + step // 2 >= count:
            return step + step // 2
        step *= 2
    return step


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a step, rounded up: tokens, trees, queries of a tree, slots that are looked at."""

    tokens: int
    trees: int
    queries: int
    slots: int


class _Pass:
    """One shape: where its inputs are put, and the recorded step once there is one."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.numbers = torch.zeros(5, shape.tokens, dtype=torch.long, device=device)
        """Ids, positions, trees, columns, slots."""
        self.mask = torch.zeros(shape.trees, 1, shape.queries, shape.slots, dtype=torch.bool, device=device)
        self.met = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.scores: Tensor | None = None

    def put(self, ids: Tensor, positions: Tensor, step: Step) -> None:
        """Fill in a step."""
        count, (trees, _, queries, slots) = len(ids), step.mask.shape
        given = torch.stack((ids, positions, step.rows, step.columns, step.slots))
        self.numbers[:, :count] = given
        self.numbers[:, count:] = given[:, :1]
        self.mask.zero_()
        self.mask[:trees, :, :queries, :slots] = step.mask
        self.mask[..., 0] = True


class StaticCache:
    """Keys and values of growing trees in buffers of fixed shapes; implements `Attend` for the step it computes.

    Args:
        model: Who decodes.
        capture: Record steps as CUDA graphs; False runs the same code plainly, on any device.
    """

    def __init__(self, model: AudioLM, *, capture: bool) -> None:
        self._model = model
        self.capture = capture
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._size = (0, 0)
        """Trees and slots that there is room for."""
        self.mask = torch.zeros(0, 1, 0, 0, dtype=torch.bool)
        """What the tokens of the last step see, `(trees, 1, queries, slots)`."""
        self._passes: dict[Shape, _Pass] = {}
        self._now: _Pass | None = None
        self._bias: Tensor | None = None
        self._weights: tuple[tuple[int, bool], ...] = ()
        self._pool: Any = None

    @property
    def shapes(self) -> list[Shape]:
        """Shapes met so far."""
        return list(self._passes)

    @property
    def recorded(self) -> int:
        """How many of them are recorded."""
        return sum(one.graph is not None for one in self._passes.values())

    @property
    def nbytes(self) -> int:
        """Size of the buffers."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    @contextmanager
    def holding(self, cache: TreeCache) -> Iterator[None]:
        """Take over trees whose trunks were computed; inside, `advance` and `keep` grow them."""
        weights = tuple((one.data_ptr(), one.requires_grad) for one in self._model.module.parameters())
        if weights != self._weights:  # moved, or an adapter was switched: what was recorded is of another model
            self._weights = weights
            self._forget(buffers=True)
        self.mask = cache.mask
        trees, _, _, slots = cache.mask.shape
        self._room(trees, slots)
        for buffer in (*self._keys, *self._values):
            buffer.zero_()
        for layer, (keys, values) in enumerate(cache.layers()):
            if layer == len(self._keys):
                shape = (self._size[0], keys.shape[1], self._size[1], keys.shape[3])
                self._keys.append(keys.new_zeros(shape))
                self._values.append(keys.new_zeros(shape))
            self._keys[layer][:trees, :, :slots] = keys[:, :, :slots]
            self._values[layer][:trees, :, :slots] = values[:, :, :slots]
        try:
            yield
        finally:
            if self._keys and self.nbytes > _kept_bytes(self._keys[0].device):
                self._forget(buffers=True)

    def keep(self, rows: Tensor) -> None:
        """Drop all trees but these, renumbered in this order."""
        self.mask = self.mask[rows]
        for buffer in (*self._keys, *self._values):
            buffer[: len(rows)] = buffer[rows]

    def advance(self, model: AudioLM, ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        """Compute one token of every state.

        Returns:
            Scores `(states, vocab)` of the next, which the next call overwrites.
        """
        self.mask = step.mask
        trees, _, queries, slots = step.mask.shape
        self._room(trees, slots)
        shape = Shape(rung(len(ids)), rung(trees), rung(queries), rung(slots, FEWEST_SLOTS))
        if shape not in self._passes:
            if len(self._passes) == RECORDED:
                self._forget()
            self._passes[shape] = _Pass(shape, ids.device)
        one = self._now = self._passes[shape]
        one.put(ids, positions, step)
        return self._scores(model, one)[: len(ids)]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        assert self._now is not None, "advance() comes before attention"
        shape, (_, _, rows, columns, slots) = self._now.shape, self._now.numbers
        heads, width = queries.shape[1], queries.shape[3]
        own, groups = keys.shape[1], heads // keys.shape[1]
        self._keys[layer][rows, :, slots] = keys[0].transpose(0, 1)
        self._values[layer][rows, :, slots] = values[0].transpose(0, 1)
        if self._bias is None or self._bias.shape[2] != groups * shape.queries or self._bias.dtype != queries.dtype:
            bias = queries.new_zeros(self._now.mask.shape).masked_fill_(~self._now.mask, -torch.inf)
            self._bias = bias.repeat(1, 1, groups, 1)
        grid = queries.new_zeros(shape.trees, heads, shape.queries, width)
        grid[rows, :, columns] = queries[0].transpose(0, 1)
        # Heads that share keys become further queries of these: no kernel for masks knows groups, and none is needed.
        mixed = attend(
            grid.reshape(shape.trees, own, groups * shape.queries, width),
            self._keys[layer][: shape.trees, :, : shape.slots],
            self._values[layer][: shape.trees, :, : shape.slots],
            self._bias,
            scale,
        ).reshape(grid.shape)
        return mixed[rows, :, columns].transpose(0, 1)[None]

    def _scores(self, model: AudioLM, one: _Pass) -> Tensor:
        """The step's scores: replayed, recorded, or run plainly."""
        one.met += 1
        if one.graph is not None and one.scores is not None:
            one.graph.replay()
            return one.scores
        if not self.capture:
            return self._run(model, one)
        if one.met == 1:
            with Watch() as watch:
                scores = self._run(model, one)
            self.capture = not watch.reads
            return scores
        try:
            self._record(model, one)
        except RuntimeError as error:
            warnings.warn(f"{model.name}: decodes without CUDA graphs ({str(error).splitlines()[0]})", stacklevel=2)
            self.capture, one.graph = False, None
            return self._run(model, one)
        return self._scores(model, one)

    def _run(self, model: AudioLM, one: _Pass) -> Tensor:
        self._bias = None
        return model.logits(model.decode(model.embed(one.numbers[0]), one.numbers[1], self))

    def _record(self, model: AudioLM, one: _Pass) -> None:
        """Record the step as a graph. What it computes is consumed before the next step, so all graphs share one pool
        of memory."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(one.mask.device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            one.scores = self._run(model, one)
        one.graph = graph

    def _forget(self, *, buffers: bool = False) -> None:
        """Let go of what was recorded, with its pool (torch wants a new one once the last graph is gone)."""
        self._passes.clear()
        self._now, self._pool = None, None
        if buffers:
            self._keys, self._values, self._size = [], [], (0, 0)

    def _room(self, trees: int, slots: int) -> None:
        """Let buffers grow to so many trees and slots; what was recorded knew the old ones."""
        size = (max(self._size[0], rung(trees)), max(self._size[1], rung(slots, FEWEST_SLOTS)))
        if size == self._size:
            return
        more, longer = size[0] - self._size[0], size[1] - self._size[1]
        self._size = size
        self._forget()
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = pad(buffer, (0, 0, 0, longer, 0, 0, 0, more))


class Watch(TorchDispatchMode):
    """Notes whether what runs inside reads values or shapes back from the device, which cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        shaped = torch.Tag.dynamic_output_shape in func.tags and func is not torch.ops.aten.index.Tensor
        self.reads |= by_mask or shaped or torch.Tag.data_dependent_output in func.tags
        out = func(*args, **(kwargs or {}))
        held = [one for one in (*args, out) if isinstance(one, Tensor) and one.dim()]
        self.reads |= len({one.device.type for one in held}) > 1
        return out


def _kept_bytes(device: torch.device) -> float:
    real = device.type == "cuda" and torch.cuda.is_available()
    return KEPT_SHARE * torch.cuda.mem_get_info(device)[1] if real else torch.inf
