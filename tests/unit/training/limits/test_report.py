"""Shares of the limit: by hand for given rates, and measured on this machine."""

import json

import pytest
import torch

from earwise.training.limits.operators import OperatorRecord, PhaseOperators, Product, Total
from earwise.training.limits.report import MachineRates, as_json, describe, measure_rates, phase_share, product_gflops

RATES = MachineRates({"float32": 100.0, "bfloat16": 200.0}, 20.0)
LARGE = Product(1000, 500, 400, 1, "float32")  # 0.4 GFLOP: 4 ms at 100 GFLOP/s
BFLOAT16 = Product(1000, 500, 400, 1, "bfloat16")  # 2 ms
FEW = Product(8, 2000, 2500, 1, "float32")  # 80 MFLOP are 0.8 ms, but 20.144 MB take 1.0072 ms


def test_the_share_is_the_least_time_over_the_time_taken() -> None:
    operators = PhaseOperators({LARGE: Total(2, 0.016)}, {"gelu": Total(4, 0.002), "add": Total(1, 0.001)})
    share = phase_share(operators, 0.02, RATES, at_shapes=False)
    assert share.gflop == pytest.approx(0.8)
    assert share.share == pytest.approx(0.008 / 0.02)
    assert share.products == pytest.approx(0.8) and share.outside == pytest.approx(0.05)
    assert share.others == pytest.approx({"gelu": 0.1, "add": 0.05}) and list(share.others) == ["gelu", "add"]
    assert share.few_rows_bandwidth is None and share.share_at_shapes is None
    assert describe("forward", share) == (
        "forward 0.02 s: 0.8 GFLOP, 40 % of the limit; time: products 80 %, gelu 10 %, add 5 %, outside 5 %"
    )


def test_each_precision_has_its_own_rate() -> None:
    share = phase_share(PhaseOperators({BFLOAT16: Total(1, 0.004)}, {}), 0.004, RATES, at_shapes=False)
    assert share.share == pytest.approx(0.5)


def test_few_rows_are_bound_by_the_bytes_that_they_read() -> None:
    share = phase_share(PhaseOperators({FEW: Total(3, 0.006)}, {}), 0.01, RATES, at_shapes=False)
    assert FEW.bytes == 4 * (8 * 2000 + 2000 * 2500 + 8 * 2500) == 20_144_000
    assert share.share == pytest.approx(3 * 20_144_000 / 20e9 / 0.01)
    assert share.few_rows_bandwidth == pytest.approx(3 * 20_144_000 / 0.006 / 20e9)
    assert "few rows at 50 % of the memory's rate" in describe("rollout", share)


def test_a_phase_without_products_is_bound_by_its_bytes() -> None:
    record = OperatorRecord()
    a, b = torch.ones(1000), torch.ones(1000)
    with record:
        a.view(10, 100).T.add_(b.view(100, 10))
    operators = record.phases["all"]
    assert operators.other_bytes == 3 * 4000, "two are read and one is written; views are free"
    share = phase_share(operators, 0.001, RATES, at_shapes=False)
    assert share.share == pytest.approx(12_000 / 20e9 / 0.001)


def test_this_machine_is_measured() -> None:
    rates = measure_rates()
    assert rates.gflops["float32"] > 0.1 and rates.gigabytes > 0.1
    assert product_gflops(Product(64, 64, 64, 2, "float32")) > 0
    assert product_gflops(Product(64, 64, 64, 1, "bfloat16")) > 0
    record = OperatorRecord()
    with record:
        torch.ones(256, 256) @ torch.ones(256, 256)
    share = phase_share(record.phases["all"], 1.0, rates)
    assert share.share_at_shapes is not None and 0 < share.share < 1
    assert json.loads(json.dumps(as_json(rates, {"all": share})))["phases"]["all"]["gflop"] == share.gflop
