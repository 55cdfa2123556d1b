"""The XS-CoT corpus: instructions that can be spoken -> their translation spoken -> checked by a recogniser -> rows.

Source: XS-CoT (arXiv:2504.20835), whose filters, voices and thresholds are not published: the order of the steps is the
paper's, everything else is ours. A row is an Example whose user turn is the clip alone, whose `reasoning` holds three
marked parts (transcript, English translation, English answer) and whose `answer` is the answer in the language that was
spoken; the prompt style `xs-cot` words the question and the target (`prompts.py`).

Every clip is one row of an append-only log, keyed by what is said, voice and recogniser: a killed run goes on where it
stopped, and another limit for the error rate needs no new speech. What is refused or fails is kept with its reason.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from earwise.algorithms.chain_compression import MARKER
from earwise.audio import decode_bytes, encode_ogg, seconds
from earwise.data import manifest
from earwise.datasets.teachers.keyed_log import UNSHARDED, KeyedLog, LogRow, Shard, content_key, in_shard
from earwise.datasets.teachers.validate_reply import wrong_language
from earwise.datasets.xs_cot import speakable_text, speech_recognition
from earwise.datasets.xs_cot.instructions import CORE, Item, Words
from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.datasets.xs_cot.text_to_speech import SAMPLE_RATE, Voice
from earwise.errors import ConfigError, DataError, EngineError
from earwise.files import atomic_write, write_json, write_jsonl
from earwise.prompts import xs_cot_chain
from earwise.types import Audio, Example, Turn

MAX_ERROR = 0.1
GIVE_UP_AFTER = 20
"""End the run when so many clips in a row could not be spoken or heard: the machine is at fault, not the texts."""
LOG, MANIFEST, REJECTED, REPORT = "log", "manifest.jsonl", "rejected.jsonl", "report.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One item in one language."""

    item: Item
    language: str
    key: str
    refusal: str | None
    """Why it is not spoken at all; None: it is."""

    @property
    def id(self) -> str:
        """Names the row and its clip."""
        return f"{self.item.id}-{self.language}"

    @property
    def words(self) -> Words:
        """In the language that is spoken; only where there is no refusal."""
        return self.item.words[self.language]


@dataclass(slots=True)
class Summary:
    """Counts of one run."""

    jobs: int = 0
    already: int = 0
    """In the log from earlier runs."""
    spoken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """Clips that could not be spoken or heard in this run, by step; the next run tries them again."""


def plan(
    items: Sequence[Item],
    languages: Sequence[str],
    voices: Mapping[str, Voice],
    recogniser: Recogniser,
    *,
    shard: Shard = UNSHARDED,
) -> list[Job]:
    """What is to be spoken, and what cannot be.

    Args:
        items: From `build/phrases.py`; ids differ.
        languages: Codes; English is the core language and needs no chain through itself.
        voices: Who speaks each language.
        recogniser: Who checks.
        shard: Our part of the items, all languages of an item together.
    Raises:
        ConfigError: for English, a language without voice, or no language.
        DataError: if two items share an id.
    """
    if not languages or CORE in languages:
        raise ConfigError(f"languages {', '.join(languages) or 'none'}: name others than {CORE}, for example ja,de,fr")
    if silent := [code for code in languages if code not in voices]:
        raise ConfigError(f"language {silent[0]!r} has no voice; name one with --voice {silent[0]}=NAME")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise DataError(f"item id {twice[0]!r} occurs twice; ids must differ")
    jobs = []
    for item in items:
        if not in_shard(_digest(item.id), shard):
            continue
        for code in languages:
            spoken = item.words.get(code, Words("", ""))
            sound = [item.id, code, spoken.instruction, spoken.reading, voices[code].name, recogniser.name]
            key = content_key(sound)
            jobs.append(Job(item, code, key, refusal(item, code)))
    return jobs


def refusal(item: Item, language: str) -> str | None:
    """Why an item is not spoken in a language; None if it is.

    >>> refusal(Item("a", {"en": Words("Say hello.", "Hello."), "de": Words("Sag hallo.", "Hallo.")}), "de")
    >>> refusal(Item("a", {"en": Words("Say hello.", "Hello."), "de": Words("Sag hallo.", "")}), "de")
    'empty translation'
    """
    core = item.words[CORE]
    if reason := speakable_text.refusal(core.instruction):
        return f"instruction: {reason}"
    if not core.response:
        return "no English answer"
    if language not in item.words:
        return "no translation"
    words = item.words[language]
    if not words.instruction or not words.response:
        return "empty translation"
    if reason := speakable_text.refusal(words.instruction):
        return f"translation: {reason}"
    if words.instruction == core.instruction:
        return "not translated"
    if found := wrong_language(words.instruction, language) or wrong_language(words.response, language):
        return f"wrong language: {found}"
    if any(MARKER.search(text) for text in (*_texts(item, CORE), *_texts(item, language))):
        return "holds a part marker"
    return None


def run(
    jobs: Sequence[Job],
    folder: Path,
    voices: Mapping[str, Voice],
    recogniser: Recogniser,
    *,
    shard: Shard = UNSHARDED,
    on_progress: Callable[[Job, LogRow], None] | None = None,
) -> Summary:
    """Speak and check what the log does not hold yet.

    Raises:
        EngineError: if twenty clips in a row fail; what was done is kept, the same command goes on from there.
        DataError: if the disk refuses; the same.
    """
    summary, in_a_row = Summary(jobs=len(jobs)), 0
    with KeyedLog(folder / LOG, shard) as log:
        for job in jobs:
            if job.refusal:
                summary.refused[job.refusal] += 1
                continue
            if log.is_ok(job.key) and (folder / _clip(job)).is_file():
                summary.already += 1
                continue
            row = _spoken(job, folder, voices[job.language], recogniser)
            log.append(row)
            if on_progress is not None:
                on_progress(job, row)
            if row["status"] == "ok":
                summary.spoken += 1
                in_a_row = 0
                continue
            summary.failed[row["step"]] += 1
            in_a_row += 1
            if in_a_row >= GIVE_UP_AFTER:
                raise EngineError(
                    f"{in_a_row} clips in a row failed (last: {row['error']}); what was done is kept, the same command "
                    "goes on from there"
                )
    return summary


def write(
    jobs: Sequence[Job],
    folder: Path,
    *,
    max_error: float = MAX_ERROR,
    val_share: float = 0.1,
    source: str = "earwise phrases",
    licence: str = "Apache-2.0",
) -> dict[str, Any]:
    """The manifest of the clips that were heard right, the list of the others with reasons, and the report.

    Args:
        jobs: From `plan`.
        folder: Where `run` has put log and clips.
        max_error: Largest word (character) error rate that passes.
        val_share: Share of the items, by hash, whose rows go into the validation split; never one item in two splits.
        source: Of the instructions, for the rows.
        licence: Of the texts.
    Returns:
        The report, as it stands in `report.json`.
    """
    log = KeyedLog(folder / LOG, read_only=True)
    verdicts = [(job, row := _measured(job, log.get(job.key)), _verdict(job, row, max_error)) for job in jobs]
    log.close()
    passed = [(job, row) for job, row, reason in verdicts if row is not None and reason is None]
    examples = [_example(job, row, folder, val_share, source, licence) for job, row in passed]
    manifest.write(folder / MANIFEST, examples)
    write_jsonl(folder / REJECTED, (_rejected(job, row, reason) for job, row, reason in verdicts if reason))
    codes = sorted({job.language for job in jobs})
    report = {
        "rows": len(examples),
        "max_error": max_error,
        "languages": {code: _counts([each for each in verdicts if each[0].language == code]) for code in codes},
    }
    write_json(folder / REPORT, report)
    return report


def _spoken(job: Job, folder: Path, voice: Voice, recogniser: Recogniser) -> LogRow:
    """One clip: spoken, stored, heard as it is stored, measured."""
    row: LogRow = {
        "key": job.key, "id": job.id, "language": job.language, "voice": voice.name, "recogniser": recogniser.name,
        "status": "failed", "step": "speech", "error": "",
    }  # fmt: skip
    words, start = job.words, time.perf_counter()
    text = words.reading if words.reading and voice.wants_reading(job.language) else words.instruction
    try:
        data = encode_ogg(voice.speak(text, job.language), SAMPLE_RATE)
        wave = decode_bytes(data, job.id, SAMPLE_RATE)
        spoken = time.perf_counter()
        with atomic_write(folder / _clip(job), "wb") as handle:
            handle.write(data)
        row["step"] = "recognition"
        heard = recogniser.transcribe(wave, job.language)
    except EngineError as error:
        return row | {"error": str(error)}
    return row | {
        "status": "ok",
        "step": "done",
        "heard": heard,
        "error_rate": speech_recognition.error_rate(words.instruction, heard, job.language),
        "unit": speech_recognition.unit_of(job.language),
        "duration_s": round(seconds(len(wave), SAMPLE_RATE), 3),
        "speak_s": round(spoken - start, 3),
        "hear_s": round(time.perf_counter() - spoken, 3),
    }


def _measured(job: Job, row: LogRow | None) -> LogRow | None:
    """A row of the log with its error rate as it is counted today."""
    if row is None or row["status"] != "ok":
        return row
    return row | {"error_rate": speech_recognition.error_rate(job.words.instruction, row["heard"], job.language)}


def _verdict(job: Job, row: LogRow | None, max_error: float) -> str | None:
    """Why a job gives no row; None if it does."""
    if job.refusal:
        return job.refusal
    if row is None:
        return "not spoken yet"
    if row["status"] != "ok":
        return f"{row['step']} failed"
    return None if row["error_rate"] <= max_error else "misheard"


def _example(job: Job, row: LogRow, folder: Path, val_share: float, source: str, licence: str) -> Example:
    core, words = job.item.words[CORE], job.words
    group = f"phrase:{job.item.id}"
    draw = int(_digest(group)[:8], 16) / 0x1_0000_0000
    return Example(
        id=job.id,
        turns=(Turn("user", (Audio(_clip(job)),)),),
        answer=(words.response,),
        reasoning=xs_cot_chain(job.language, words.instruction, core.instruction, core.response),
        task="xs-cot",
        category="speech",
        source=source,
        licence=licence,
        group=group,
        split="val" if draw < val_share else "train",
        language=job.language,
        root=folder,
        meta={
            "instr_n": words.instruction, "instr_c": core.instruction, "resp_c": core.response,
            "voice": row["voice"], "recogniser": row["recogniser"], "heard": row["heard"],
            "error_rate": row["error_rate"], "error_unit": row["unit"],
        },
    )  # fmt: skip


def _rejected(job: Job, row: LogRow | None, reason: str) -> LogRow:
    kept = (
        {key: row[key] for key in ("voice", "recogniser", "heard", "error_rate", "error") if key in row} if row else {}
    )
    texts = {code: job.item.words[code].instruction for code in (CORE, job.language) if code in job.item.words}
    return {"id": job.id, "language": job.language, "reason": reason, "instruction": texts} | kept


def _counts(verdicts: Sequence[tuple[Job, LogRow | None, str | None]]) -> dict[str, Any]:
    """Numbers of one language; error rates over every clip that was heard, passed or not."""
    heard = [row for _, row, _ in verdicts if row is not None and row["status"] == "ok"]
    rates = [row["error_rate"] for row in heard]
    passed = sum(reason is None for _, _, reason in verdicts)

    def mean(values: Sequence[float]) -> float | None:
        return round(float(np.mean(values)), 4) if values else None

    return {
        "items": len(verdicts),
        "passed": passed,
        "passed_share": round(passed / len(verdicts), 4),
        "reasons": dict(Counter(reason for _, _, reason in verdicts if reason)),
        "heard": len(heard),
        "error_rate_mean": mean(rates),
        "error_rate_median": round(float(np.median(rates)), 4) if rates else None,
        "unit": heard[0]["unit"] if heard else None,
        "duration_s": round(sum(row["duration_s"] for row in heard), 2),
        "speak_s_mean": mean([row["speak_s"] for row in heard]),
        "hear_s_mean": mean([row["hear_s"] for row in heard]),
    }


def _texts(item: Item, language: str) -> Iterator[str]:
    words = item.words.get(language)
    return iter(() if words is None else (words.instruction, words.response, words.reading))


def _clip(job: Job) -> str:
    """Where its clip lies, whatever characters the item's id has."""
    return f"clips/{job.language}/{job.key[:20]}.ogg"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
