"""AudioSkills-XL and AF-Chat, Audio Flamingo 3's training sets: conversations about one clip or several, as JSON lists.

Source: Goel et al. 2025 (arXiv:2507.08128), published without audio, one file per part (`CountingQA_MCQ.json`,
`AudioSet.json`, ...). An item holds `sound` (a file name, or in AF-Chat a list of file names) and `conversations`,
turns of `from` (human, gpt) and `value`, in which `<sound>` denotes the clip and `<sound-2>` the second clip of
the list. Options are written into the question, `(A) .. (B) ..`, and are separated from it here. Every answer of a
conversation becomes an Example whose turns include the conversation before it. A clip is placed where it is first
mentioned, later mentions become a name ("sound 1"); a clip that is never mentioned is placed before the first question.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from earwise.data.sources import clotho
from earwise.data.sources.clothoaqa import YES_NO
from earwise.data.sources.example_builder import SourceInfo, convert_rows, find_audio, string_field, text_field
from earwise.data.sources.reasonaqa import answer_index, split_options
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

LICENCE = "NVIDIA OneWay Noncommercial (questions); audio by its origin"
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant")
VIDEOS = ("audioset", "vgg", "musiccaps", "youtube")
"""Beginnings of the names of parts whose clips are named by the 11-character id of a YouTube video."""
MUSIC = ("music", "msd", "gtzan", "nsynth", "fma", "medley", "magna", "mtg")
SPEECH = ("meld", "iemocap", "voxceleb", "librispeech", "switchboard", "fisher", "mosei", "speech")
_CLIP_MARK = re.compile(r"<(?:sound|audio)(?:-(\d+))?>")
_ASKS_TO_CHOOSE = re.compile(r"\s*\b(?:choose|select|pick)\b[^.?!]*\boptions?\b[^.?!]*$", re.IGNORECASE)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per answer; the part (the file's name) determines category and group."""
    info = SourceInfo(f"AudioSkills-XL {path.stem}", LICENCE, audio_root, split)

    for number, (location, row) in enumerate(json_rows(path, ("sound", "conversations"), on_skip)):

        def convert(location: str, row: Row, number: int = number) -> Iterator[Example]:
            yield from _examples(row, location, f"audioskills-{path.stem}-{number}", path.stem, info)

        yield from convert_rows([(location, row)], convert, on_skip)


def _examples(row: Row, location: str, name: str, part: str, info: SourceInfo) -> Iterator[Example]:
    """The Examples of one conversation, one per answer."""
    clips, exchanges = _clips(row, location), _exchanges(row, location)
    files = [_locate(info.root, part, clip) for clip in clips]
    mentioned = {
        _clip_number(mark, location, clips) for message, _ in exchanges for mark in _CLIP_MARK.finditer(message)
    }
    unmentioned = [number for number in range(len(clips)) if number not in mentioned]
    placed = set(unmentioned)
    history: tuple[Turn, ...] = ()
    for number, (message, reply) in enumerate(exchanges, 1):
        question, choices = split_options(message)
        text = _ASKS_TO_CHOOSE.sub("", question).strip() if choices else message
        parts = (Audio(files[clip]) for clip in (unmentioned if number == 1 else ()))
        turn = Turn("user", (*parts, *_message_parts(text, location, clips, files, placed)))
        answer = choices[answer_index(reply, choices, location)] if choices else reply
        is_yes_no = not choices and answer.lower().rstrip(".") in YES_NO
        if is_yes_no:
            answer, choices = answer.lower().rstrip("."), YES_NO
        yield Example(
            id=name if len(exchanges) == 1 else f"{name}-{number}",
            turns=(*history, turn),
            answer=(answer,),
            choices=choices,
            task="yes_no" if is_yes_no else "multiple_choice" if choices else "open",
            category=_category(part),
            source=info.source,
            licence=info.licence,
            group=_group(part, clips[0]),
            split=info.split,
            root=info.root,
            meta={"part": part},
        )
        history = (*history, turn, Turn("assistant", (Text(answer),)))


def _clips(row: Row, location: str) -> list[str]:
    """File names of the clips of a conversation."""
    listed = row["sound"] if isinstance(row["sound"], list) else [row["sound"]]
    if not listed or not all(isinstance(clip, str) and clip.strip() for clip in listed):
        raise DataError(f"{location}: sound is {row['sound']!r:.60} where a file or a list of files is expected")
    return [clip.replace("\\", "/") for clip in listed]


def _exchanges(row: Row, location: str) -> list[tuple[str, str]]:
    """The conversation as pairs of user message and reply."""
    turns: Any = row["conversations"]
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise DataError(f"{location}: conversations is no list of alternating questions and answers")
    messages = []
    for number, turn in enumerate(turns):
        roles = MODEL if number % 2 else HUMAN
        if not isinstance(turn, dict) or turn.get("from") not in roles:
            raise DataError(f"{location}: turn {number + 1} is not from {roles[0]}")
        messages.append(
            string_field(turn, "value", location).strip() if number % 2 else text_field(turn, "value", location)
        )
    return list(zip(messages[::2], messages[1::2], strict=True))


def _message_parts(
    message: str, location: str, clips: Sequence[str], files: Sequence[str], placed: set[int]
) -> Iterator[Audio | Text]:
    """Text and audio parts of a user message, with each clip in place of its first mention.

    Args:
        message: Text with marks such as `<sound-2>`.
        location: Prefix of error messages.
        clips: File names of the conversation's clips.
        files: Paths of these clips.
        placed: Numbers of the clips that the conversation contains already; clips that are placed here are added.
    """
    text, position = "", 0
    for mark in _CLIP_MARK.finditer(message):
        number = _clip_number(mark, location, clips)
        text, position = text + message[position : mark.start()], mark.end()
        if number in placed:
            text += f"sound {number + 1}"
            continue
        placed.add(number)
        if text.strip():
            yield Text(text.strip())
        yield Audio(files[number])
        text = ""
    text = (text + message[position:]).strip()
    if text:
        yield Text(text)


def _clip_number(mark: re.Match[str], location: str, clips: Sequence[str]) -> int:
    """Index in `clips` of the clip that a mark denotes."""
    number = int(mark[1] or 1) - 1
    if not 0 <= number < len(clips):
        raise DataError(f"{location}: {mark[0]} where there are {len(clips)} sounds")
    return number


def _locate(audio_root: Path, part: str, clip: str) -> str:
    name = PurePosixPath(clip).name
    return find_audio(audio_root, (clip, f"{part}/{clip}", name, f"{part}/{name}"))


def _group(part: str, clip: str) -> str:
    """Group (the unit that must not cross splits) of a clip."""
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
