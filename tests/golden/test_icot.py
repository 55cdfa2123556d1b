"""Stepwise internalisation equals the released training program; the golden file says how it was recorded.

We leave out gaps in position ids (`keep_position`) on purpose: the released program crashes with them while nothing is
removed yet. Those cases hold an `official_error` and nothing to compare.
"""

import math
from collections.abc import Callable
from typing import Any

from earwise.algorithms.chain_compression import StepwiseSchedule, remove_tokens

Golden = Callable[[str], dict[str, Any]]
SEPARATOR = 0


def schedule(case: dict[str, Any]) -> StepwiseSchedule:
    args = case["args"]
    return StepwiseSchedule(
        steps_per_epoch=case["steps_per_epoch"],
        tokens_per_epoch=args["remove_per_epoch"],
        start=args["remove_start_from"],
        pretrain_epochs=args["pretrain_epochs"],
        remove_all_beyond=number(args["remove_all_when_remove_beyond"]),
    )


def number(value: float | str) -> float:
    return math.inf if value == "inf" else float(value)


def shortened(row: list[int], count: float, side: str) -> tuple[list[int], bool]:
    """A row without `count` tokens of the chain between its first two separators, and whether the chain is empty."""
    first = row.index(SEPARATOR)
    second = row.index(SEPARATOR, first + 1)
    chain = list(remove_tokens(row[first + 1 : second], count, side))  # type: ignore[arg-type]
    return row[: first + 1] + chain + row[second:], not chain


def test_schedule_batches_and_resets(golden: Golden) -> None:
    cases = [case for case in golden("icot_schedule.json")["cases"] if "official_error" not in case]
    assert cases
    compared = 0
    for case in cases:
        args, plan, per_epoch = case["args"], schedule(case), case["steps_per_epoch"]
        planned = [plan.scheduled(batch) for batch in range(args["epochs"] * per_epoch)]
        assert planned[per_epoch - 1 :: per_epoch] == [number(value) for value in case["scheduled_after_each_epoch"]]
        trained = [number(value) for value in case["schedule_per_trained_step"]]
        if args["max_len_train"] > 0 and not math.isinf(number(args["removal_smoothing_lambda"])):
            # Which batches were too long depends on random offsets that were not recorded.
            remaining = iter(planned)
            assert all(value in remaining for value in trained), args
            assert len(planned) - len(trained) == case["skipped_batches"], args
        else:
            compared += compare_batches(case, plan, planned, trained)
    assert compared


def compare_batches(case: dict[str, Any], plan: StepwiseSchedule, planned: list[float], trained: list[float]) -> int:
    """Compare all batches of a case with its record; returns the number of whole batches compared."""
    args, steps, size = case["args"], iter(case["steps"]), case["args"]["batch_size"]
    side, longest_allowed = args["removal_side"], args["max_len_train"]
    trained_schedule: list[float] = []
    resets = compared = 0
    all_gone = False
    for batch, scheduled in enumerate(planned):
        start = batch % case["steps_per_epoch"] * size
        rows = case["examples"][start : start + size]
        resets += plan.grows(batch) and args["reset_optimizer"] and not all_gone
        record = next(steps, None) if longest_allowed < 0 else None
        random_offsets = (record and record["random_offset"]) or [0] * len(rows)
        offsets = [0] * len(rows) if batch < args["pretrain_epochs"] * case["steps_per_epoch"] else random_offsets
        shortened_rows = [
            shortened(row, plan.applied(batch) + offset, side) for row, offset in zip(rows, offsets, strict=True)
        ]
        # The released code compares the end of the removed span: from the right it always counts as all removed.
        removes = scheduled > 0 or not math.isinf(number(args["removal_smoothing_lambda"]))
        all_gone = removes and (side == "right" or all(empty for _, empty in shortened_rows))
        if 0 < longest_allowed < max(len(row) for row, _ in shortened_rows):
            continue
        trained_schedule.append(scheduled)
        record = record or next(steps)
        assert number(record["scheduled_to_remove"]) == scheduled, (args, batch)
        if "input_ids" in record:
            width = record["input_ids_shape"][1]
            assert [row + [SEPARATOR] * (width - len(row)) for row, _ in shortened_rows] == record["input_ids"], (
                args,
                batch,
            )
            compared += 1
    assert trained_schedule == trained, args
    assert len(planned) - len(trained_schedule) == case["skipped_batches"], args
    assert resets == case["optimizer_resets"], args
    return compared
