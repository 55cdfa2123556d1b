"""AudioSkills-XL and AF-Chat, Audio Flamingo 3's training sets: conversations about one clip or several, as JSON lists.

Source: Goel et al. 2025 (arXiv:2507.08128), published without audio, one file a source (`CountingQA_MCQ.json`,
`AudioSet.json`, ...); Samsone trains on it (papers/mellow.md, section 7). An item holds `sound` (a file's name, or in
AF-Chat a list of them) and `conversations`, turns of `from` (human, gpt) and `value`; `<sound>` stands for the clip,
`<sound-2>` for the second of the list. Options are written into the question, `(A) .. (B) ..`, and taken apart.
Every answer of a conversation is an Example with all that was said before it. A clip stands where it is first
mentioned, later mentions name it; one that is never mentioned stands before the first question.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from earwise.data.sources import clotho, example_builder, row_readers
from earwise.data.sources.clothoaqa import YES_NO
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.reasonaqa import key_of, options_of
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

LICENCE = "NVIDIA OneWay Noncommercial (questions); audio by its origin"
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant")
VIDEOS = ("audioset", "vgg", "musiccaps", "youtube")
"""Parts whose clips are named by the 11 letters of a video."""
MUSIC = ("music", "msd", "gtzan", "nsynth", "fma", "medley", "magna", "mtg")
SPEECH = ("meld", "iemocap", "voxceleb", "librispeech", "switchboard", "fisher", "mosei", "speech")
_MARK = re.compile(r"<(?:sound|audio)(?:-(\d+))?>")
_ASKS_TO_CHOOSE = re.compile(r"\s*\b(?:choose|select|pick)\b[^.?!]*\boptions?\b[^.?!]*$", re.IGNORECASE)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example an answer; the part, told by the file's name, decides category and group."""
    origin = SourceInfo(f"AudioSkills-XL {path.stem}", LICENCE, audio_root, split)

    for number, (where, row) in enumerate(row_readers.json_rows(path, ("sound", "conversations"), on_skip)):

        def make(where: str, row: Row, number: int = number) -> Iterator[Example]:
            yield from _examples(row, where, f"audioskills-{path.stem}-{number}", path.stem, origin)

        yield from example_builder.convert_rows([(where, row)], make, on_skip)


def _examples(row: Row, where: str, name: str, part: str, origin: SourceInfo) -> Iterator[Example]:
    clips, exchanges = _clips(row, where), _exchanges(row, where)
    files = [_locate(origin.root, part, clip) for clip in clips]
    marked = {_number(mark, where, clips) for asked, _ in exchanges for mark in _MARK.finditer(asked)}
    first = [number for number in range(len(clips)) if number not in marked]
    heard = set(first)
    before: tuple[Turn, ...] = ()
    for number, (asked, said) in enumerate(exchanges, 1):
        question, choices = options_of(asked)
        wanted = _ASKS_TO_CHOOSE.sub("", question).strip() if choices else asked
        parts = (Audio(files[each]) for each in (first if number == 1 else ()))
        turn = Turn("user", (*parts, *_parts(wanted, where, clips, files, heard)))
        answer = choices[key_of(said, choices, where)] if choices else said
        is_yes_no = not choices and answer.lower().rstrip(".") in YES_NO
        if is_yes_no:
            answer, choices = answer.lower().rstrip("."), YES_NO
        yield Example(
            id=name if len(exchanges) == 1 else f"{name}-{number}",
            turns=(*before, turn),
            answer=(answer,),
            choices=choices,
            task="yes_no" if is_yes_no else "multiple_choice" if choices else "open",
            category=_category(part),
            source=origin.source,
            licence=origin.licence,
            group=_group(part, clips[0]),
            split=origin.split,
            root=origin.root,
            meta={"part": part},
        )
        before = (*before, turn, Turn("assistant", (Text(answer),)))


def _clips(row: Row, where: str) -> list[str]:
    listed = row["sound"] if isinstance(row["sound"], list) else [row["sound"]]
    if not listed or not all(isinstance(clip, str) and clip.strip() for clip in listed):
        raise DataError(f"{where}: sound is {row['sound']!r:.60} where a file or a list of files is expected")
    return [clip.replace("\\", "/") for clip in listed]


def _exchanges(row: Row, where: str) -> list[tuple[str, str]]:
    """What was asked and what was answered, in turns."""
    turns: Any = row["conversations"]
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise DataError(f"{where}: conversations is no list of questions and answers in turns")
    said = []
    for number, turn in enumerate(turns):
        roles = MODEL if number % 2 else HUMAN
        if not isinstance(turn, dict) or turn.get("from") not in roles:
            raise DataError(f"{where}: turn {number + 1} is not from {roles[0]}")
        said.append(
            example_builder.string_field(turn, "value", where).strip()
            if number % 2
            else example_builder.text_field(turn, "value", where)
        )
    return list(zip(said[::2], said[1::2], strict=True))


def _parts(
    asked: str, where: str, clips: Sequence[str], files: Sequence[str], heard: set[int]
) -> Iterator[Audio | Text]:
    """A question with clips in place of their first mention; `heard` collects them."""
    words, at = "", 0
    for mark in _MARK.finditer(asked):
        number = _number(mark, where, clips)
        words, at = words + asked[at : mark.start()], mark.end()
        if number in heard:
            words += f"sound {number + 1}"
            continue
        heard.add(number)
        if words.strip():
            yield Text(words.strip())
        yield Audio(files[number])
        words = ""
    words = (words + asked[at:]).strip()
    if words:
        yield Text(words)


def _number(mark: re.Match[str], where: str, clips: Sequence[str]) -> int:
    number = int(mark[1] or 1) - 1
    if not 0 <= number < len(clips):
        raise DataError(f"{where}: {mark[0]} where there are {len(clips)} sounds")
    return number


def _locate(audio_root: Path, part: str, clip: str) -> str:
    name = PurePosixPath(clip).name
    return example_builder.find_audio(audio_root, (clip, f"{part}/{clip}", name, f"{part}/{name}"))


def _group(part: str, clip: str) -> str:
    name, lowered = PurePosixPath(clip).name, part.lower()
    stem = PurePosixPath(name).stem
    if lowered.startswith(VIDEOS):
        return f"youtube:{stem.removeprefix('Y')[:11] if len(stem) == 12 else stem[:11]}"
    return clotho.group(name) if lowered.startswith("clotho") else f"audioskills:{part}:{stem}"


def _category(part: str) -> str:
    lowered = part.lower()
    if any(word in lowered for word in MUSIC):
        return "music"
    return "speech" if any(word in lowered for word in SPEECH) else "sound"
