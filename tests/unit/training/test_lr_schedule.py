"""Schedules are those of transformers, step by step; settings that could not act are refused."""

from typing import Any

import pytest
import torch
from transformers.optimization import get_scheduler

from earwise.config.recipe import check_recipe
from earwise.config.stages import OptimizerConfig
from earwise.errors import ConfigError
from earwise.training.optimization.lr_schedule import learning_rate_factor

LENGTH, RATE = 40, 2e-4
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine_with_min_lr": {"min_lr": 3e-5},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0, "lr_end": 1e-5},
    "inverse_sqrt": {"timescale": 7},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_schedule_equals_that_of_transformers(name: str, warmup_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    theirs = get_scheduler(name, optimizer, warmup_steps, LENGTH, SCHEDULES[name])
    ours = OptimizerConfig(
        learning_rate=RATE, lr_scheduler_type=name, warmup_steps=warmup_steps, lr_scheduler_kwargs=SCHEDULES[name]
    )
    for step in range(LENGTH):
        if step >= warmup_steps:
            assert RATE * learning_rate_factor(step, LENGTH, ours) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        else:  # transformers begins with a rate of 0
            assert learning_rate_factor(step, LENGTH, ours) == (step + 1) / 5
        optimizer.step()
        theirs.step()


def test_schedule_that_is_longer_than_the_stage() -> None:
    """R1-AQA's checkpoint: 500 steps of a linear schedule over 1000."""
    config = OptimizerConfig(learning_rate=1e-6, lr_scheduler_steps=1000)
    assert [learning_rate_factor(step, 500, config) for step in (0, 250, 499)] == [1.0, 0.75, 0.501]


def stage(trainable: dict[str, str] | None = None, max_steps: int = 10, **optimizer: Any) -> dict[str, Any]:
    data = {"mixture": [{"manifest": "rows.jsonl"}]}
    stage = {"kind": "sft", "data": data, "max_steps": max_steps, "optimizer": optimizer, "trainable": trainable or {}}
    return {"recipe": "t", "stages": [stage]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (stage(warmup_steps=11), "warmup_steps 11 is more than max_steps 10"),
        (stage(lr_scheduler_steps=9), "lr_scheduler_steps 9 is less than max_steps 10"),
        (stage(warmup_steps=30, lr_scheduler_steps=20), "warmup_steps 30 is more than the 20 of lr_scheduler_steps"),
        (stage(encoder_learning_rate=1e-5), "encoder_learning_rate is set, but trainable.encoder is frozen"),
        (stage({"connector": "frozen"}, connector_learning_rate=1e-5), "trainable.connector is frozen"),
        (
            stage({"decoder": "frozen"}, connector_learning_rate=1e-5, learning_rate=1e-4),
            "learning_rate is set, but trainable.decoder is frozen",
        ),
        (stage(lr_scheduler_kwargs={"min_lr": 1e-6}), "min_lr does nothing in schedule linear"),
        (stage(lr_scheduler_type="cosine_with_min_lr"), "needs lr_scheduler_kwargs with min_lr or min_lr_rate"),
        (
            stage(lr_scheduler_type="polynomial", learning_rate=1e-8),
            "lr_scheduler_kwargs.lr_end is larger than learning_rate 1e-08",
        ),
    ],
)
def test_settings_that_cannot_act_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        check_recipe(raw, "test")
    assert "\n" not in str(error.value)


def test_settings_that_act_are_accepted() -> None:
    check_recipe(stage({"encoder": "lora"}, encoder_learning_rate=1e-5), "test")
    check_recipe(stage({"decoder": "frozen"}, learning_rate=1e-4), "test")  # the connector's
    check_recipe(stage(warmup_steps=10), "test")
    check_recipe(stage(warmup_steps=15, lr_scheduler_steps=20), "test")
