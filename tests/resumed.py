"""A run that is stopped and resumed beside one that is not; shared by the tests of every stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from earwise.config.recipe import Recipe
from earwise.models.base import load
from earwise.train import run

TIMES = ("seconds", "data_seconds", "tokens_per_s", "audio_s_per_s")


def log(out: Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Parameters of the model that a run has made."""
    return dict(load(str(out / "final")).module.named_parameters())


def same(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, bit for bit, and logged the same but for the time (and the check of
    hearing, once a process)."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows, others = [
        [{key: value for key, value in row.items() if key not in TIMES and "hearing" not in key} for row in log(out)]
        for out in (one, other)
    ]
    assert rows == others


def stopped_and_whole(recipe: Recipe, folder: Path, after: int) -> tuple[Path, Path]:
    """Run a recipe twice, once stopped at the end of a step and resumed; they end the same.

    Returns:
        The folders of both runs, the stopped one first.
    """
    whole, stopped = folder / "whole", folder / "stopped"
    run.start(recipe, whole, folder)

    def stop(line: str) -> None:
        if f"step {after}/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.start(recipe, stopped, folder, say=stop)
    assert not (stopped / "final").exists()
    run.resume(stopped)
    same(stopped, whole)
    return stopped, whole
