"""Rows of runs into what the page's list of samples holds: one object an item, with the answers of every run.

Part of `earwise.report`. The result is data, not HTML: the page's script puts it into text nodes. Fields that are
empty are left out, because a page may hold ten thousand samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from earwise.data.clip_fields import clips_of_row
from earwise.evaluation.results import SAMPLES, EvalRun, Row
from earwise.evaluation.scores import blind_controls
from earwise.files import read_log
from earwise.report.samples.outcomes import grade, outcomes
from earwise.types import AudioClip

MAX_TEXT = 20_000
"""Characters of a prompt or an output that the page holds."""
ITEM_FIELDS = ("task", "category", "sub_category", "difficulty", "language", "question", "choices", "gold")
"""Fields of a row that describe the item and not the answer."""
SHOWN_FIELDS = frozenset(
    {
        *ITEM_FIELDS, "id", "permutation", "prompt", "output", "reasoning", "answer", "status", "scores", "explanation",
        "benchmark", "gold_position", "choice", "formatted", "finish_reason", "reasoning_tokens", "confidence",
        "seconds", "audio", "audio_sha256", "audio_segments", "silent", "truncated", "pieces", "settings",
        "decoding", "scorer", "style", "control", "model", "revision",
    }
)  # fmt: skip
"""Fields that the page shows in a place of their own, or that are equal in all rows of a run."""
Orders = Mapping[str, Sequence[Row]]
"""Id of an item -> its rows under all orders of its options."""
BlindRows = Mapping[str, Mapping[str, Row]]
"""Name of a blind control -> id of an item -> its row."""


def sample_objects(runs: Sequence[EvalRun], name: str, clip_numbers: Mapping[AudioClip, int]) -> list[dict[str, Any]]:
    """One object for each item of the last run, in its order.

    Args:
        runs: The runs of the page, before first, after last.
        name: Name of the headline score.
        clip_numbers: Number of each clip in the page's list of clips.
    """
    last = runs[-1]
    first_rows = [run.first for run in runs]
    orders = [_orders(run) for run in runs]
    blind = [_blind_rows(run) for run in runs]
    results = outcomes(runs, name)
    samples = []
    for item, row in first_rows[-1].items():
        answers = [
            answer_object(rows[item], name, run_orders.get(item, ()), controls) if item in rows else None
            for rows, run_orders, controls in zip(first_rows, orders, blind, strict=True)
        ]
        sample = {
            "id": item,
            "outcome": results[item],
            **{field: row.get(field) for field in ITEM_FIELDS},
            "clips": [clip_numbers[clip] for clip in clips_of_row(row, last.path)],
            "prompt": _clipped(row["prompt"]),
            "silent": row.get("silent"),
            "truncated": row.get("truncated"),
        }
        samples.append(_without_empty(sample) | {"answers": answers})
    return samples


def answer_object(row: Row, name: str, orders: Sequence[Row], blind: BlindRows) -> dict[str, Any]:
    """The answer of one run to one item.

    Args:
        row: The row under the first order of the options.
        name: Name of the headline score.
        orders: The rows of the item under all orders of its options, if it was asked under several.
        blind: The rows of the blind controls.
    """
    output, reasoning = _clipped(row["output"]), row.get("reasoning") or ""
    start = output.find(reasoning) if reasoning else -1
    answer = {
        "answer": row["answer"],
        "status": row["status"],
        "grade": grade(row, name),
        "scores": row["scores"],
        "why": row.get("explanation"),
        "output": output,
        "reasoning": [_utf16_length(output[:start]), _utf16_length(output[: start + len(reasoning)])]
        if start >= 0
        else reasoning,
        "formatted": row.get("formatted"),
        "cut": row.get("finish_reason") == "length",
        "tokens": row.get("reasoning_tokens"),
        "seconds": row.get("seconds"),
        "confidence": None if row.get("confidence") is None else round(row["confidence"], 6),
        "blind": {
            control: [rows[row["id"]]["answer"], grade(rows[row["id"]], name)]
            for control, rows in blind.items()
            if row["id"] in rows
        },
        "orders": [[order["choices"], order["answer"], grade(order, name)] for order in orders],
        "more": _without_empty({field: value for field, value in row.items() if field not in SHOWN_FIELDS}),
    }
    return _without_empty(answer)


def _orders(run: EvalRun) -> dict[str, list[Row]]:
    """The rows of items that were asked under several orders of their options."""
    rows_by_item: dict[str, list[Row]] = {}
    for row in run.rows:
        rows_by_item.setdefault(row["id"], []).append(row)
    return {item: rows for item, rows in rows_by_item.items() if len(rows) > 1}


def _blind_rows(run: EvalRun) -> dict[str, dict[str, Row]]:
    """The rows of the blind controls in the run's folder."""
    return {
        control: {row["id"]: row for row in read_log(run.path / control / SAMPLES) if not row.get("permutation")}
        for control in blind_controls(run.metrics)
    }


def _clipped(text: str) -> str:
    """A text that is cut at `MAX_TEXT` characters, with a note."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT} more characters)"


def _utf16_length(text: str) -> int:
    """Length of a text as a browser counts it."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a value; 0 and False where it is a number or an answer that was not in the format."""
    return {
        field: value
        for field, value in values.items()
        if value not in (None, "", [], {}) and not (value is False and field != "formatted")
    }
