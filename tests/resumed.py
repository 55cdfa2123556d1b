"""Helpers for tests of resuming: run a recipe with and without an interruption and compare the results."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from earwise.config.recipe import Recipe
from earwise.models.base import load
from earwise.training import run

TIMINGS = ("seconds", "data_seconds", "tokens_per_s", "audio_s_per_s")
"""Log keys that depend on the speed of the machine."""


def metrics_rows(out: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    """Parameters of the trained model of a run, by name."""
    return dict(load(str(out / "final")).module.named_parameters())


def assert_same_result(first: Path, second: Path) -> None:
    """Assert that two runs have the same weights, bit for bit, and the same log.

    Timings may differ, and so may the result of the check under silence, which every process logs once.
    """
    weights, other_weights = final_weights(first), final_weights(second)
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    rows, other_rows = [
        [
            {key: value for key, value in row.items() if key not in TIMINGS and "hearing" not in key}
            for row in metrics_rows(out)
        ]
        for out in (first, second)
    ]
    assert rows == other_rows


def run_interrupted_and_whole(recipe: Recipe, folder: Path, after: int) -> tuple[Path, Path]:
    """Run a recipe twice, once interrupted after step `after` and resumed, and assert that the results are the same.

    Returns:
        Folders of the interrupted and of the uninterrupted run.
    """
    whole, interrupted = folder / "whole", folder / "stopped"
    run.start(recipe, whole, folder)

    def interrupt(line: str) -> None:
        if f"step {after}/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.start(recipe, interrupted, folder, notify=interrupt)
    assert not (interrupted / "final").exists()
    run.resume(interrupted)
    assert_same_result(interrupted, whole)
    return interrupted, whole
