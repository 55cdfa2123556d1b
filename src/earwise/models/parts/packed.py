"""Decoding on a CPU: weights of linear layers packed once for a fixed number of rows, LoRA merged in.

A matrix product with few rows is bound by how fast weights are read, and a BLAS that takes a weight as `nn.Linear`
stores it rearranges it on every call: from 3 to 96 rows that takes more time than the product. Packed once
(`mkl_linear`, the operator that torch's own compiler uses when it freezes weights), 8 rows of a 135M decoder take 40 ms
instead of 104 on two cores, 32 rows 76 instead of 182. Rows are filled up to the number that was packed for, so a row's
result does not depend on how many others there are. Packing takes 0.3 s and as much memory as the weights; it pays
after half a dozen passes, and holds until a weight changes. Elsewhere (CUDA, bfloat16, no MKL, large models) nothing is
packed and nothing changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

SIZES = (8, 16, 32, 64, 96)
"""Rows that weights are packed for; beyond the last the plain product is as fast."""
FEWEST = 3
"""One and two rows go through a matrix-vector product at full speed."""
PAYS = 8
"""Passes after which packing has paid for itself."""
LARGEST_BYTES = 2 * 2**30
"""Decoders above this are not packed: the copy would not fit beside them on a small machine."""


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
        self._made_from: tuple[int, ...] = ()
        self._forwards: list[tuple[nn.Module, partial[Tensor]]] = []

    @contextmanager
    def decoding(self, rows: int, *, passes: int) -> Iterator[None]:
        """Inside, passes of up to `rows` rows (rounded up to a size) go through packed weights, without gradients.

        Args:
            rows: Rows of the widest pass that is expected.
            passes: Passes that are expected; for a few, nothing is packed anew.
        """
        size = next((size for size in SIZES if size >= rows), SIZES[-1])
        if rows < FEWEST or not torch.backends.mkl.is_available() or not self._pack(size, worth=passes >= PAYS):
            yield
            return
        for layer, forward in self._forwards:
            layer.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer, _ in self._forwards:
                del layer.forward

    @torch.no_grad()
    def _pack(self, size: int, *, worth: bool) -> bool:
        """Pack unless it is done; False if nothing is packed."""
        layers = _layers(self._module, self._decoder)
        used = [parameter for layer in layers for parameter in layer.parameters()]
        if not used or sum(parameter.nbytes for parameter in used) > LARGEST_BYTES:
            return False
        if any(parameter.device.type != "cpu" for parameter in used):
            return False
        made_from = tuple(number for p in used for number in (p.data_ptr(), p._version))
        if (size, made_from) != (self._rows, self._made_from):
            if not worth:
                return False
            self._forwards = []  # the old copy goes before the new one comes
            made = [(layer, _packed(layer, size)) for layer in layers]
            self._forwards = [(layer, forward) for layer, forward in made if forward is not None]
            self._rows, self._made_from = size, made_from
        return bool(self._forwards)


def _layers(module: nn.Module, decoder: tuple[str, ...]) -> list[nn.Module]:
    """Linear layers of the decoder; of a layer that carries LoRA the whole."""
    found: list[nn.Module] = []
    inside: str | None = None
    for name, layer in module.named_modules():
        if not f"{name}.".startswith(decoder) or (inside and name.startswith(inside)):
            continue
        if isinstance(layer, nn.Linear) or hasattr(layer, "lora_A"):
            found.append(layer)
            inside = f"{name}."
    return found


def _merged(layer: nn.Module) -> tuple[Tensor, nn.Linear] | None:
    """Weight with LoRA added, and the layer it belongs to; None for what is not plainly that (other dtypes, other
    adapters)."""
    base = getattr(layer, "base_layer", layer)
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32:
        return None
    if base is layer:
        return base.weight, base
    names, scaling = list(layer.lora_A), layer.scaling  # type: ignore[arg-type]
    if names != ["default"] or layer.merged or layer.disable_adapters or layer.use_dora["default"]:  # type: ignore[index]
        return None
    down, up = layer.lora_A["default"], layer.lora_B["default"]  # type: ignore[index]
    return torch.addmm(base.weight, up.weight, down.weight, alpha=scaling["default"]), base  # type: ignore[index]


def _packed(layer: nn.Module, rows: int) -> "partial[Tensor] | None":
    found = _merged(layer)
    if found is None:
        return None
    weight, base = found
    store = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach().contiguous(), rows)
    return partial(_forward, layer.forward, store, base, rows)


def _forward(plain: Callable[..., Tensor], store: Tensor, base: nn.Linear, rows: int, hidden: Tensor) -> Tensor:
    """The layer on up to `rows` rows by packed weights, on more by `plain`."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    count = len(flat)
    if count > rows:
        return plain(hidden)
    filled = flat if count == rows else nn.functional.pad(flat, (0, 0, 0, rows - count))
    out: Tensor = torch.ops.mkl._mkl_linear(filled, store, base.weight, base.bias, rows)
    return out[:count].reshape(*hidden.shape[:-1], -1)
