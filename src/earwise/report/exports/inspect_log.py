"""A run as an eval log of inspect (inspect_ai, log version 2): `read_eval_log` and `inspect view` open it.

Part of `earwise.report`. An item under the first order of its options is a sample, each score a scorer; the answers
under other orders are metadata of the sample (they are no epochs: an item without options has one order, and inspect
wants every sample in every epoch). The sound is a part of the user's message where inspect knows the format (WAV, MP3);
of other files the message holds the name.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from earwise.data.clip_fields import clips_of_row
from earwise.evaluation.results import SAMPLES, EvalRun, Row, settings_hash
from earwise.evaluation.scores import score_names
from earwise.files import relative_path, write_json
from earwise.report.exports.standard_error import standard_error

LOG_VERSION = 2
AUDIO_FORMATS = {".wav": "wav", ".mp3": "mp3"}
"""Suffixes of the files that inspect knows as sound."""
STOP_REASONS = {"stop": "stop", "length": "max_tokens"}
"""Our reason for the end of a completion -> that of inspect."""
METADATA = (
    "task", "category", "sub_category", "difficulty", "language", "benchmark", "status", "confidence",
    "reasoning_tokens", "formatted", "silent", "truncated",
)  # fmt: skip
"""Fields of a row that become metadata of its sample."""


def export(run: EvalRun, task: str, folder: Path) -> list[Path]:
    """Write the log of a run.

    Args:
        run: The run.
        task: Name of the task.
        folder: Folder to write into.
    Returns:
        The log's file.
    Raises:
        DataError: if the disk refuses.
    """
    written = datetime.fromtimestamp((run.path / SAMPLES).stat().st_mtime, UTC).replace(microsecond=0).isoformat()
    # inspect reads date, task and id from the name, divided by underscores.
    name = f"{written.replace(':', '-')}_{task.replace('_', '-')}_{_identifier(run, 'task')}.json"
    path = folder / name
    write_json(path, eval_log(run, task, folder, written))
    return [path]


def eval_log(run: EvalRun, task: str, folder: Path, written: str) -> dict[str, Any]:
    """The log as inspect's own writer lays it out.

    Args:
        run: The run.
        task: Name of the task.
        folder: Folder of the log, from which paths of clips start.
        written: When the run ended, as ISO 8601.
    """
    first = list(run.first.values())
    labelled = [row for row in first if row["scores"] is not None]
    orders: dict[str, list[Row]] = {}
    for row in run.rows:
        if row.get("permutation"):
            orders.setdefault(row["id"], []).append(row)
    names = score_names(labelled)
    model = f"earwise/{run.settings['model']}"
    info = run.metrics.get("task")
    return {
        "version": LOG_VERSION,
        "status": "success",
        "eval": {
            "eval_id": _identifier(run, "eval"),
            "run_id": _identifier(run, "run"),
            "created": written,
            "task": task,
            "task_id": _identifier(run, "task"),
            "task_version": (info.get("version") if isinstance(info, dict) else None) or 0,
            "dataset": {
                "name": run.metrics.get("benchmark") or task,
                "samples": len(first),
                "sample_ids": [row["id"] for row in first],
                "shuffled": False,
            },
            "model": model,
            "model_args": {"revision": run.settings.get("revision")},
            "config": {"epochs": 1},
            "packages": {"earwise": version("earwise")},
            "metadata": {**run.settings, "headline": run.metrics["headline"]},
            "scorers": [{"name": name, "options": {}, "metrics": [], "metadata": {}} for name in names],
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": _generate_config(run)},
        "results": {
            "total_samples": len(first),
            "completed_samples": len(first),
            "scores": [_score_summary(run, labelled, name) for name in names],
        },
        "stats": {"started_at": written, "completed_at": written, "model_usage": {}},
        "samples": [_sample(run, row, orders.get(row["id"], []), model, folder) for row in first],
    }


def _score_summary(run: EvalRun, labelled: Sequence[Row], name: str) -> dict[str, Any]:
    """The metrics of one score over the first order of the options: its value and its standard error."""
    metric = run.metrics["accuracy"][name]
    metrics = {"accuracy": {"name": "accuracy", "value": metric["accuracy"], "params": {}}}
    error = standard_error(labelled, name, metric["accuracy"])
    if error is not None:
        metrics["stderr"] = {"name": "stderr", "value": error, "params": {}}
    interval = {end: metric[end] for end in ("low", "high") if end in metric}
    return {
        "name": name, "scorer": name, "scored_samples": len(labelled),
        "unscored_samples": len(run.first) - len(labelled), "params": {}, "metrics": metrics, "metadata": interval,
    }  # fmt: skip


def _sample(run: EvalRun, row: Row, orders: Sequence[Row], model: str, folder: Path) -> dict[str, Any]:
    """One row as a sample; `orders` are the rows of the item under other orders of its options."""
    parts: list[dict[str, Any]] = []
    for clip in clips_of_row(row, run.path):
        audio_format = AUDIO_FORMATS.get(clip.path.suffix.lower())
        if audio_format and not clip.is_segment:
            parts.append({"type": "audio", "audio": relative_path(clip.path, folder), "format": audio_format})
        else:
            name = clip.path.name if not clip.is_segment else str(clip).removeprefix(f"{clip.path.parent}/")
            parts.append({"type": "text", "text": f"[sound: {name}]"})
    user = {"role": "user", "source": "input", "content": [*parts, {"type": "text", "text": row["prompt"]}]}
    reply = {"role": "assistant", "source": "generate", "model": model, "content": row["output"]}
    choice = {"message": reply, "stop_reason": STOP_REASONS.get(row.get("finish_reason") or "", "unknown")}
    gold = row["gold"]
    sample: dict[str, Any] = {
        "id": row["id"],
        "epoch": 1,
        "input": [user],
        "target": gold[0] if len(gold) == 1 else gold,
        "messages": [user, reply],
        "output": {"model": model, "choices": [choice], "completion": row["output"], "time": row.get("seconds")},
        "scores": {name: _score(row, value) for name, value in (row["scores"] or {}).items()},
        "metadata": {field: row[field] for field in METADATA if row.get(field) is not None}
        | {"audio": [relative_path(clip.path, folder) for clip in clips_of_row(row, run.path)]},
        "total_time": row.get("seconds"),
    }
    if orders:
        fields = ("permutation", "choices", "output", "answer", "scores")
        sample["metadata"]["orders"] = [{field: order[field] for field in fields} for order in orders]
    if row["choices"]:
        sample["choices"] = row["choices"]
    if row["status"] == "error":
        sample["error"] = {"message": row.get("explanation") or "", "traceback": "", "traceback_ansi": ""}
    return sample


def _score(row: Row, value: float) -> dict[str, Any]:
    """One score of a row, with the answer that was read and why none could be."""
    return {"value": value, "answer": row["answer"], "explanation": row.get("explanation") or None}


def _generate_config(run: EvalRun) -> dict[str, Any]:
    """The sampling parameters under inspect's names."""
    decoding = run.settings.get("decoding") or {}
    names = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
    return {theirs: decoding[ours] for ours, theirs in names.items() if decoding.get(ours) is not None}


def _identifier(run: EvalRun, kind: str) -> str:
    """An id of 22 characters that depends on the settings of a run alone."""
    text = json.dumps([kind, settings_hash(run.settings)])
    return hashlib.sha256(text.encode()).hexdigest()[:22]
