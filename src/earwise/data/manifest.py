"""Manifests: files of rows, read and written without loss.

Every builder writes manifests, and training and evaluation read them. A manifest is JSON lines; `readers/row_files.py`
lists the other kinds of files, `example_rows.py` converts a row to an `Example`, and `formats/` knows the rows of other
programs. Error messages name the file and the row (line number, counted from 1).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from earwise.data.example_rows import from_row as from_row
from earwise.data.example_rows import to_row as to_row
from earwise.data.formats.convert import OWN, recognise
from earwise.data.readers.row_files import read_rows
from earwise.data.readers.text_lines import parse_json
from earwise.errors import DataError
from earwise.files import write_jsonl
from earwise.types import Audio, Example, Part, Text, Turn

Notify = Callable[[str], None]


def read(
    path: Path | str, *, check_files: bool = True, require_audio: bool = True, notify: Notify = lambda _: None
) -> list[Example]:
    """Read a whole manifest.

    Args:
        path: Manifest; relative audio paths start from its folder.
        check_files: Whether to require that every audio file exists.
        require_audio: Whether to refuse rows without a clip that do not declare `text_only`.
        notify: Receives a line about rows of other formats (see `iterate`).
    Raises:
        DataError: for an unreadable or empty manifest, and for the first invalid row (see `iterate`).
    """
    rows = iterate(Path(path), check_files=check_files, require_audio=require_audio, notify=notify)
    examples = list(rows)
    if not examples:
        raise DataError(f"{path}: holds no rows; write at least one")
    return examples


def iterate(
    path: Path, *, check_files: bool = False, require_audio: bool = True, notify: Notify = lambda _: None,
    on_bad: Notify | None = None,
) -> Iterator[Example]:  # fmt: skip
    """Read a manifest row by row; blank lines are skipped.

    Args:
        path: Manifest; relative audio paths start from its folder.
        check_files: Whether to require that every audio file exists.
        require_audio: Whether to refuse rows without a clip that do not declare `text_only`.
        notify: Receives, after the last row, a line that names the formats of other programs and their rows.
        on_bad: Receives the message about each row that cannot be used, which is then left out; None raises it.
    Raises:
        DataError: naming `file:row N`, for invalid JSON, a row of no known format, a missing or mistyped field, a
            misspelt field name, an answer that is none of the choices, equal choices, a repeated id, sound that is
            named and not understood, a row without a clip, or (with `check_files`) a missing audio file.
    """
    locations, existing_files = dict[str, str](), set[str]()
    formats, copies = Counter[str](), Counter[str]()
    for location, row in read_rows(path, on_bad=on_bad):
        try:
            example = from_row(row, root=path.parent, location=location)
            if require_audio:
                check_has_audio(example, location)
            if check_files:
                check_audio_files(example, existing_files, location)
            if example.id in locations and row.get("id") is not None:
                first_row = locations[example.id].removeprefix(f"{path}:")
                raise DataError(f"{location}: id {example.id!r} is taken by {first_row}; ids must differ")
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(str(error))
            continue
        if example.id in locations:  # a row that occurs again, and whose id was made from its content
            copies[example.id] += 1
            example = replace(example, id=f"{example.id}-{copies[example.id] + 1}")
        locations[example.id] = location
        formats[recognise(row) or OWN] += 1
        yield example
    if line := format_line(path, formats):
        notify(line)


def format_line(path: Path, formats: Mapping[str, int]) -> str:
    """A line that names the formats of other programs in a manifest; empty if all rows are of earwise's own format.

    Args:
        path: The manifest.
        formats: Name of a format -> number of rows.
    """
    if set(formats) <= {OWN}:
        return ""
    counts = ", ".join(f"{count} of {name}" for name, count in sorted(formats.items()))
    return f"{path}: {sum(formats.values())} rows, recognised by their keys: {counts}"


def count_formats(path: Path) -> Counter[str]:
    """Name of a row format -> number of rows of a manifest."""
    return Counter(recognise(row) or OWN for _, row in read_rows(path))


def check_has_audio(example: Example, location: str) -> None:
    """Refuse a row that has no clip and does not declare that this is meant.

    Raises:
        DataError: with `location`.
    """
    if not example.text_only and not any(isinstance(part, Audio) for turn in example.turns for part in turn.parts):
        raise DataError(
            f"{location}: no clip; add an audio part, or declare with text_only: true that the row is meant to be text "
            "alone"
        )


def select(rows: Sequence[Example], conditions: Mapping[Any, str | Sequence[str]]) -> list[Example]:
    """Filter rows by their fields.

    Args:
        rows: Examples of a manifest.
        conditions: Field name -> value that the field must have, or several of which it must have one, as a recipe
            gives them under `where`.
    """
    values = {key: {value} if isinstance(value, str) else set(value) for key, value in conditions.items()}
    return [row for row in rows if all(getattr(row, key) in wanted for key, wanted in values.items())]


def write(path: Path, examples: Iterable[Example]) -> int:
    """Write a manifest atomically.

    Args:
        path: File to write; relative audio paths are rewritten to start from its folder.
        examples: Rows of the manifest.
    Returns:
        Number of rows written.
    Raises:
        DataError: if two examples share an id, a key of `meta` is the name of a field, or the file cannot be written.
    """
    return write_jsonl(path, _rows(path, examples))


def from_line(line: str, *, root: Path, location: str, existing_files: set[str] | None = None) -> Example:
    """Parse one line of a manifest.

    Args:
        line: JSON text of the row.
        root: Folder that relative audio paths start from.
        location: Prefix of error messages.
        existing_files: Audio paths that are known to exist. With a set, every audio file of the row must exist, and its
            path is added; with None, files are not checked.
    Raises:
        DataError: for invalid JSON, an invalid row (see `from_row`), or a missing audio file.
    """
    example = from_row(row_of_line(line, location), root=root, location=location)
    if existing_files is not None:
        check_audio_files(example, existing_files, location)
    return example


def row_of_line(line: str, location: str) -> dict[str, Any]:
    """The JSON object of a line; `location` is the prefix of error messages.

    Raises:
        DataError: if the line is not a JSON object.
    """
    row = parse_json(line, location)
    if not isinstance(row, dict):
        raise DataError(
            f"{location}: a JSON {type(row).__name__} where an object is expected; a manifest is one object a line"
        )
    return row


def check_audio_files(example: Example, existing_files: set[str], location: str) -> None:
    """Refuse a row whose audio file is missing; `existing_files` are the paths that are known to exist.

    Raises:
        DataError: with `location`.
    """
    for part in (part for turn in example.turns for part in turn.parts if isinstance(part, Audio)):
        if part.path not in existing_files:
            path = example.root / part.path
            if not path.is_file():
                raise DataError(
                    f"{location}: audio file {path} is missing; paths are relative to the manifest's folder"
                )
            existing_files.add(part.path)


def _rows(path: Path, examples: Iterable[Example]) -> Iterator[dict[str, Any]]:
    ids = set[str]()
    for example in examples:
        if example.id in ids:
            raise DataError(f"{path}: id {example.id!r} occurs twice; ids must differ")
        ids.add(example.id)
        yield to_row(_relative_to(example, path.parent))


def _relative_to(example: Example, root: Path) -> Example:
    """The example with audio paths that start from `root`; absolute paths are not changed."""
    if example.root == root:
        return example

    def relative(part: Part) -> Part:
        if isinstance(part, Text) or Path(part.path).is_absolute():
            return part
        return replace(part, path=Path(os.path.relpath(example.root / part.path, root)).as_posix())

    return replace(
        example, root=root, turns=tuple(Turn(turn.role, tuple(map(relative, turn.parts))) for turn in example.turns)
    )
