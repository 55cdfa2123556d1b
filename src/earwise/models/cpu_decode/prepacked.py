"""Decoding on a CPU: weights of linear layers packed once for a fixed number of rows, LoRA merged in.

A matrix product with few rows is bound by how fast weights are read, and a BLAS that takes a weight as `nn.Linear`
stores it rearranges it on every call: from 3 to 96 rows that takes more time than the product. Packed once
(`lean.py`), the products of 8 rows of a 135M decoder take 40 ms instead of 104 on two cores, 32 rows 76 instead of 182.
Rows are filled up to the number that was packed for, so a row's result does not depend on how many others there are.
Packing takes some 0.3 s and as much memory as the weights; it pays after half a dozen passes. What is packed holds
until its own weights change: with LoRA the head is packed once. Elsewhere (CUDA, bfloat16, no MKL, large models)
nothing is packed and nothing changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from earwise.models.cpu_decode import fused_layers
from earwise.models.memory.published_sizes import LARGEST_PACKED_BYTES

SIZES = (8, 16, 32, 64, 96)
"""Rows that weights are packed for; beyond the last the plain product is as fast."""
FEWEST = 3
"""One and two rows go through a matrix-vector product at full speed."""
CHEAP = 16
"""Up to here a pass mostly waits for the weights: 16 rows take a quarter longer than 8."""
PAYS = 8
"""Passes after which packing has paid for itself."""


class Packed:
    """The packed decoder of one model.

    Args:
        module: The whole model.
        decoder: Prefixes of the names whose linear layers are packed, the head among them.
    """

    def __init__(self, module: nn.Module, decoder: tuple[str, ...]) -> None:
        self._module = module
        self._decoder = decoder
        self._rows = 0
        self._made: dict[nn.Module, tuple[tuple[int, ...], Callable[..., Tensor] | None]] = {}
        """What stands for each layer, and the weights that it was made from."""

    @contextmanager
    def decoding(self, rows: int, *, passes: int) -> Iterator[int]:
        """Inside, passes of up to `rows` rows (rounded up to a size) go through packed weights, without gradients.

        Args:
            rows: Rows of the widest pass that is expected.
            passes: Passes that are expected; for a few, nothing is packed anew.
        Yields:
            Rows that every pass is filled up to, 0 if nothing is packed.
        """
        size = next((size for size in SIZES if size >= rows), SIZES[-1])
        if rows < FEWEST or not torch.backends.mkl.is_available() or not self._pack(size, worth=passes >= PAYS):
            yield 0
            return
        forwards = [(layer, forward) for layer, (_, forward) in self._made.items() if forward is not None]
        own = [vars(layer).get("forward") for layer, _ in forwards]
        for layer, forward in forwards:
            layer.forward = forward  # type: ignore[method-assign]
        try:
            yield size
        finally:
            for (layer, _), before in zip(forwards, own, strict=True):
                if before is None:
                    del layer.forward
                else:
                    layer.forward = before

    @torch.no_grad()
    def _pack(self, size: int, *, worth: bool) -> bool:
        """Pack unless it is done; False if nothing is packed."""
        layers = _layers(self._module, self._decoder)
        used = [parameter for layer in layers for parameter in layer.parameters()]
        if not used or sum(parameter.nbytes for parameter in used) > LARGEST_PACKED_BYTES:
            return False
        if any(parameter.device.type != "cpu" for parameter in used):
            return False
        versions = {layer: _versions(layer) for layer in layers}
        still = {
            layer: made
            for layer, made in self._made.items()
            if size == self._rows and layer in versions and made[0] == versions[layer]
        }
        if len(still) < len(layers) and not worth:
            return False
        self._made, self._rows = still, size  # the old copies go before new ones come
        scratch: fused_layers.Scratch = {}
        for layer in layers:
            if layer not in still:
                self._made[layer] = versions[layer], fused_layers.forward(layer, size, scratch)
        return any(forward is not None for _, forward in self._made.values())


def _versions(layer: nn.Module) -> tuple[int, ...]:
    """Changes when a weight of the layer does."""
    return tuple(number for weight in layer.parameters() for number in (weight.data_ptr(), weight._version))


def _layers(module: nn.Module, decoder: tuple[str, ...]) -> list[nn.Module]:
    """Of the decoder: whole layers where they are of a kind that is known, else their linear layers, with LoRA if they
    carry it."""
    found: list[nn.Module] = []
    inside: str | None = None
    for name, layer in module.named_modules():
        if not f"{name}.".startswith(decoder) or (inside and name.startswith(inside)):
            continue
        if isinstance(layer, nn.Linear) or hasattr(layer, "lora_A") or fused_layers.knows(layer):
            found.append(layer)
            inside = f"{name}."
    return found
