"""Instructions and answers in several languages: read, translated, joined. What `build/xs_cot.py` speaks.

An `Item` is one instruction with its answer, always in English (the core language), and in as many others as are
known. They come from phrase files (ours, bundled, or a user's), from Alpaca-like English sets, and from translations:
of a teacher (`build/llm.py`) or a given file. Every line that cannot be used is handed to `bad`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, StringConstraints

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.row_readers import OnSkip
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.teacher import TeacherRequest, Teacher
from earwise.engine.remote.openai_http import estimate_tokens
from earwise.errors import DataError

CORE = "en"
BUNDLED = Path(__file__).parents[2] / "assets" / "phrases" / "phrases.jsonl"
LANGUAGES = {
    "ja": "Japanese", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "zh": "Chinese", "ko": "Korean", "ru": "Russian", "pl": "Polish", "tr": "Turkish",
}  # fmt: skip
"""Names for prompts; a code that is not here is given to the teacher as it is."""
Said = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


@dataclass(frozen=True, slots=True)
class Words:
    """An instruction and its answer in one language."""

    instruction: str
    response: str
    reading: str = ""
    """The instruction spelt as it is pronounced, where a voice needs that (Japanese in kana)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One instruction in all languages that are known."""

    id: str
    words: Mapping[str, Words]


class Translation(BaseModel):
    """What a teacher gives back."""

    instruction: Said
    response: Said


def read(path: Path, bad: OnSkip) -> Iterator[Item]:
    """Items of a phrase file: JSON lines of `id` and, per language code, `instruction`, `response`, maybe `reading`.

    Raises:
        DataError: if the file cannot be read, or its first row has no English.
    """
    for where, row in row_readers.json_rows(path, ("id", CORE), bad):
        try:
            found = {code: _words(value, f"{where}: {code}") for code, value in row.items() if isinstance(value, dict)}
            if CORE not in found:
                raise DataError(f"{where}: no {CORE!r}; every item needs its English")
            yield Item(example_builder.string_field(row, "id", where), found)
        except DataError as error:
            bad(str(error))


def read_alpaca(path: Path, bad: OnSkip) -> Iterator[Item]:
    """English items of an Alpaca-like file: a JSON list or JSON lines of `instruction`, `input`, `output`."""
    for where, row in row_readers.json_rows(path, ("instruction", "output"), bad):
        try:
            instruction, response = example_builder.text_field(row, "instruction", where), example_builder.text_field(row, "output", where)
        except DataError as error:
            bad(str(error))
            continue
        more = " ".join(str(row.get("input") or "").split())
        instruction = f"{instruction} {more}" if more else instruction
        yield Item(f"alpaca-{example_builder.short_hash(instruction, response)}", {CORE: Words(instruction, response)})


def read_translations(path: Path, bad: OnSkip) -> dict[tuple[str, str], Words]:
    """Translations of a file: JSON lines of `id`, `language`, `instruction`, `response`, maybe `reading`."""
    found = {}
    for where, row in row_readers.json_rows(path, ("id", "language", "instruction", "response"), bad):
        try:
            key = example_builder.string_field(row, "id", where), example_builder.string_field(row, "language", where)
            found[key] = _words(row, where)
        except DataError as error:
            bad(str(error))
    return found


def joined(items: Iterable[Item], translations: Mapping[tuple[str, str], Words]) -> Iterator[Item]:
    """Items with the translations that there are; what an item says itself wins."""
    codes = {code for _, code in translations}
    for item in items:
        more = {code: translations[item.id, code] for code in codes if (item.id, code) in translations}
        yield replace(item, words=more | dict(item.words))


def requests(items: Iterable[Item], languages: Sequence[str]) -> Iterator[tuple[Item, str, TeacherRequest]]:
    """What a teacher must be asked: each item in each language that it lacks."""
    for item in items:
        core = item.words[CORE]
        for code in languages:
            if code in item.words:
                continue
            name = LANGUAGES.get(code, code)
            ask = (
                f"Translate into {name}. Both texts will be spoken: write natural, plain {name} without digits, "
                'lists or markup. Answer as JSON with the fields "instruction" and "response".\n'
            )
            given = json.dumps({"instruction": core.instruction, "response": core.response}, ensure_ascii=False)
            message = {"role": "user", "content": ask + given}
            tokens = 2 * estimate_tokens(given)
            request = TeacherRequest(
                f"{item.id}:{code}", "translation", (message,), Translation, language=code, expected_tokens=tokens
            )
            yield item, code, request


def translated(items: Sequence[Item], languages: Sequence[str], teacher: Teacher, folder: Path, bad: OnSkip) -> list[Item]:
    """Items with the answers of a teacher that `llm.run` has asked; what has no usable answer is handed to `bad`."""
    asked = {request.id: (item, code) for item, code, request in requests(items, languages)}
    found: dict[tuple[str, str], Words] = {}
    every = (request for _, _, request in requests(items, languages))
    for request, row in request_runner.read_answers(every, teacher, folder):
        item, code = asked[request.id]
        if row is not None and row["status"] == "ok":
            found[item.id, code] = Words(row["value"]["instruction"], row["value"]["response"])
        else:
            bad(f"{item.id}, {code}: no translation ({'not asked' if row is None else row['status']})")
    return list(joined(items, found))


def _words(row: Mapping[str, object], where: str) -> Words:
    """Texts as they stand, outer blanks aside. An empty one stays: the builder counts it."""
    texts = {key: row.get(key, "") for key in ("instruction", "response", "reading")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {key} is {value!r:.40} where a text is expected")
    return Words(*(str(value).strip() for value in texts.values()))
