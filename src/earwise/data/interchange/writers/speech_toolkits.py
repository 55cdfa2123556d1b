"""Writes manifests for speech toolkits: NeMo (JSON lines), lhotse (recordings and supervisions), Kaldi (data folder).

The first accepted answer is the text of an utterance. Durations are those of the audio. lhotse and Kaldi name audio by
absolute paths, because both take relative ones to start from wherever their programs run.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from earwise import progress
from earwise.audio import probe
from earwise.data import manifest
from earwise.data.interchange.writers.single_clip import SingleClipRow, single_clip
from earwise.data.readers.row_files import count_rows
from earwise.data.sources.example_builder import short_hash
from earwise.errors import DataError
from earwise.files import atomic_folder, atomic_write, relative_path, write_jsonl, write_text

_info = lru_cache(maxsize=4096)(probe)


def write_nemo(path: Path, out: Path) -> int:
    """Write a NeMo manifest: `audio_filepath`, `duration`, `offset`, `text`, with question and options beside them.

    Args:
        path: Manifest.
        out: JSON lines to write; audio paths start from its folder.
    Returns:
        Number of rows.
    Raises:
        DataError: for a row with several clips or turns, or without an answer.
    """
    return write_jsonl(out, (_nemo_row(row, out.parent) for row in _rows(path, "a NeMo manifest")))


def _nemo_row(row: SingleClipRow, folder: Path) -> dict[str, Any]:
    example, end = row.example, row.end
    duration = (_info(row.file).duration_s if end is None else end) - row.start
    values: dict[str, Any] = {"audio_filepath": Path(relative_path(row.file, folder)).as_posix()}
    values |= {"duration": round(duration, 6), "text": row.answer, "id": example.id, "question": example.question}
    values |= {"offset": row.start} if row.start or end is not None else {}
    values |= {"choices": list(example.choices)} if example.choices else {}
    values |= {name: getattr(example, name) for name in _KEPT if getattr(example, name)}
    return dict(example.meta) | values


_KEPT = ("task", "category", "split", "group", "source", "licence", "language")
"""Fields that are written beside those of the toolkit, and read back."""


def write_lhotse(path: Path, out: Path) -> int:
    """Write `recordings.jsonl.gz` and `supervisions.jsonl.gz` for lhotse.

    Args:
        path: Manifest; it is read twice.
        out: Folder to write; it must not exist.
    Returns:
        Number of supervisions.
    Raises:
        DataError: see `write_nemo`.
    """
    with atomic_folder(out) as part:
        files = {row.file: None for row in _rows(path, "a lhotse manifest")}
        _write_gzip(part / "recordings.jsonl.gz", (_recording(file) for file in files))
        return _write_gzip(
            part / "supervisions.jsonl.gz", (_supervision(row) for row in _rows(path, "a lhotse manifest"))
        )


def _recording(file: Path) -> dict[str, Any]:
    info = _info(file)
    channels = list(range(info.channels))
    return {
        "id": _recording_id(file),
        "sources": [{"type": "file", "channels": channels, "source": str(file)}],
        "sampling_rate": info.sample_rate,
        "num_samples": info.samples,
        "duration": info.duration_s,
        "channel_ids": channels,
    }


def _supervision(row: SingleClipRow) -> dict[str, Any]:
    example, info = row.example, _info(row.file)
    end = info.duration_s if row.end is None else min(row.end, info.duration_s)
    custom: dict[str, Any] = dict(example.meta) | {"question": example.question}
    custom |= {"choices": list(example.choices)} if example.choices else {}
    custom |= {name: getattr(example, name) for name in _KEPT if getattr(example, name)}
    return {
        "id": example.id,
        "recording_id": _recording_id(row.file),
        "start": row.start,
        "duration": round(end - row.start, 8),
        "channel": 0 if info.channels == 1 else list(range(info.channels)),
        "text": row.answer,
        "custom": custom,
    }


def _recording_id(file: Path) -> str:
    """Id of a recording: its name, and a hash of its path, which differs for files of one name."""
    return f"{file.stem}-{short_hash(str(file))}"


def write_kaldi(path: Path, out: Path) -> int:
    """Write a Kaldi data folder: `wav.scp`, `segments`, `text`, `utt2spk`, sorted as Kaldi wants them.

    Args:
        path: Manifest; the rows' ids and texts are held in memory.
        out: Folder to write; it must not exist.
    Returns:
        Number of utterances.
    Raises:
        DataError: see `write_nemo`; also for an id with spaces (those in groups become underscores), or a row with
            options.
    """
    recordings: dict[str, str] = {}
    segments, texts, speakers = list[str](), list[str](), list[str]()
    for row in _rows(path, "a Kaldi folder"):
        identifier, recording = row.example.id, _recording_id(row.file).replace(" ", "_")
        speaker = "_".join(row.example.group.split()) or identifier
        if row.example.choices:
            raise DataError(
                f"row {identifier!r}: has options, and Kaldi holds transcripts only. Write --to nemo or lhotse"
            )
        if len(identifier.split()) != 1:
            raise DataError(f"row {identifier!r}: its id contains spaces, which Kaldi cannot hold; rename it")
        recordings[recording] = f"{recording} {row.file}"
        end = _info(row.file).duration_s if row.end is None else row.end
        segments.append(f"{identifier} {recording} {row.start:.3f} {end:.3f}")
        texts.append(f"{identifier} {' '.join(row.answer.split())}")
        speakers.append(f"{identifier} {speaker}")
    with atomic_folder(out) as part:
        files = {"wav.scp": recordings.values(), "segments": segments, "text": texts, "utt2spk": speakers}
        for name, lines in files.items():
            # Kaldi compares bytes, as `LC_ALL=C sort` does
            write_text(part / name, "".join(f"{line}\n" for line in sorted(lines, key=str.encode)))
    return len(texts)


def _rows(path: Path, form: str) -> Iterator[SingleClipRow]:
    examples = manifest.iterate(path, check_files=True)
    for example in progress.track(examples, "rows read", count_rows(path)):
        row = single_clip(example, form)
        if not row.answer:
            raise DataError(f"row {example.id!r}: has no answer, which is the text of an utterance; {form} needs one")
        yield row


def _write_gzip(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write compressed JSON lines; returns the number of rows."""
    count = 0
    # without a time stamp the same rows give the same bytes
    with atomic_write(path, "wb") as handle, gzip.GzipFile(fileobj=handle, mode="wb", filename="", mtime=0) as packed:
        for row in rows:
            packed.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            count += 1
    return count
