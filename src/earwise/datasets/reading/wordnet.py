"""Reads the nouns of WordNet from its data files: words of one meaning, its definition, and what it is a kind of.

The formats are those of the manual pages wndb(5WN), cntlist(5WN) and senseidx(5WN). The files come with the Debian
package `wordnet-base` (/usr/share/wordnet) and with WordNet itself; nothing of them is part of this package.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from earwise.errors import DataError

NOUNS, COUNTS = "data.noun", "cntlist.rev"
NOUN = 1
"""Number of the nouns in a sense key."""
HYPERNYMS = ("@", "@i")
"""Symbols of the pointers to what a synset is a kind of, or an instance of."""


@dataclass(frozen=True, slots=True)
class Synset:
    """A set of nouns with the same meaning.

    Attributes:
        offset: Its identifier, the byte offset in the file.
        file_number: Number of the lexicographer's file, its topic: 5 for animals (lexnames(5WN)).
        words: The words, with spaces.
        definition: First definition of the gloss, without remarks in parentheses and examples.
        hypernyms: Offsets of the synsets that it is a kind of.
        count: How often the most frequent of its words has this meaning in the texts that WordNet was counted on.
    """

    offset: str
    file_number: int
    words: tuple[str, ...]
    definition: str
    hypernyms: tuple[str, ...]
    count: int


def read_nouns(folder: Path) -> dict[str, Synset]:
    """Offset -> synset, for all nouns.

    Args:
        folder: Folder that holds `data.noun` and `cntlist.rev`.
    Raises:
        DataError: if a file is missing or is not in the format.
    """
    counts = dict(_parse_counts(_lines(folder, COUNTS), folder / COUNTS))
    nouns = {}
    for number, line in _lines(folder, NOUNS):
        if line.startswith("  "):
            continue  # the licence, in front of the synsets
        try:
            synset = parse_synset(line, counts)
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{folder / NOUNS}:line {number}: {line[:40]!r}... is no synset of WordNet; see wndb(5WN)"
            ) from error
        nouns[synset.offset] = synset
    return nouns


def parse_synset(line: str, counts: Mapping[tuple[str, int, int], int]) -> Synset:
    """Parse a line of `data.noun`.

    Args:
        line: `offset lex_filenum ss_type w_cnt word lex_id ... p_cnt ptr ... | gloss`.
        counts: Word in lower case, number of the lexicographer's file, and lexical id -> number of occurrences.
    Raises:
        ValueError, IndexError: if the line is not in the format.

    >>> line = "02084071 05 n 02 dog 0 domestic_dog 0 001 @ 02083346 n 0000 | a tame wolf (barks); \\"the dog barked\\""
    >>> synset = parse_synset(line, {("dog", 5, 0): 42})
    >>> synset.words, synset.definition, synset.hypernyms, synset.count
    (('dog', 'domestic dog'), 'a tame wolf', ('02083346',), 42)
    """
    data, separator, gloss = line.partition("|")
    fields = data.split()
    file_number, num_words = int(fields[1]), int(fields[3], 16)
    words = fields[4 : 4 + 2 * num_words : 2]
    lexical_ids = [int(lexical_id, 16) for lexical_id in fields[5 : 5 + 2 * num_words : 2]]
    num_pointers, pointers = int(fields[4 + 2 * num_words]), fields[5 + 2 * num_words :]
    if not separator or fields[2] != "n" or len(pointers) != 4 * num_pointers:
        raise ValueError(line)
    keys = [(word.lower(), file_number, lexical_id) for word, lexical_id in zip(words, lexical_ids, strict=True)]
    definition = re.sub(r"\([^()]*\)", "", gloss).partition(";")[0]
    return Synset(
        fields[0],
        file_number,
        tuple(word.replace("_", " ") for word in words),
        " ".join(definition.split()),
        tuple(offset for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True) if symbol in HYPERNYMS),
        max(counts.get(key, 0) for key in keys),
    )


def ancestors(synset: Synset, nouns: Mapping[str, Synset]) -> set[str]:
    """Offsets of all synsets that a synset is a kind of, at any distance."""
    known: set[str] = set()
    waiting = list(synset.hypernyms)
    while waiting:
        offset = waiting.pop()
        if offset in nouns and offset not in known:
            known.add(offset)
            waiting += nouns[offset].hypernyms
    return known


def _parse_counts(lines: Iterable[tuple[int, str]], path: Path) -> Iterator[tuple[tuple[str, int, int], int]]:
    """Word, number of the lexicographer's file and lexical id of each noun -> number of occurrences.

    Args:
        lines: `sense_key sense_number tag_cnt`; the key is `lemma%ss_type:lex_filenum:lex_id:head_word:head_id`.
        path: The file, for error messages.
    Raises:
        DataError: if a line is not in the format.
    """
    for number, line in lines:
        try:
            key, _, count = line.split()
            word, _, place = key.partition("%")
            kind, file_number, lexical_id = (int(part) for part in place.split(":")[:3])
            occurrences = int(count)
        except ValueError as error:
            raise DataError(f"{path}:line {number}: {line[:40]!r} is no count of WordNet; see cntlist(5WN)") from error
        if kind == NOUN:
            yield (word, file_number, lexical_id), occurrences


def _lines(folder: Path, name: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a file."""
    try:
        text = (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{folder}: has no readable {name}; give the folder of WordNet's data files (Debian: install wordnet-base, "
            "give /usr/share/wordnet)"
        ) from error
    return enumerate((line for line in text.splitlines() if line.strip()), 1)
