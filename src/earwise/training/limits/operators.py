"""What the operators of some work do on a CPU: floating-point operations, bytes and seconds, by phase.

`OperatorRecord` sees every operator that torch runs, those of the backward pass included. Matrix products, convolutions
and attention are counted by formulas, the same as those of `torch.utils.flop_counter` (a test compares the two on whole
passes), and by formulas of our own for the packed products that it does not know (MKL's and oneDNN's). All other
operators count as time only.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product `(rows, inner) @ (inner, columns)`, computed `batch` times.

    Attributes:
        rows: Rows of the input.
        inner: Length of the sums.
        columns: Rows of the weight.
        batch: Number of products in one call (heads, clips).
        dtype: Dtype of the input, as `float32`.
        factor: Products of this size in one call, where one operator is several (attention).
    """

    rows: int
    inner: int
    columns: int
    batch: int
    dtype: str
    factor: float = 1.0

    @property
    def flops(self) -> float:
        """Floating-point operations of one call: a multiplication and an addition per term."""
        return 2.0 * self.factor * self.batch * self.rows * self.inner * self.columns

    @property
    def bytes(self) -> float:
        """Bytes of both inputs and of the output of one call."""
        elements = self.rows * self.inner + self.inner * self.columns + self.rows * self.columns
        return float(self.factor * self.batch * elements * _dtype_bytes(self.dtype))


@dataclass(slots=True)
class Total:
    """Calls and seconds of one operator, or of the products of one size."""

    calls: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class PhaseOperators:
    """The operators of one phase.

    Attributes:
        products: Size -> total of its calls.
        others: Name of an operator that is no product -> total of its calls.
        other_bytes: Bytes that these operators read and write, views left out.
    """

    products: dict[Product, Total] = field(default_factory=dict)
    others: dict[str, Total] = field(default_factory=dict)
    other_bytes: float = 0.0

    @property
    def flops(self) -> float:
        """Floating-point operations of all products."""
        return sum(product.flops * total.calls for product, total in self.products.items())

    @property
    def product_seconds(self) -> float:
        """Seconds in products."""
        return sum(total.seconds for total in self.products.values())

    @property
    def other_seconds(self) -> float:
        """Seconds in other operators."""
        return sum(total.seconds for total in self.others.values())


class OperatorRecord(TorchDispatchMode):  # type: ignore[misc]
    """Records the operators that run inside `with record:`.

    Args:
        phase: Returns the name of the phase that is going on.
        now: Returns a monotonic time in seconds.
    """

    def __init__(self, phase: Callable[[], str] = lambda: "all", now: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self.phases: dict[str, PhaseOperators] = {}
        self._phase, self._now = phase, now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and record it; called by torch."""
        kwargs = kwargs or {}
        name = func._schema.name
        if name not in _PRODUCTS and func._can_decompose():  # in inference mode, operators arrive before their parts
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        started = self._now()
        out = func(*args, **kwargs)
        seconds = self._now() - started
        operators = self.phases.setdefault(self._phase(), PhaseOperators())
        if name in _PRODUCTS:
            total = operators.products.setdefault(_PRODUCTS[name](args, kwargs, out), Total())
        else:
            total = operators.others.setdefault(name.removeprefix("aten::").removeprefix("_"), Total())
            operators.other_bytes += 0 if func.is_view else _tensor_bytes((*args, *kwargs.values(), out))
        total.calls += 1
        total.seconds += seconds
        return out


def _dtype_bytes(dtype: str) -> int:
    """Bytes of an element."""
    value: torch.dtype = getattr(torch, dtype)
    return value.itemsize


def _tensor_bytes(values: Iterable[Any]) -> float:
    """Bytes of the tensors among some values, and among lists of them."""
    total = 0.0
    for value in values:
        if isinstance(value, list | tuple):
            total += _tensor_bytes(value)
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            total += value.nbytes
    return total


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _product(first: Tensor, second: Tensor) -> Product:
    """The product of two matrices, or of two batches of them."""
    return Product(
        first.shape[-2], first.shape[-1], second.shape[-1], prod(first.shape[:-2]), _dtype_name(first)
    )  # fmt: skip


def _packed(args: Sequence[Any], kwargs: Any, out: Tensor) -> Product:
    """A product with a packed weight: its shape is read from input and output."""
    rows = args[0]
    return Product(prod(rows.shape[:-1]), rows.shape[-1], out.shape[-1], 1, _dtype_name(rows))


def _convolution(args: Sequence[Any], kwargs: Any, out: Tensor) -> Product:
    """A convolution as a product: one row per output position."""
    weight = args[1]
    return Product(
        out.shape[0] * prod(out.shape[2:]), prod(weight.shape[1:]), weight.shape[0], 1, _dtype_name(weight)
    )  # fmt: skip


def _convolution_backward(args: Sequence[Any], kwargs: Any, out: Any) -> Product:
    """The gradients of a convolution: one product each for input and weight, where they are asked for."""
    grad, _, weight = args[:3]
    wanted = sum(bool(value) for value in args[-1][:2])
    rows = grad.shape[0] * prod(grad.shape[2:])
    return Product(rows, prod(weight.shape[1:]), weight.shape[0], 1, _dtype_name(weight), float(wanted))


def _attention(factor: float, first: int) -> Callable[[Sequence[Any], Any, Any], Product]:
    """Attention as `factor` products of queries with keys; its queries are argument number `first`."""

    def product(args: Sequence[Any], kwargs: Any, out: Any) -> Product:
        queries, keys = args[first], args[first + 1]
        batch = prod(queries.shape[:-2])
        return Product(queries.shape[-2], queries.shape[-1], keys.shape[-2], batch, _dtype_name(queries), factor)

    return product


_PRODUCTS: dict[str, Callable[[Sequence[Any], Any, Any], Product]] = {
    "aten::mm": lambda args, kwargs, out: _product(args[0], args[1]),
    "aten::addmm": lambda args, kwargs, out: _product(args[1], args[2]),
    "aten::addmm_": lambda args, kwargs, out: _product(args[1], args[2]),
    "aten::bmm": lambda args, kwargs, out: _product(args[0], args[1]),
    "aten::baddbmm": lambda args, kwargs, out: _product(args[1], args[2]),
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "mkl::_mkl_linear": _packed,
    "mkldnn::_linear_pointwise": _packed,
    # Two products forward. Backward: the scores again, and the gradients of scores, queries, keys and values.
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention(2.0, 0),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention(5.0, 1),
}
"""Name of an operator -> its product, from its arguments and its result."""
