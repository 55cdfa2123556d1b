"""PAQA: multiple-choice questions with chains that say what is heard before they reason, as JSON lines.

Source: HyPeR (arXiv:2604.14806), released rows JOY-SWang/HyPeR@f7c95ac. Fields `instruction` (`<audio>`, the question
and its options as `(a) ... (b) ...`), `output` (the chain in upper-case tags, then the answer by its letter), `audios`
(one path) and `id`. The chain becomes the reasoning with lower-case tags, as the style `structured` writes them. Rows
whose answer or options cannot be read are left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from earwise.data.sources.example_builder import SourceInfo, build_example, convert_rows, find_audio, string_field
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "not stated"
FIELDS = ("instruction", "output", "audios")
_OPTION = re.compile(r"\(([a-z])\)\s*(.+?)\s*(?=\([a-z]\)|$)", re.DOTALL)
_THINK = re.compile(r"<THINK>(.*?)</THINK>", re.DOTALL)
_FINAL = re.compile(r"<(FINAL_ANSWER|RESPONSE)>(.*?)</\1>", re.DOTALL)
_LETTER = re.compile(r"\(?\b([A-Da-d])\b\)?[\s.]*$")
_TAG = re.compile(r"</?[A-Z_]+>")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per question, with its options in their published order."""
    info = SourceInfo("PAQA", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        instruction = string_field(row, "instruction", location).replace("<audio>", "").strip()
        options = [(letter, " ".join(text.split()).rstrip(".")) for letter, text in _OPTION.findall(instruction)]
        choices = tuple(text for _, text in options)
        letters = [letter for letter, _ in options]
        if len(choices) < 2 or len(set(choices)) < len(choices) or letters != sorted(set(letters)):
            raise DataError(f"{location}: no options (a), (b) ... can be read in {instruction[:60]!r}")
        output = string_field(row, "output", location)
        answer = _answer(output, dict(options))
        clips = row["audios"]
        if answer is None or not (isinstance(clips, list) and len(clips) == 1 and isinstance(clips[0], str)):
            raise DataError(f"{location}: {'no answer' if answer is None else 'not one clip'} can be read")
        chain = _THINK.search(output)
        clip = clips[0].replace("\\", "/")
        name = PurePosixPath(clip).name
        yield build_example(
            info,
            f"paqa-{path.stem}-{row.get('id', location.rpartition(' ')[2])}",
            [find_audio(audio_root, (clip, name))],
            " ".join(_OPTION.sub("", instruction).split()),
            [answer],
            choices=choices,
            reasoning=None if chain is None else _TAG.sub(lambda tag: tag[0].lower(), chain[1]).strip(),
            task="multiple_choice",
            category="speech",
            group=f"paqa:{PurePosixPath(name).stem}",
        )

    yield from convert_rows(json_rows(path, FIELDS, on_skip), convert, on_skip)


def _answer(output: str, options: dict[str, str]) -> str | None:
    """Text of the option that a reply names last, by its letter; None if it names none."""
    blocks = {name: text.strip() for name, text in _FINAL.findall(output)}
    letter = _LETTER.search(blocks.get("FINAL_ANSWER") or blocks.get("RESPONSE") or "")
    return options.get(letter[1].lower()) if letter else None
