"""Writes a manifest of questions about words from WordNet's data files: the whole of `earwise build reading`."""

from pathlib import Path

from earwise.data import manifest
from earwise.datasets.reading.reading_questions import ReadingOptions, build_reading_questions
from earwise.datasets.reading.wordnet import read_nouns
from earwise.errors import DataError


def build_reading(wordnet: Path, out: Path, options: ReadingOptions | None = None) -> int:
    """Write the questions.

    Args:
        wordnet: Folder of WordNet's data files.
        out: Manifest to write.
        options: Which questions to write; None for the defaults.
    Returns:
        Number of questions. It can be a little below the limit, since some nouns give none.
    Raises:
        DataError: if the files are missing, are not in the format, or hold too few nouns.
    """
    examples = list(build_reading_questions(read_nouns(wordnet), options))
    if not examples:
        raise DataError(f"{wordnet}: has too few nouns to ask about; give the whole of WordNet")
    return manifest.write(out, examples)
