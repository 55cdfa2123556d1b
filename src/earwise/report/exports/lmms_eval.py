"""A run in the files of lmms-eval (0.7): `DATE_results.json` and `DATE_samples_TASK.jsonl` in a folder of the model.

Part of `earwise.report`. Each score is a metric of the task under its own name, with the filter `none`. A line of
samples also holds `score`, the headline: lmms-eval's comparison with a baseline reads it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from earwise.evaluation.results import SAMPLES, EvalRun, Row
from earwise.evaluation.scores import lower_is_better, score_names
from earwise.files import write_json, write_jsonl
from earwise.report.exports.standard_error import standard_error

NOT_AVAILABLE = "N/A"
"""What lmms-eval writes for a metric without a standard error."""


def export(run: EvalRun, task: str, folder: Path) -> list[Path]:
    """Write the results and the samples of a run.

    Args:
        run: The run.
        task: Name of the task.
        folder: Folder to write into; the files lie in a folder of the model in it.
    Returns:
        The two files.
    Raises:
        DataError: if the disk refuses.
    """
    moment = datetime.fromtimestamp((run.path / SAMPLES).stat().st_mtime, UTC)
    prefix = f"{moment:%Y%m%d_%H%M%S}" + (f"_{run.settings['control']}" if run.settings.get("control") else "")
    target = folder / re.sub(r"[^\w.-]+", "__", str(run.settings["model"])).strip(".")
    samples = [_sample(run, row, number) for number, row in enumerate(run.first.values())]
    paths = [target / f"{prefix}_results.json", target / f"{prefix}_samples_{task}.jsonl"]
    write_jsonl(paths[1], samples)
    write_json(paths[0], results(run, task, samples, f"{moment:%Y%m%d_%H%M%S}"))
    return paths


def results(run: EvalRun, task: str, samples: Sequence[dict[str, Any]], date: str) -> dict[str, Any]:
    """What `DATE_results.json` holds.

    Args:
        run: The run.
        task: Name of the task.
        samples: The lines of its samples.
        date: When the run ended.
    """
    labelled = [row for row in run.first.values() if row["scores"] is not None]
    metrics: dict[str, Any] = {"alias": task}
    for name in score_names(labelled):
        value = run.metrics["accuracy"][name]["accuracy"]
        error = standard_error(labelled, name, value)
        metrics |= {f"{name},none": value, f"{name}_stderr,none": NOT_AVAILABLE if error is None else error}
    decoding = run.settings.get("decoding") or {}
    info = run.metrics.get("task")
    hashes = "".join(f"sample_{number}{sample['doc_hash']}" for number, sample in enumerate(samples))
    return {
        "results": {task: metrics},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task, "output_type": "generate_until", "generation_kwargs": decoding,
                           "metadata": {"style": run.settings.get("style"), "scorer": run.settings["scorer"]}}},
        "versions": {task: (info.get("version") if isinstance(info, dict) else None) or "Yaml"},
        "n-shot": {task: 0},
        "higher_is_better": {task: {name: not lower_is_better(run.metrics, name) for name in score_names(labelled)}},
        "n-samples": {task: {"original": len(samples), "effective": len(samples)}},
        "config": {
            "model": "earwise", "model_args": f"model={run.settings['model']},revision={run.settings.get('revision')}",
            "batch_size": None, "limit": None, "earwise": version("earwise"), "control": run.settings.get("control"),
        },
        "date": date,
        "task_hashes": {task: _hash(hashes)},
        "model_source": "earwise",
        "model_name": run.settings["model"],
        "total_evaluation_time_seconds": str(run.metrics.get("seconds")),
    }  # fmt: skip


def _sample(run: EvalRun, row: Row, number: int) -> dict[str, Any]:
    """One line of the samples."""
    document = {field: row.get(field) for field in ("id", "question", "choices", "gold", "audio")}
    scores = row["scores"] or {}
    headline = scores.get(run.metrics["headline"])
    return {
        "doc_id": number,
        "target": row["gold"][0] if len(row["gold"]) == 1 else str(row["gold"]),
        "input": row["prompt"],
        "resps": [row["output"]],
        "filtered_resps": [row["answer"] if row["answer"] is not None else row["output"]],
        "token_counts": [None],
        "doc_hash": _hash(json.dumps(document, indent=2, ensure_ascii=False)),
        **({"score": headline} if headline is not None else {}),
        **scores,
        "id": row["id"],
        "status": row["status"],
        **{field: row[field] for field in ("task", "category", "difficulty", "language") if row.get(field)},
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
