"""Prepacked GEMM weights for decoding on a CPU: weight matrices are rearranged once, not on every call; LoRA is merged.

A matrix product with few rows is bound by reading the weights. A BLAS that receives a weight as `nn.Linear` stores it
rearranges it for its kernels on every call, which takes longer than the product itself from 3 to about 96 rows. With
weights packed once for a fixed number of rows, a pass of 8 rows through a 135M decoder takes 40 ms instead of 104 on
two cores, 32 rows 76 ms instead of 182.

Every pass is padded to the number of rows that the weights were packed for, so a row's result does not depend on how
many other rows there are. Packing takes about 0.3 s and as much memory as the weights, and pays off after half a dozen
passes. Packed weights stay valid until the original weights change; when only LoRA is trained, the output head is
packed once. On other devices, in other dtypes, without MKL, and for large models, nothing is packed and nothing
changes.

In bfloat16 (`compute: bfloat16`) one packed copy serves any number of rows, so that prompts are computed with it too.
Layers that hold packed weights alone (`models.precision.packed_linear`) are only fused.

`models.cpu_decode.fused_layers` builds the replacement `forward` of each layer; this file decides when to use it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from earwise.models.cpu_decode import fused_layers
from earwise.models.cpu_decode.free_memory import release_freed_memory
from earwise.models.memory.sizes import LARGEST_PREPACKED_BYTES
from earwise.models.precision import compute
from earwise.models.precision.packed_linear import is_supported_layer

ROW_COUNTS = (8, 16, 32, 64, 96)
"""Numbers of rows that weights are packed for. Beyond the last, the ordinary product is as fast."""
MIN_ROWS = 3
"""Fewest rows worth packing for: one and two rows use a matrix-vector product, which already runs at full speed."""
CHEAP_ROWS = 16
"""Up to this many rows, a pass mostly waits for the weights: 16 rows take a quarter longer than 8."""
BREAK_EVEN_PASSES = 8
"""Number of passes after which packing has paid off."""


class PrepackedWeights:
    """The packed decoder of one model.

    Args:
        module: The whole model.
        decoder: Name prefixes of the parameters to pack: those of the decoder and its output head.
    """

    def __init__(self, module: nn.Module, decoder: tuple[str, ...]) -> None:
        self._module = module
        self._decoder = decoder
        self._rows: float = 0
        """Number of rows that the current packing is for; infinite in bfloat16 and int8."""
        self._packed: dict[nn.Module, tuple[tuple[int, ...], Callable[..., Tensor] | None]] = {}
        """Layer -> versions of the weights that were packed, and the replacement `forward` (None if there is none)."""

    @contextmanager
    def active(self, rows: int, *, passes: int) -> Iterator[int]:
        """Route passes of few rows through packed weights, without gradients, inside the context.

        Args:
            rows: Rows of the widest pass that is expected.
            passes: Number of passes that are expected. For fewer than `BREAK_EVEN_PASSES`, nothing is packed anew.
        Yields:
            The number of rows that a pass can have at little more cost than `rows`: in float32 every pass is padded to
            it. 0 if that is no more than `rows`, or nothing is packed.
        """
        dtype = compute.plan_of(self._module).decode
        any_rows = dtype != "float32"
        padded_rows = next((count for count in ROW_COUNTS if count >= rows), ROW_COUNTS[-1])
        usable = any_rows or (rows >= MIN_ROWS and torch.backends.mkl.is_available())
        if not usable or not self._pack(padded_rows, dtype, may_pack=any_rows or passes >= BREAK_EVEN_PASSES):
            yield 0
            return
        forwards = [(layer, forward) for layer, (_, forward) in self._packed.items() if forward is not None]
        originals = [vars(layer).get("forward") for layer, _ in forwards]
        for layer, forward in forwards:
            layer.forward = forward  # type: ignore[method-assign]
        try:
            yield padded_rows if rows >= MIN_ROWS else 0
        finally:
            for (layer, _), original in zip(forwards, originals, strict=True):
                if original is None:
                    del layer.forward
                else:
                    layer.forward = original

    @torch.no_grad()
    def _pack(self, rows: int, dtype: compute.ComputeDtype, *, may_pack: bool) -> bool:
        """Pack the layers that are not packed already.

        Args:
            rows: Number of rows to pack for.
            dtype: What products are computed in; other than float32 is packed for any number of rows.
            may_pack: False only checks whether everything is packed already.
        Returns:
            True if packed weights can be used.
        """
        layers = _packable_layers(self._module, self._decoder)
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        if not parameters or sum(parameter.nbytes for parameter in parameters) > LARGEST_PREPACKED_BYTES:
            return False
        if any(parameter.device.type != "cpu" for parameter in parameters):
            return False
        versions = {layer: _weight_versions(layer) for layer in layers}
        packed_rows = rows if dtype == "float32" else float("inf")
        still_valid = {
            layer: packed
            for layer, packed in self._packed.items()
            if packed_rows == self._rows and layer in versions and packed[0] == versions[layer]
        }
        if len(still_valid) < len(layers) and not may_pack:
            return False
        is_outdated = len(still_valid) < len(self._packed)
        self._packed, self._rows = still_valid, packed_rows  # release outdated copies before new ones are made
        if is_outdated:
            release_freed_memory()
        scratch: fused_layers.Scratch = {}
        for layer in layers:
            if layer not in still_valid:
                forward = fused_layers.packed_forward(layer, rows, scratch, dtype)
                self._packed[layer] = versions[layer], forward
        return any(forward is not None for _, forward in self._packed.values())


def _weight_versions(layer: nn.Module) -> tuple[int, ...]:
    """Numbers that change when a weight of the layer is moved or written to."""
    return tuple(number for weight in layer.parameters() for number in (weight.data_ptr(), weight._version))


def _packable_layers(module: nn.Module, decoder: tuple[str, ...]) -> list[nn.Module]:
    """The decoder's layers to pack: whole layers of a supported class, otherwise single linear layers (with LoRA)."""
    layers: list[nn.Module] = []
    parent: str | None = None
    for name, layer in module.named_modules():
        if not f"{name}.".startswith(decoder) or (parent and name.startswith(parent)):
            continue
        if isinstance(layer, nn.Linear) or hasattr(layer, "lora_A") or is_supported_layer(layer):
            layers.append(layer)
            parent = f"{name}."
    return layers
