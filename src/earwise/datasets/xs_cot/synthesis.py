"""Speaks the jobs of the XS-CoT corpus, and lets a recogniser write down what was spoken.

Every clip is one row of an append-only log, keyed by text, voice and recogniser. An interrupted run therefore continues
where it stopped, and another limit of the error rate needs no new speech.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from earwise import progress
from earwise.audio import decode_bytes, encode_ogg, seconds
from earwise.datasets.teachers.keyed_log import UNSHARDED, KeyedLog, LogRow, Shard
from earwise.datasets.xs_cot import speech_recognition
from earwise.datasets.xs_cot.jobs import SpeechJob
from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.datasets.xs_cot.text_to_speech import SAMPLE_RATE, Voice
from earwise.errors import EngineError
from earwise.files import atomic_write

LOG = "log"
"""Folder of the log, inside the output folder."""
GIVE_UP_AFTER = 20
"""Number of failures in a row that ends a run: then the voice or the recogniser is at fault, not the texts."""


@dataclass(slots=True)
class SpeechSummary:
    """Counts of one run."""

    jobs: int = 0
    """All jobs."""
    already: int = 0
    """Jobs that earlier runs have finished."""
    spoken: int = 0
    """Jobs that this run has finished."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Jobs that are not spoken, by reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """Jobs that failed in this run, by step ("speech" or "recognition"); the next run tries them again."""


def speak_jobs(
    jobs: Sequence[SpeechJob],
    folder: Path,
    voices: Mapping[str, Voice],
    recogniser: Recogniser,
    *,
    shard: Shard = UNSHARDED,
    on_failure: Callable[[SpeechJob, LogRow], None] | None = None,
) -> SpeechSummary:
    """Speak and transcribe every job that the log does not hold yet.

    Args:
        jobs: Jobs from `plan_jobs`.
        folder: Output folder, which gets the log and the clips.
        voices: Language code -> voice.
        recogniser: The recogniser.
        shard: Shard of this process, which names the log's file that is written.
        on_failure: Called with every job that failed, and its row.
    Raises:
        EngineError: if `GIVE_UP_AFTER` jobs in a row fail; finished work is kept.
        DataError: if a file cannot be written; finished work is kept.
    """
    summary, failures_in_a_row = SpeechSummary(jobs=len(jobs)), 0
    with KeyedLog(folder / LOG, shard) as log:
        pending = [job for job in jobs if not job.rejection and not _is_finished(job, folder, log)]
        summary.rejected.update(job.rejection for job in jobs if job.rejection)
        summary.already = len(jobs) - summary.rejected.total() - len(pending)
        for job in progress.track(pending, "clips spoken", len(pending)):
            row = _speak_job(job, folder, voices[job.language], recogniser)
            log.append(row)
            if on_failure is not None and row["status"] != "ok":
                on_failure(job, row)
            if row["status"] == "ok":
                summary.spoken += 1
                failures_in_a_row = 0
                continue
            summary.failed[row["step"]] += 1
            failures_in_a_row += 1
            if failures_in_a_row >= GIVE_UP_AFTER:
                raise EngineError(
                    f"{failures_in_a_row} clips in a row failed (last: {row['error']}); finished clips are kept, "
                    "and the same command continues from here"
                )
    return summary


def _is_finished(job: SpeechJob, folder: Path, log: KeyedLog) -> bool:
    """Whether an earlier run spoke a job, and its clip is still there."""
    return log.is_ok(job.key) and (folder / job.clip_path).is_file()


def _speak_job(job: SpeechJob, folder: Path, voice: Voice, recogniser: Recogniser) -> LogRow:
    """Speak one job, store the clip, transcribe the clip as it is stored, and measure the error rate."""
    row: LogRow = {
        "key": job.key, "id": job.id, "language": job.language, "voice": voice.name, "recogniser": recogniser.name,
        "status": "failed", "step": "speech", "error": "",
    }  # fmt: skip
    pair, start = job.pair, time.perf_counter()
    text = pair.reading if pair.reading and voice.needs_reading(job.language) else pair.instruction
    try:
        data = encode_ogg(voice.speak(text, job.language), SAMPLE_RATE)
        waveform = decode_bytes(data, job.id, SAMPLE_RATE)
        spoken = time.perf_counter()
        with atomic_write(folder / job.clip_path, "wb") as handle:
            handle.write(data)
        row["step"] = "recognition"
        transcript = recogniser.transcribe(waveform, job.language)
    except EngineError as error:
        return row | {"error": str(error)}
    return row | {
        "status": "ok",
        "step": "done",
        "heard": transcript,
        "error_rate": speech_recognition.error_rate(pair.instruction, transcript, job.language),
        "unit": speech_recognition.error_unit(job.language),
        "duration_s": round(seconds(len(waveform), SAMPLE_RATE), 3),
        "speak_s": round(spoken - start, 3),
        "hear_s": round(time.perf_counter() - spoken, 3),
    }
