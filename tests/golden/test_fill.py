"""The weight formula and the test sounds equal the examples in the golden files."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from golden.fill import assert_matches_record, formula_sound, formula_weight


def test_fill_and_wave_are_those_of_the_golden_files(golden: Callable[[str], dict[str, Any]]) -> None:
    record = golden("fill_and_wave_examples.json")
    assert record["cases"] and record["waves"]
    for case in record["cases"]:
        weight = formula_weight(case["name"], case["shape"])
        assert_matches_record(torch.from_numpy(weight), case, 1e-6 * max(1.0, case["absmax"]), case["name"])
        assert weight.ravel()[:8].tolist() == pytest.approx(case["first_8"], abs=1e-7, rel=1e-6)
        assert weight.ravel()[-3:].tolist() == pytest.approx(case["last_3"], abs=1e-7, rel=1e-6)
    for case in record["waves"]:
        sound = formula_sound({**case, "seconds": case["samples"] / case["rate"]}, case["rate"])
        assert_matches_record(torch.from_numpy(sound), case, 1e-6, "wave")
        assert sound[-3:].tolist() == pytest.approx(case["last_3"], abs=1e-6)
