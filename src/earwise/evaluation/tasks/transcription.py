"""Transcription, scored by error rates as in Qwen2-Audio (arXiv:2407.10759).

For LibriSpeech, Common Voice, FLEURS and AISHELL.

Data: the evaluation files of Qwen2-Audio (`published/qwen2_audio_file.py`; their prompts are used as they are), the
folder of a LibriSpeech split or of AISHELL, the TSV of Common Voice or FLEURS, a table (Parquet, `datasets` on disk, a
name on a hub) with a column of transcripts, or any manifest whose answers are transcripts. `wer` is the error rate as
Qwen2-Audio's program counts it (characters for Chinese and Cantonese), `wer_whisper` normalises as Whisper's authors
do. Rates are over the corpus: all edits divided by all reference units; of one row it is that row's own.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from earwise.evaluation.aggregates.clusters import recording_clusters
from earwise.evaluation.aggregates.corpus import corpus_row
from earwise.evaluation.metrics.transcripts import ErrorCount, Reading, count_errors
from earwise.evaluation.published.qwen2_audio_file import is_qwen2_audio_file, load_file
from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.published.speech_files import (
    SpeechTable,
    aishell_files,
    is_table,
    load_aishell,
    load_fleurs,
    load_table,
)
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric
from earwise.evaluation.task import Task
from earwise.evaluation.tasks import manifest
from earwise.types import Example, Score, Text, Turn

TRANSCRIPT_COLUMNS = ("raw_transcription", "text", "sentence", "transcription", "transcript", "normalized_text")
READINGS: dict[str, Reading] = {"wer": "qwen2audio", "wer_whisper": "whisper"}
QUESTION = "Transcribe the speech."
"""Asked where a file has no questions of its own. The wording is ours."""
TABLE = SpeechTable("transcription", TRANSCRIPT_COLUMNS, QUESTION)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a file of Qwen2-Audio, a set in its own form, a table, or a manifest.

    Args:
        path: The file, folder, or name on a hub.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is wrong.
    """
    if is_table(path):
        return load_table(path, audio_root, TABLE)
    if path.is_dir():
        if aishell_files(path):
            return load_aishell(path, audio_root, TABLE)
        return [asked(example, QUESTION) for example in load_source("librispeech")(path, audio_root)]
    if path.suffix.lower() == ".tsv":
        is_common_voice = path.read_bytes()[:200].startswith(b"client_id")
        if is_common_voice:
            return [asked(example, QUESTION) for example in load_source("common-voice")(path, audio_root)]
        return load_fleurs(path, audio_root, TABLE)
    if is_qwen2_audio_file(path):
        return load_file(path, audio_root, "transcription")
    return [with_question(example, QUESTION) for example in manifest.load(path, audio_root)]


def asked(example: Example, question: str) -> Example:
    """The example, asked with this question."""
    *turns, last = example.turns
    audio = tuple(part for part in last.parts if not isinstance(part, Text))
    return replace(example, turns=(*turns, Turn(last.role, (*audio, Text(question)))))


def with_question(example: Example, question: str) -> Example:
    """The example, with a question if it has none."""
    if example.question.strip():
        return example
    *turns, last = example.turns
    return replace(example, turns=(*turns, Turn(last.role, (*last.parts, Text(question)))))


def score(example: Example, completion: str) -> Score:
    """Error rates of one transcript under both readings. An empty output is wrong everywhere."""
    text = completion.strip()
    counts = _counts(example.answer, text, example.language)
    values = {name: count.rate for name, count in counts.items()}
    sums = {name: (count.num_edits, count.num_units) for name, count in counts.items()}
    return Score(values, "ok" if text else "unparsed", text or None, "" if text else "the output is empty", sums)


def _counts(references: Sequence[str], text: str, language: str) -> dict[str, ErrorCount]:
    """Edits and reference units by score, against the reference with the lowest rate."""
    return {
        name: min(
            (count_errors(reference, text, language or "en", reading) for reference in references or ("",)),
            key=lambda count: count.rate,
        )
        for name, reading in READINGS.items()
    }


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Error rates over the corpus, with intervals by resampling speakers or utterances; of several languages the mean,
    since words and characters do not add up."""
    sums = [row.get("counts") or _sums_of_row(row) for row in rows]
    languages, clusters = [row["language"] or "" for row in rows], recording_clusters(rows)
    return {
        name: corpus_row([row_sums[name] for row_sums in sums], languages, "ratio", clusters=clusters)
        for name in READINGS
    }


def _sums_of_row(row: Row) -> dict[str, tuple[int, int]]:
    """Edits and reference units of a row that does not hold them: without a completion, or of an earlier version."""
    counts = _counts(row["gold"], row["output"].strip(), row["language"])
    return {name: (count.num_edits, count.num_units) for name, count in counts.items()}


TASK = Task(
    name="transcription",
    load=load,
    score=score,
    scorer="qwen2-audio-wer/1",
    score_notes={
        "wer": "error rate as Qwen2-Audio's program counts it: characters for Chinese and Cantonese, else words; lower "
        "is better",
        "wer_whisper": "error rate after Whisper's own normalisation; lower is better",
    },
    headline="wer",
    lower_is_better=frozenset(READINGS),
    corpus=dict.fromkeys(READINGS, "ratio"),
    aggregate=aggregate,
    default_style="open",
    max_new_tokens=256,
    source="arXiv:2407.10759, QwenLM/Qwen2-Audio eval_audio",
    licence="LibriSpeech CC BY 4.0, Common Voice CC0, FLEURS CC BY 4.0, AISHELL-1 Apache-2.0; AISHELL-2 by application",
    unverified="Qwen2-Audio's evaluation files, and Parquet files and hub names of any set",
)
