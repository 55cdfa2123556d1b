"""Writes the XS-CoT corpus: the manifest of clips that were recognised, the list of the others, and a report.

A row's user turn is the clip alone. Its `reasoning` has three marked parts (transcript, English translation, English
answer) and its `answer` is the answer in the spoken language; the prompt style `xs-cot` words both (`prompts/`).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earwise.data import manifest
from earwise.datasets.teachers.keyed_log import KeyedLog, LogRow
from earwise.datasets.xs_cot.instructions import BUNDLED_LICENCE, BUNDLED_SOURCE, CORE_LANGUAGE
from earwise.datasets.xs_cot.jobs import SpeechJob
from earwise.datasets.xs_cot.speech_recognition import error_rate
from earwise.datasets.xs_cot.synthesis import LOG
from earwise.files import write_json, write_jsonl
from earwise.prompts import xs_cot_chain
from earwise.types import Audio, Example, Turn

MAX_ERROR_RATE = 0.1
VAL_SHARE = 0.1
MANIFEST, REJECTED, REPORT = "manifest.jsonl", "rejected.jsonl", "report.json"


@dataclass(frozen=True, slots=True)
class _CheckedJob:
    """A job, its row in the log, and the reason why it gives no row of the corpus (None if it does)."""

    job: SpeechJob
    row: LogRow | None
    reason: str | None


def write_corpus(
    jobs: Sequence[SpeechJob],
    folder: Path,
    *,
    max_error: float = MAX_ERROR_RATE,
    val_share: float = VAL_SHARE,
    source: str = BUNDLED_SOURCE,
    licence: str = BUNDLED_LICENCE,
) -> dict[str, Any]:
    """Write the manifest, the list of rejected jobs with their reasons, and the report.

    Args:
        jobs: Jobs from `plan_jobs`.
        folder: Output folder with the log and the clips.
        max_error: Largest word error rate (character error rate) of a clip in the manifest.
        val_share: Share of the instructions, chosen by hash, whose rows get the split `val`. All languages of an
            instruction get the same split.
        source: Source of the instructions, for every row.
        licence: Licence of the texts, for every row.
    Returns:
        The contents of `report.json`.
    """
    log = KeyedLog(folder / LOG, read_only=True)
    checked_jobs = []
    for job in jobs:
        row = _with_error_rate(job, log.get(job.key))
        checked_jobs.append(_CheckedJob(job, row, _rejection_reason(job, row, max_error)))
    log.close()
    examples = [
        _example(checked.job, checked.row, folder, val_share, source, licence)
        for checked in checked_jobs
        if checked.row is not None and checked.reason is None
    ]
    manifest.write(folder / MANIFEST, examples)
    write_jsonl(folder / REJECTED, (_rejected_row(checked) for checked in checked_jobs if checked.reason))
    languages = sorted({job.language for job in jobs})
    report = {
        "rows": len(examples),
        "max_error": max_error,
        "languages": {
            code: _count_language([checked for checked in checked_jobs if checked.job.language == code])
            for code in languages
        },
    }
    write_json(folder / REPORT, report)
    return report


def _with_error_rate(job: SpeechJob, row: LogRow | None) -> LogRow | None:
    """A row of the log with its error rate as this version computes it."""
    if row is None or row["status"] != "ok":
        return row
    return row | {"error_rate": error_rate(job.pair.instruction, row["heard"], job.language)}


def _rejection_reason(job: SpeechJob, row: LogRow | None, max_error: float) -> str | None:
    """The reason why a job gives no row of the corpus; None if it does."""
    if job.rejection:
        return job.rejection
    if row is None:
        return "not spoken yet"
    if row["status"] != "ok":
        return f"{row['step']} failed"
    return None if row["error_rate"] <= max_error else "misheard"


def _example(job: SpeechJob, row: LogRow, folder: Path, val_share: float, source: str, licence: str) -> Example:
    """The row of the corpus for a job."""
    core, pair = job.instruction.pairs[CORE_LANGUAGE], job.pair
    group = f"phrase:{job.instruction.id}"
    group_share = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 0x1_0000_0000
    return Example(
        id=job.id,
        turns=(Turn("user", (Audio(job.clip_path),)),),
        answer=(pair.response,),
        reasoning=xs_cot_chain(job.language, pair.instruction, core.instruction, core.response),
        task="xs-cot",
        category="speech",
        source=source,
        licence=licence,
        group=group,
        split="val" if group_share < val_share else "train",
        language=job.language,
        root=folder,
        meta={
            "instr_n": pair.instruction, "instr_c": core.instruction, "resp_c": core.response,
            "voice": row["voice"], "recogniser": row["recogniser"], "heard": row["heard"],
            "error_rate": row["error_rate"], "error_unit": row["unit"],
        },
    )  # fmt: skip


def _rejected_row(checked: _CheckedJob) -> dict[str, Any]:
    """The row of a rejected job in `rejected.jsonl`."""
    job, row = checked.job, checked.row
    fields = ("voice", "recogniser", "heard", "error_rate", "error")
    logged = {key: row[key] for key in fields if key in row} if row else {}
    pairs = job.instruction.pairs
    texts = {code: pairs[code].instruction for code in (CORE_LANGUAGE, job.language) if code in pairs}
    return {"id": job.id, "language": job.language, "reason": checked.reason, "instruction": texts} | logged


def _count_language(checked_jobs: Sequence[_CheckedJob]) -> dict[str, Any]:
    """The report on one language. Error rates are those of all transcribed clips, whether they pass or not."""
    rows = [checked.row for checked in checked_jobs if checked.row is not None and checked.row["status"] == "ok"]
    rates = [row["error_rate"] for row in rows]
    num_passed = sum(checked.reason is None for checked in checked_jobs)

    def mean(values: Sequence[float]) -> float | None:
        return round(float(np.mean(values)), 4) if values else None

    return {
        "items": len(checked_jobs),
        "passed": num_passed,
        "passed_share": round(num_passed / len(checked_jobs), 4),
        "reasons": dict(Counter(checked.reason for checked in checked_jobs if checked.reason)),
        "heard": len(rows),
        "error_rate_mean": mean(rates),
        "error_rate_median": round(float(np.median(rates)), 4) if rates else None,
        "unit": rows[0]["unit"] if rows else None,
        "duration_s": round(sum(row["duration_s"] for row in rows), 2),
        "speak_s_mean": mean([row["speak_s"] for row in rows]),
        "hear_s_mean": mean([row["hear_s"] for row in rows]),
    }
