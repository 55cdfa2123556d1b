"""Builds the XS-CoT corpus: spoken instructions with cross-lingual chains of thought.

instructions (`instructions.py`) -> missing translations by a teacher (`translation.py`) -> those that can be spoken
(`jobs.py`) -> speech, transcribed by a recogniser (`synthesis.py`) -> rows of the clips that were recognised, list of
the others, report (`corpus.py`)

Source: XS-CoT (arXiv:2504.20835). The order of the steps is the paper's; filters, voices and thresholds are ours, since
the paper's are not published.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earwise.config.resolve import require
from earwise.data.sources.row_readers import OnSkip
from earwise.datasets.teachers.keyed_log import UNSHARDED, Shard
from earwise.datasets.teachers.teacher import Teacher
from earwise.datasets.xs_cot.corpus import MAX_ERROR_RATE, VAL_SHARE, write_corpus
from earwise.datasets.xs_cot.instructions import Instruction, InstructionFiles, load_instructions
from earwise.datasets.xs_cot.jobs import SpeechJob, plan_jobs
from earwise.datasets.xs_cot.speech_recognition import Recogniser
from earwise.datasets.xs_cot.synthesis import SpeechSummary, speak_jobs
from earwise.datasets.xs_cot.text_to_speech import Voice
from earwise.datasets.xs_cot.translation import estimate_translations, translate

TRANSLATIONS = "translations"
"""Folder of the log of translations, inside the output folder."""


@dataclass(frozen=True, slots=True)
class XSCoTOptions:
    """Languages and thresholds of the corpus."""

    languages: tuple[str, ...] = ("ja", "de", "fr")
    """Codes of the languages to speak; English is the language of the reasoning and cannot be among them."""
    max_error: float = MAX_ERROR_RATE
    """Largest word error rate (character error rate) of a clip in the manifest."""
    val_share: float = VAL_SHARE
    """Share of the instructions whose rows get the split `val`."""


@dataclass(frozen=True, slots=True)
class XSCoTModels:
    """The models that build the corpus."""

    voices: Mapping[str, Voice]
    """Language code -> voice, see `text_to_speech.open_voices`."""
    recogniser: Recogniser
    """Transcribes every clip, which checks it."""
    translator: Teacher | None = None
    """Translates instructions into the languages that they lack; None leaves those out."""
    retry_failed: bool = False
    """Whether to send translations to the teacher again that failed in an earlier run."""


@dataclass(frozen=True, slots=True)
class XSCoTResult:
    """What was built."""

    jobs: list[SpeechJob]
    """All jobs, those that were not spoken included."""
    summary: SpeechSummary
    """Counts of this run."""
    report: dict[str, Any] | None
    """The contents of `report.json`; None if this was a shard, which writes no manifest."""


def build_xs_cot(
    files: InstructionFiles,
    out: Path,
    models: XSCoTModels,
    options: XSCoTOptions | None = None,
    *,
    shard: Shard = UNSHARDED,
    on_skip: OnSkip = lambda line: None,
    notify: Callable[[str], None] = lambda line: None,
) -> XSCoTResult:
    """Build the corpus; the same call again continues where it stopped.

    Args:
        files: Instructions to speak; `InstructionFiles()` for the bundled ones.
        out: Folder for clips, logs, `manifest.jsonl`, `rejected.jsonl` and `report.json`.
        models: Voices, recogniser and translator.
        options: Languages and thresholds; None takes the defaults.
        shard: The part of the instructions that this process speaks. A shard writes no manifest: copy the logs and
            clips of all shards into one folder, then build without `shard`.
        on_skip: Called with one line about every row and every translation that cannot be used.
        notify: Called with every line about progress.
    Raises:
        ConfigError: if languages, voices, source or licence do not fit.
        DataError: if no instruction can be used, or a file cannot be read or written.
        EngineError: if speech or recognition fail for many clips in a row. The manifest of the finished clips is
            written before this is raised.
    """
    require("jiwer", "data", "error rates")
    options = options or XSCoTOptions()
    source, licence = files.attribution
    instructions = load_instructions(files, on_skip)
    if models.translator is not None:
        # Errors of the languages and voices are raised before the teacher is asked.
        plan_jobs(instructions, options.languages, models.voices, models.recogniser)
        instructions = translate(
            instructions,
            options.languages,
            models.translator,
            out / TRANSLATIONS,
            retry_failed=models.retry_failed,
            on_skip=on_skip,
            notify=notify,
        )
    jobs = _plan(instructions, models, options, shard, notify)
    report: dict[str, Any] | None = None
    try:
        summary = speak_jobs(
            jobs,
            out,
            models.voices,
            models.recogniser,
            shard=shard,
            on_failure=lambda job, row: notify(f"{job.id}: {row['step']} failed: {row['error']}"),
        )
    finally:
        if shard == UNSHARDED:
            report = write_corpus(
                jobs, out, max_error=options.max_error, val_share=options.val_share, source=source, licence=licence
            )
    return XSCoTResult(jobs, summary, report)


def plan_xs_cot(
    files: InstructionFiles,
    out: Path,
    models: XSCoTModels,
    options: XSCoTOptions,
    *,
    shard: Shard = UNSHARDED,
    on_skip: OnSkip = lambda line: None,
    notify: Callable[[str], None] = lambda line: None,
) -> list[SpeechJob]:
    """List the jobs that `build_xs_cot` would have, without translations that a teacher would still write.

    The arguments are those of `build_xs_cot`; nothing is requested, spoken or written.
    """
    instructions = load_instructions(files, on_skip)
    if models.translator is not None:
        plan_jobs(instructions, options.languages, models.voices, models.recogniser)
        estimate = estimate_translations(instructions, options.languages, models.translator, out / TRANSLATIONS)
        num_tokens = estimate.input_tokens + estimate.output_tokens
        notify(f"{estimate.requests} translations to request, about {num_tokens} tokens")
    return _plan(instructions, models, options, shard, notify)


def _plan(
    instructions: Sequence[Instruction],
    models: XSCoTModels,
    options: XSCoTOptions,
    shard: Shard,
    notify: Callable[[str], None],
) -> list[SpeechJob]:
    """List the jobs, and report their numbers."""
    jobs = plan_jobs(instructions, options.languages, models.voices, models.recogniser, shard=shard)
    num_rejected = Counter(job.rejection is not None for job in jobs)[True]
    languages = ", ".join(options.languages)
    notify(f"{len(instructions)} instructions in {languages}: {len(jobs)} to speak, {num_rejected} of them left out")
    return jobs
