"""The share of the machine's peak that each phase of a step reaches, and what keeps it from more.

A phase cannot take less time than its matrix products: each needs at least its operations divided by the rate of
products in its precision, and at least its bytes divided by the rate at which memory is read, whichever is longer
(the roofline model, Williams et al. 2009); a phase without products takes at least the time of its bytes. Both rates
are measured on this machine. That least time, divided by the time that the phase took, is its share of the limit. The
rest is told by name: products that run below their rate, other operators, and the time outside of operators (Python,
and reading files).
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from earwise.models.precision.bfloat16_products import multiplication
from earwise.training.limits.operators import PhaseOperators, Product

SQUARE = 1536
"""Size of the square products whose rate is the peak of a precision."""
READ_MB = 192
"""Size of the memory that is read to measure bandwidth; larger than the caches of a processor."""
FEW_ROWS = 64
"""Products of up to this many rows read their weights more often than they compute with them: decoding."""
NAMED = 3
"""How many operators that are no products a line names."""
SHAPES_MEASURED = 6
"""How many sizes of products of a phase are run alone, the largest part of its time first."""


@dataclass(frozen=True, slots=True)
class MachineRates:
    """What this machine can do.

    Attributes:
        gflops: Dtype -> rate of large square products, in 10^9 operations per second.
        gigabytes: Rate of reading memory, in 10^9 bytes per second.
    """

    gflops: Mapping[str, float]
    gigabytes: float


@dataclass(frozen=True, slots=True)
class PhaseShare:
    """One phase beside its limit.

    Attributes:
        seconds: Time that the phase took.
        gflop: Operations of its products, in 10^9.
        gigabytes: Bytes of its products with few rows, in 10^9.
        share: Least time of its products divided by `seconds`.
        share_at_shapes: The same with the rate that each size of product reaches when it runs alone; None if it was not
            measured.
        few_rows_bandwidth: Share of the memory's rate at which products with few rows read; None without any.
        products: Share of `seconds` in products.
        others: Share of `seconds` in each other operator, the largest first.
        outside: Share of `seconds` outside of operators.
    """

    seconds: float
    gflop: float
    gigabytes: float
    share: float
    share_at_shapes: float | None
    few_rows_bandwidth: float | None
    products: float
    others: Mapping[str, float]
    outside: float


def measure_rates(dtypes: tuple[str, ...] = ("float32",)) -> MachineRates:
    """Measure this machine with torch's current number of threads; takes some tenths of a second."""
    gflops = {dtype: product_gflops(Product(SQUARE, SQUARE, SQUARE, 1, dtype)) for dtype in dtypes}
    memory = torch.ones(READ_MB * 2**20 // 4 // 1024, 1024)
    vector = torch.ones(1024)
    seconds = _median_seconds(lambda: memory @ vector)
    return MachineRates(gflops, memory.nbytes / seconds / 1e9)


@lru_cache(maxsize=256)
def product_gflops(product: Product) -> float:
    """Rate of one size of product when it runs alone, again and again, in 10^9 operations per second."""
    dtype: torch.dtype = getattr(torch, product.dtype)
    generator = torch.Generator().manual_seed(0)
    if product.batch > 1:
        first = torch.randn(product.batch, product.rows, product.inner, generator=generator).to(dtype)
        second = torch.randn(product.batch, product.inner, product.columns, generator=generator).to(dtype)
        work: Callable[[], Tensor] = lambda: first @ second  # noqa: E731
    else:
        rows = torch.randn(product.rows, product.inner, generator=generator).to(dtype)
        weight = torch.randn(product.columns, product.inner, generator=generator).to(dtype)
        multiply = multiplication(weight) if dtype == torch.bfloat16 else None
        work = lambda: functional.linear(rows, weight) if multiply is None else multiply(rows)  # noqa: E731
    flops = product.flops / product.factor
    return flops / _median_seconds(work) / 1e9


def phase_share(
    operators: PhaseOperators, seconds: float, rates: MachineRates, *, at_shapes: bool = True
) -> PhaseShare:
    """Set the operators of a phase against the machine.

    Args:
        operators: What ran.
        seconds: Time that the phase took.
        rates: What the machine can do.
        at_shapes: True runs the sizes of products that take most of the time alone, to learn their rates.
    """
    few = {product: total for product, total in operators.products.items() if product.rows <= FEW_ROWS}
    few_bytes = sum(product.bytes * total.calls for product, total in few.items())
    few_seconds = sum(total.seconds for total in few.values())
    largest_first = sorted(operators.others.items(), key=lambda item: -item[1].seconds)
    known = operators.product_seconds + operators.other_seconds
    return PhaseShare(
        seconds=seconds,
        gflop=operators.flops / 1e9,
        gigabytes=few_bytes / 1e9,
        share=_least_seconds(operators, rates) / seconds,
        share_at_shapes=_least_seconds(operators, rates, _alone(operators)) / seconds if at_shapes else None,
        few_rows_bandwidth=few_bytes / few_seconds / 1e9 / rates.gigabytes if few_seconds else None,
        products=operators.product_seconds / seconds,
        others={name: total.seconds / seconds for name, total in largest_first},
        outside=max(0.0, 1 - known / seconds),
    )


def _alone(operators: PhaseOperators) -> dict[Product, float]:
    """Rate of the sizes of products that take most of a phase, each when it runs alone."""
    largest_first = sorted(operators.products.items(), key=lambda item: -item[1].seconds)
    return {product: product_gflops(product) for product, _ in largest_first[:SHAPES_MEASURED]}


def _least_seconds(
    operators: PhaseOperators, rates: MachineRates, alone: Mapping[Product, float] | None = None
) -> float:
    """The least time of the products of a phase: by operations and by bytes, or at the rate that they reach alone; of a
    phase without products (the optimizer) the time in which its bytes are read and written."""
    least = 0.0
    for product, total in operators.products.items():
        peak = rates.gflops.get(product.dtype, max(rates.gflops.values()))
        by_rate = product.flops / peak / 1e9
        by_bytes = product.bytes / rates.gigabytes / 1e9 if product.rows <= FEW_ROWS else 0.0
        once = product.flops / alone[product] / 1e9 if alone and product in alone else max(by_rate, by_bytes)
        least += total.calls * once
    if not operators.products:
        least = operators.other_bytes / rates.gigabytes / 1e9
    return least


def describe(name: str, share: PhaseShare) -> str:
    """One phase in one line: time, share of the limit, and where the rest goes."""
    parts = [f"{name} {share.seconds:.2f} s: {share.gflop:.1f} GFLOP, {share.share:.0%} of the limit"]
    if share.share_at_shapes is not None:
        parts.append(f"{share.share_at_shapes:.0%} of these products alone")
    if share.few_rows_bandwidth is not None:
        parts.append(f"few rows at {share.few_rows_bandwidth:.0%} of the memory's rate")
    named = [f"{operator} {part:.0%}" for operator, part in list(share.others.items())[:NAMED] if part >= 0.005]
    parts.append(f"time: products {share.products:.0%}, {', '.join([*named, f'outside {share.outside:.0%}'])}")
    return "; ".join(parts).replace("%", " %")


def as_json(rates: MachineRates, shares: Mapping[str, PhaseShare]) -> dict[str, Any]:
    """Rates and phases as plain values."""
    return {"rates": asdict(rates), "phases": {name: asdict(share) for name, share in shares.items()}}


@torch.inference_mode()
def _median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median time of some work, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
