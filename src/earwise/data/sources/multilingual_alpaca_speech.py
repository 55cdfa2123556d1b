"""Multilingual-Alpaca-Speech (ASLP-lab): spoken Alpaca instructions in Japanese, German and French, for XS-CoT.

Source: XS-CoT (arXiv:2504.20835); published as `de.list`, `fr.list`, `ja.list`, `ja-30k.list` with archives of clips.
The format of a row is not documented. Two formats are read; any other raises an error that names the row:
1. JSON lines with a path (`audio`, `wav`, `path` ...) and the four texts under any of the names in `TEXT_FIELDS`; the
two
   English texts may be missing (then the Example has no reasoning);
2. tab-separated lines: optionally an id, the path, then the four texts in the paper's order (transcript, translation,
   English answer, answer), or only transcript and answer.
The language is the one that the row states, else the first two letters of the file name.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from earwise.data.sources.example_builder import SourceInfo, find_audio, short_hash, string_field
from earwise.data.sources.row_readers import OnSkip, text_lines
from earwise.errors import DataError
from earwise.prompts import xs_cot_chain
from earwise.types import Audio, Example, Turn

LICENCE = "as stated with the data set"
PATH_FIELDS = ("audio", "wav", "path", "audio_path", "wav_path", "file", "filepath")
TEXT_FIELDS = (
    ("instr_n", "instruction", "question", "prompt", "transcript", "text"),
    ("instr_c", "instruction_en", "en_instruction", "question_en", "en_question"),
    ("resp_c", "response_en", "en_response", "output_en", "answer_en", "en_answer"),
    ("resp_n", "response", "output", "answer"),
)
"""Names under which a row may hold its transcript, translation, English answer and answer."""
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per row, with the four-part reasoning if the row has the English texts."""
    match = re.match(r"([a-z]{2})(?![a-z])", path.stem.lower())
    info = SourceInfo("Multilingual-Alpaca-Speech", LICENCE, audio_root, split)
    is_first = True
    for location, line in text_lines(path):
        try:
            row = _parse_json(line, location) if line.startswith("{") else _parse_tabs(line, location)
            yield _example(row, info, match[1] if match else "", location)
        except DataError as error:
            if is_first:
                raise
            on_skip(str(error))
        is_first = False


def _parse_json(line: str, location: str) -> dict[str, str]:
    """Fields of a row in JSON format."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{location}: not JSON ({error})") from error
    parsed = {"audio": _first(row, PATH_FIELDS, location), "id": str(row.get("id") or row.get("key") or "")}
    parsed["language"] = str(row.get("language") or row.get("lang") or "")
    for name, names in zip(("transcript", "translation", "english_answer", "answer"), TEXT_FIELDS, strict=True):
        optional = name in ("translation", "english_answer")
        parsed[name] = "" if optional and not any(key in row for key in names) else _first(row, names, location)
    return parsed


def _parse_tabs(line: str, location: str) -> dict[str, str]:
    """Fields of a row in tab-separated format."""
    fields = [field.strip() for field in line.split("\t")]
    path_field = next(
        (number for number, field in enumerate(fields[:2]) if field.lower().endswith(AUDIO_SUFFIXES)), None
    )
    if path_field is None:
        raise DataError(f"{location}: neither of the first two fields is an audio file; found {line[:60]!r}")
    texts = fields[path_field + 1 :]
    if len(texts) not in (2, 4):
        raise DataError(f"{location}: {len(texts)} texts after the path, 2 or 4 are expected; found {line[:60]!r}")
    transcript, translation, english_answer, answer = texts if len(texts) == 4 else (texts[0], "", "", texts[1])
    return {
        "audio": fields[path_field], "id": fields[0] if path_field else "", "language": "",
        "transcript": transcript, "translation": translation, "english_answer": english_answer, "answer": answer,
    }  # fmt: skip


def _first(row: dict[str, object], names: Sequence[str], location: str) -> str:
    """Value of the first of `names` that is a field of the row."""
    for name in names:
        if name in row:
            return string_field(row, name, location).strip()
    raise DataError(f"{location}: none of the fields {', '.join(names)} is present, found {', '.join(row)[:80]}")


def _example(row: dict[str, str], info: SourceInfo, language: str, location: str) -> Example:
    code = row["language"] or language
    if not code:
        raise DataError(f"{location}: no language; name the file by its code, as in de.list")
    for name in ("transcript", "answer"):
        if not row[name]:
            raise DataError(f"{location}: no {name}")
    has_chain = bool(row["translation"] and row["english_answer"])
    clip = row["audio"]
    return Example(
        id=f"multilingual-alpaca-{code}-{row['id'] or PurePosixPath(clip).stem}",
        turns=(Turn("user", (Audio(find_audio(info.root, (clip, f"{code}/{clip}"))),)),),
        answer=(row["answer"],),
        reasoning=xs_cot_chain(code, row["transcript"], row["translation"], row["english_answer"])
        if has_chain
        else None,
        task="xs-cot",
        category="speech",
        source=info.source,
        licence=info.licence,
        group=f"alpaca:{short_hash(row['translation'] or row['transcript'])}",
        split=info.split,
        language=code,
        root=info.root,
        meta={"instr_n": row["transcript"]}
        | ({"instr_c": row["translation"], "resp_c": row["english_answer"]} if has_chain else {}),
    )
