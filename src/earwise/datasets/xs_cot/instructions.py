"""Instructions with their responses, in several languages: what the XS-CoT corpus is spoken from.

An `Instruction` always has an English version (the core language of XS-CoT, arXiv:2504.20835), and one in every other
language that is known. Instructions come from phrase files (the bundled one, or a user's), from Alpaca-like English
files, and from files of translations. Translations by a teacher are in `translation.py`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.row_readers import OnSkip
from earwise.errors import ConfigError, DataError

CORE_LANGUAGE = "en"
BUNDLED = Path(__file__).parents[2] / "assets" / "phrases" / "phrases.jsonl"
BUNDLED_SOURCE, BUNDLED_LICENCE = "earwise phrases", "Apache-2.0"


@dataclass(frozen=True, slots=True)
class InstructionPair:
    """An instruction and the response to it, in one language."""

    instruction: str
    """The instruction."""
    response: str
    """The response."""
    reading: str = ""
    """The instruction spelt as it is pronounced, for voices that need that (Japanese in kana)."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction in every language that is known."""

    id: str
    """Id of the instruction."""
    pairs: Mapping[str, InstructionPair]
    """Language code -> the instruction and its response; English is always there."""


@dataclass(frozen=True, slots=True)
class InstructionFiles:
    """The files that instructions are read from, and whose they are."""

    path: Path = BUNDLED
    """Phrase file, or Alpaca-like file; the bundled phrases by default."""
    is_alpaca: bool = False
    """Whether `path` is an English Alpaca-like file."""
    translations: Path | None = None
    """File of translations, see `read_translations`."""
    limit: int | None = None
    """Number of instructions to take, from the beginning of the file; None takes all."""
    source: str | None = None
    """Source of the instructions, for every row; None for the bundled phrases."""
    licence: str | None = None
    """Licence of the texts, for every row; None for the bundled phrases."""

    def __post_init__(self) -> None:
        if self.is_alpaca and self.path == BUNDLED:
            raise ConfigError("--alpaca needs PHRASES, an English instruction file")

    @property
    def attribution(self) -> tuple[str, str]:
        """Source and licence of the texts.

        Raises:
            ConfigError: if they are not given for a file that is not bundled.
        """
        if self.path == BUNDLED:
            return self.source or BUNDLED_SOURCE, self.licence or BUNDLED_LICENCE
        if self.source is None or self.licence is None:
            raise ConfigError(
                f"{self.path}: name the source of the texts with --source and their licence with --licence; every row "
                "carries both"
            )
        return self.source, self.licence


def load_instructions(files: InstructionFiles, on_skip: OnSkip) -> list[Instruction]:
    """Read the instructions of files, with the translations that a file holds.

    Args:
        files: The files.
        on_skip: Called with one line about every row that cannot be used.
    Raises:
        DataError: if a file cannot be read, or no row can be used.
    """
    num_skipped = 0

    def count_skipped(line: str) -> None:
        nonlocal num_skipped
        num_skipped += 1
        on_skip(line)

    read = read_alpaca if files.is_alpaca else read_phrases
    instructions = list(read(files.path, count_skipped))[: files.limit]
    if files.translations is not None:
        instructions = list(with_translations(instructions, read_translations(files.translations, count_skipped)))
    if not instructions:
        raise DataError(f"{files.path}: holds no usable instruction ({num_skipped} left out)")
    return instructions


def read_phrases(path: Path, on_skip: OnSkip) -> Iterator[Instruction]:
    """Read a phrase file: JSON lines of `id` and, by language code, `instruction`, `response` and perhaps `reading`.

    Args:
        path: The file.
        on_skip: Called with one line about every row that cannot be used.
    Raises:
        DataError: if the file cannot be read, or its first row has no English.
    """
    for location, row in row_readers.json_rows(path, ("id", CORE_LANGUAGE), on_skip):
        try:
            pairs = {
                code: _parse_pair(value, f"{location}: {code}")
                for code, value in row.items()
                if isinstance(value, dict)
            }
            if CORE_LANGUAGE not in pairs:
                raise DataError(f"{location}: no {CORE_LANGUAGE!r}; every instruction needs its English")
            yield Instruction(example_builder.string_field(row, "id", location), pairs)
        except DataError as error:
            on_skip(str(error))


def read_alpaca(path: Path, on_skip: OnSkip) -> Iterator[Instruction]:
    """Read an English Alpaca-like file: a JSON list or JSON lines of `instruction`, `input` and `output`.

    Args:
        path: The file.
        on_skip: Called with one line about every row that cannot be used.
    """
    for location, row in row_readers.json_rows(path, ("instruction", "output"), on_skip):
        try:
            instruction = example_builder.text_field(row, "instruction", location)
            response = example_builder.text_field(row, "output", location)
        except DataError as error:
            on_skip(str(error))
            continue
        extra_input = " ".join(str(row.get("input") or "").split())
        instruction = f"{instruction} {extra_input}" if extra_input else instruction
        identifier = f"alpaca-{example_builder.short_hash(instruction, response)}"
        yield Instruction(identifier, {CORE_LANGUAGE: InstructionPair(instruction, response)})


def read_translations(path: Path, on_skip: OnSkip) -> dict[tuple[str, str], InstructionPair]:
    """Read a file of translations: JSON lines of `id`, `language`, `instruction`, `response` and perhaps `reading`.

    Args:
        path: The file.
        on_skip: Called with one line about every row that cannot be used.
    Returns:
        Id of an instruction and language code -> its translation.
    """
    translations = {}
    for location, row in row_readers.json_rows(path, ("id", "language", "instruction", "response"), on_skip):
        try:
            identifier = example_builder.string_field(row, "id", location)
            language = example_builder.string_field(row, "language", location)
            translations[identifier, language] = _parse_pair(row, location)
        except DataError as error:
            on_skip(str(error))
    return translations


def with_translations(
    instructions: Iterable[Instruction], translations: Mapping[tuple[str, str], InstructionPair]
) -> Iterator[Instruction]:
    """Add translations to instructions; a version that an instruction has already is kept.

    Args:
        instructions: The instructions.
        translations: Id of an instruction and language code -> its translation.
    """
    languages = {language for _, language in translations}
    for instruction in instructions:
        translated = {
            language: translations[instruction.id, language]
            for language in languages
            if (instruction.id, language) in translations
        }
        yield replace(instruction, pairs=translated | dict(instruction.pairs))


def _parse_pair(row: Mapping[str, object], location: str) -> InstructionPair:
    """The texts of a row, stripped. Empty ones are allowed here, since the report counts them."""
    texts = {key: row.get(key, "") for key in ("instruction", "response", "reading")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise DataError(f"{location}: {key} is {value!r:.40} where a text is expected")
    return InstructionPair(*(str(value).strip() for value in texts.values()))
