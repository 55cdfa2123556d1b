"""Multilingual-Alpaca-Speech (ASLP-lab): spoken Alpaca instructions in Japanese, German and French, for XS-CoT.

Source: XS-CoT (arXiv:2504.20835); published as `de.list`, `fr.list`, `ja.list`, `ja-30k.list` beside archives of clips.
The form of a row is not documented, so two forms are read and any other is refused with the row named:
1. JSON lines with a path (`audio`, `wav`, `path` ...) and the four texts under one of the names in `TEXTS`; the two
   English ones may be missing (then the row has no chain);
2. lines parted by tabs: maybe an id, the path, then the four texts in the paper's order (transcript, translation,
   English answer, answer), or transcript and answer alone.
The language is the row's own, or the first letters of the file's name.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.row_readers import OnSkip
from earwise.errors import DataError
from earwise.prompts import xs_cot_chain
from earwise.types import Audio, Example, Turn

LICENCE = "as stated with the data set"
PATHS = ("audio", "wav", "path", "audio_path", "wav_path", "file", "filepath")
TEXTS = (
    ("instr_n", "instruction", "question", "prompt", "transcript", "text"),
    ("instr_c", "instruction_en", "en_instruction", "question_en", "en_question"),
    ("resp_c", "response_en", "en_response", "output_en", "answer_en", "en_answer"),
    ("resp_n", "response", "output", "answer"),
)
"""Names of transcript, translation, English answer and answer."""
ENDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example a row, with the four-part chain where the English texts are there."""
    named = re.match(r"([a-z]{2})(?![a-z])", path.stem.lower())
    origin = SourceInfo("Multilingual-Alpaca-Speech", LICENCE, audio_root, split)
    first = True
    for where, line in row_readers.text_lines(path):
        try:
            row = _json(line, where) if line.startswith("{") else _tabs(line, where)
            yield _example(row, origin, named[1] if named else "", where)
        except DataError as error:
            if first:
                raise
            on_skip(str(error))
        first = False


def _json(line: str, where: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    found = {"audio": _first(row, PATHS, where), "id": str(row.get("id") or row.get("key") or "")}
    found["language"] = str(row.get("language") or row.get("lang") or "")
    for name, names in zip(("said", "translated", "english", "answer"), TEXTS, strict=True):
        optional = name in ("translated", "english")
        found[name] = "" if optional and not any(key in row for key in names) else _first(row, names, where)
    return found


def _tabs(line: str, where: str) -> dict[str, str]:
    fields = [field.strip() for field in line.split("\t")]
    at = next((number for number, field in enumerate(fields[:2]) if field.lower().endswith(ENDS)), None)
    if at is None:
        raise DataError(f"{where}: none of the first two fields is a sound file; found {line[:60]!r}")
    texts = fields[at + 1 :]
    if len(texts) not in (2, 4):
        raise DataError(f"{where}: {len(texts)} texts behind the path, 2 or 4 are expected; found {line[:60]!r}")
    said, translated, english, answer = texts if len(texts) == 4 else (texts[0], "", "", texts[1])
    return {
        "audio": fields[at], "id": fields[0] if at else "", "language": "",
        "said": said, "translated": translated, "english": english, "answer": answer,
    }  # fmt: skip


def _first(row: dict[str, object], names: Sequence[str], where: str) -> str:
    for name in names:
        if name in row:
            return example_builder.string_field(row, name, where).strip()
    raise DataError(f"{where}: none of {', '.join(names)} is there, found {', '.join(row)[:80]}")


def _example(row: dict[str, str], origin: SourceInfo, language: str, where: str) -> Example:
    code = row["language"] or language
    if not code:
        raise DataError(f"{where}: no language; name the file by its code, as in de.list")
    for name in ("said", "answer"):
        if not row[name]:
            raise DataError(f"{where}: no {name}")
    has_chain = bool(row["translated"] and row["english"])
    clip = row["audio"]
    return Example(
        id=f"multilingual-alpaca-{code}-{row['id'] or PurePosixPath(clip).stem}",
        turns=(Turn("user", (Audio(example_builder.find_audio(origin.root, (clip, f"{code}/{clip}"))),)),),
        answer=(row["answer"],),
        reasoning=xs_cot_chain(code, row["said"], row["translated"], row["english"]) if has_chain else None,
        task="xs-cot",
        category="speech",
        source=origin.source,
        licence=origin.licence,
        group=f"alpaca:{example_builder.short_hash(row['translated'] or row['said'])}",
        split=origin.split,
        language=code,
        root=origin.root,
        meta={"instr_n": row["said"]} | ({"instr_c": row["translated"], "resp_c": row["english"]} if has_chain else {}),
    )
