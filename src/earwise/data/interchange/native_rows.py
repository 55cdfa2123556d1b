"""Turns rows of other programs' tables into rows of a manifest: which column is what, and how options are written.

After the readers in this folder. Columns are recognised by their usual names (`COLUMN_NAMES`), whatever their case and
punctuation, unless the caller names them. A row without a question gets the caller's prompt, or, if its answer is a
transcript by name, a question for the words; anything else is refused with the columns that there are.
"""

import math
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from earwise.data.interchange.choice_cells import resolve_answer, split_choices, strip_letters
from earwise.data.interchange.foreign_row import Clip, ForeignRow
from earwise.data.sources.example_builder import pick_by_hash
from earwise.data.sources.question_templates import TRANSCRIBE
from earwise.errors import DataError

COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "uid", "uuid", "question_id", "utt_id", "utterance_id", "key"),
    "audio": (
        "audio", "path", "audio_path", "file_name", "filename", "file", "audio_file", "audio_filepath", "filepath",
        "file_path", "wav", "wav_path", "clip", "sound", "context", "audio_id",
    ),
    "question": ("question", "instruction", "prompt", "query", "question_text", "context"),
    "choices": ("choices", "options", "multi_choice", "candidates", "answer_choices"),
    "answer": ("answer", "answers", "correct_answer", "correct", "correct_option", "solution", "gold", "label"),
    "transcript": ("transcript", "transcription", "sentence", "normalized_text"),
    "reasoning": ("reasoning", "rationale", "chain_of_thought", "thinking"),
    "task": ("task",),
    "category": ("category", "modality"),
    "difficulty": ("difficulty",),
    "source": ("source", "dataset"),
    "licence": ("licence", "license"),
    "group": ("group", "speaker_id", "speaker", "client_id", "recording_id"),
    "split": ("split",),
    "language": ("language",),
    "start": ("start", "start_s", "offset", "begin"),
    "end": ("end", "end_s", "stop"),
    "duration": ("duration", "duration_s"),
}  # fmt: skip
"""Field of a manifest row -> names of the column that holds it, the likeliest first."""
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
TEXT_FIELDS = ("reasoning", "task", "category", "difficulty", "source", "licence", "group", "language")
_OPTION_COLUMN = re.compile(r"(?:option|choice|answer|opt)?_?([a-j]|[1-9])")

PathText = Callable[[Path], str]
"""Writes the path of a clip as the manifest shall name it."""


def native_row(
    row: ForeignRow, identifier: str, *, columns: Mapping[str, str], prompt: str | None, path_text: PathText
) -> dict[str, Any]:
    """The manifest row that a row of a table is.

    Args:
        row: The foreign row.
        identifier: Id of a row that has none.
        columns: Field -> column, where the caller names it.
        prompt: Question of rows that have none.
        path_text: Writes the path of a clip.
    Raises:
        DataError: if no column holds audio or a question, or the answer is none of the options.
    """
    values = {name: value for name, value in row.values.items() if not _is_missing(value)}
    columns_of = _assign_columns(values, columns)
    taken = {part for column in columns_of.values() for part in _column_names(column, values)}
    field = {name: _lookup(values, column) for name, column in columns_of.items()}
    clips = _clips(field, row, path_text)
    choices, option_columns = _choices(values, field, taken, row.location)
    answer = _answer(field, choices, row.location)
    name = str(field["id"]) if field.get("id") is not None else identifier
    question, is_transcript = _question(field, prompt, name, row)
    content = [*clips, {"type": "text", "text": question}]
    native: dict[str, Any] = {"id": name, "messages": [{"role": "user", "content": content}]}
    native |= {"choices": list(choices), "answer": answer}
    native |= {key: str(field[key]) for key in TEXT_FIELDS if key in field}
    if is_transcript:
        native.setdefault("task", "transcribe")
        native.setdefault("category", "speech")
    elif choices:
        native.setdefault("task", "multiple_choice")
    if "split" in field:
        native["split"] = _split(str(field["split"]), row.location)
    other = {
        column: _plain(value, column, row.location)
        for column, value in values.items()
        if column not in taken | option_columns and column.partition(".")[0] not in native
    }
    return native | other


def _assign_columns(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Field -> column of this row: what the caller named, then what the usual names say; no column is used twice."""
    assigned: dict[str, str] = {}
    for name, column in columns.items():
        if _lookup(values, column) is not None:
            assigned[name] = column
    taken = set(assigned.values())
    normal = {_normalise(column): column for column in reversed(list(values))}
    for name, usual_names in COLUMN_NAMES.items():
        if name in columns:
            continue
        for usual_name in usual_names:
            column = normal.get(usual_name, "")
            if column and column not in taken and _fits(name, values[column]):
                assigned[name] = column
                taken.add(column)
                break
    if "audio" not in columns and not isinstance(values.get(assigned.get("audio", ""), None), Clip | list):
        decoded = next((column for column, value in values.items() if _is_audio(value)), None)
        if decoded is not None:
            assigned = {name: column for name, column in assigned.items() if column != decoded}
            assigned["audio"] = decoded
    return assigned


def _fits(name: str, value: Any) -> bool:
    """Whether a column's value can be what the field needs: `context` is audio in some tables, a question in others."""
    if name == "audio":
        return _is_audio(value) or isinstance(value, str)
    return not _is_audio(value)


def _is_audio(value: Any) -> bool:
    return isinstance(value, Clip) or (isinstance(value, list) and bool(value) and isinstance(value[0], Clip))


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _lookup(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column; dots lead into nested objects, commas name several columns with one clip each."""
    if column in values:
        return values[column]
    names = _column_names(column, values)
    if len(names) > 1:
        return [value for name in names if (value := _lookup(values, name)) is not None]
    name, dot, rest = column.partition(".")
    inner = values.get(name)
    return _lookup(inner, rest) if dot and isinstance(inner, Mapping) else None


def _column_names(column: str, values: Mapping[str, Any]) -> list[str]:
    """The columns that a caller's name stands for: itself, or several that are separated by commas."""
    return [column] if column in values else [part.strip() for part in column.split(",")]


def _normalise(column: str) -> str:
    """Name of a column without case, spaces and punctuation.

    >>> _normalise(" Question Text"), _normalise("Option-A")
    ('question_text', 'option_a')
    """
    return re.sub(r"[\W_]+", "_", column.strip().lower()).strip("_")


def _clips(field: Mapping[str, Any], row: ForeignRow, path_text: PathText) -> list[dict[str, Any]]:
    """The audio parts of a row."""
    audio = field.get("audio")
    if audio is None:
        raise DataError(
            f"{row.location}: no column holds audio, there are {', '.join(row.values)[:120]}; name it with --column "
            "audio=NAME"
        )
    values = audio if isinstance(audio, list) else [audio]
    parts = []
    for value in values:
        clip = value if isinstance(value, Clip) else Clip(row.root / Path(str(value).strip()).expanduser())
        part: dict[str, Any] = {"type": "audio", "audio": path_text(clip.path)}
        start, end = _segment(field, row.location) if not isinstance(value, Clip) else (clip.start, clip.end)
        part |= {"start": start} if start else {}
        part |= {"end": end} if end is not None else {}
        parts.append(part)
    return parts


def _segment(field: Mapping[str, Any], location: str) -> tuple[float | None, float | None]:
    """Start and end in seconds that a row's columns give; a duration without a start is that of the file."""
    start, end, duration = (_seconds(field.get(name), name, location) for name in ("start", "end", "duration"))
    if end is None and start is not None and duration is not None:
        end = start + duration
    return start, end


def _seconds(value: Any, name: str, location: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(str(value).replace(",", "."))
    except ValueError:
        raise DataError(f"{location}: {name} is {value!r:.40}; write seconds as a number") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise DataError(f"{location}: {name} is {value!r:.40}; write seconds from the beginning of the file")
    return seconds


def _choices(
    values: Mapping[str, Any], field: Mapping[str, Any], taken: set[str], location: str
) -> tuple[tuple[str, ...], set[str]]:
    """The options of a row, from one column or from columns A, B, C ..., and the names of the latter columns."""
    if "choices" in field:
        return split_choices(field["choices"], location), set()
    lettered: dict[str, str] = {}
    for column in values:
        match = _OPTION_COLUMN.fullmatch(_normalise(column))
        if match and column not in taken:
            letter = string.ascii_lowercase[int(match[1]) - 1] if match[1].isdecimal() else match[1]
            lettered.setdefault(letter, column)
    letters = sorted(lettered)
    if len(letters) < 2 or "".join(letters) != string.ascii_lowercase[: len(letters)]:
        return (), set()
    columns = [lettered[letter] for letter in letters]
    return strip_letters([str(values[column]).strip() for column in columns]), set(columns)


def _answer(field: Mapping[str, Any], choices: tuple[str, ...], location: str) -> list[str]:
    """The accepted answers of a row."""
    value = field.get("answer", field.get("transcript"))
    if value is None:
        return []
    answers = [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
    return [resolve_answer(answer, choices, location) for answer in answers] if choices else answers


def _question(field: Mapping[str, Any], prompt: str | None, name: str, row: ForeignRow) -> tuple[str, bool]:
    """The question of a row, and whether it asks for the words that are spoken."""
    is_transcript = "transcript" in field and "answer" not in field
    if "question" in field:
        return str(field["question"]), False
    if prompt is not None or is_transcript:
        return prompt or pick_by_hash(TRANSCRIBE, name), is_transcript
    raise DataError(
        f"{row.location}: no column holds the question, there are {', '.join(row.values)[:120]}; name it with --column "
        "question=NAME, or give all rows one with --prompt TEXT"
    )


def _split(value: str, location: str) -> str:
    split = SPLITS.get(value.strip().lower())
    if split is None:
        raise DataError(f"{location}: split is {value!r:.40}, none of train, val, test; rename it")
    return split


def _plain(value: Any, column: str, location: str) -> Any:
    """A value that JSON can hold, for the fields of a row that have no meaning here."""
    if isinstance(value, Clip):
        raise DataError(
            f"{location}: column {column!r} holds audio too; name the clip that is meant: --column audio=NAME"
        )
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, column, location) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, column, location) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
