"""Writes a manifest as rows of a chat program, and reads every row back before it counts as written.

A segment of a file is written as a file of its own, because no such form knows seconds. A row that does not come back
as it was (a field of it means something else in that form) is refused, never changed in silence.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from earwise import progress
from earwise.audio import encode_samples, read_samples
from earwise.data import manifest
from earwise.data.interchange.clip_store import ClipStore, clip_suffix
from earwise.data.interchange.writers.chat.conversation import joined_parts, take_apart, worded
from earwise.data.interchange.writers.chat.forms import FORMS, ChatForm
from earwise.data.readers.row_files import count_rows
from earwise.errors import DataError
from earwise.files import relative_path, write_jsonl
from earwise.types import Audio, AudioClip, Example, Turn

OPENAI_FORMATS = ("wav", "mp3")
"""Formats that OpenAI's own service takes in `input_audio`; other servers take more."""
Notify = Callable[[str], None]


@dataclass(slots=True)
class ChatExport:
    """The writing of one file: clips that were cut, and what has to be said at the end.

    Attributes:
        form: The form that is written.
        out: File to write.
        counts: What is said once -> number of rows or clips.
        segments: Segment -> file that it was written to.
    """

    form: ChatForm
    out: Path
    counts: Counter[str] = field(default_factory=Counter)
    segments: dict[AudioClip, Path] = field(default_factory=dict)

    def row(self, example: Example, style: str | None) -> dict[str, Any]:
        """An example as a row of the form.

        Raises:
            DataError: if the form cannot hold the row; the message names its id.
        """
        shown = example if style is None else worded(example, style)
        shown = replace(
            shown, turns=tuple(Turn(turn.role, tuple(map(self._whole(shown), turn.parts))) for turn in shown.turns)
        )
        conversation = take_apart(shown, self._name_clip(shown), self.form.title)
        row = self.form.row(conversation)
        self._check(row, shown)
        self.counts["choices"] += bool(shown.choices)
        self.counts["reasoning"] += bool(shown.reasoning)
        return row

    def notes(self) -> Iterator[str]:
        """What a reader of the file should know, a line each."""
        if count := self.counts["choices"]:
            yield (
                f"{count} rows keep their options in `choices`, which other programs do not show to a model; "
                "--style answer (or plain) writes them into the question"
            )
        if count := self.counts["reasoning"]:
            yield f"{count} rows keep their reasoning in `reasoning`; --style think writes it into the reply"
        if self.segments:
            yield f"{len(self.segments)} segments were written as files of their own, in {self.out.parent / 'clips'}"
        others = {name: count for name, count in self.counts.items() if name.startswith("format ")}
        if others:
            listed = ", ".join(f"{count} {name.removeprefix('format ')}" for name, count in sorted(others.items()))
            yield f"{listed}: OpenAI's own service takes wav and mp3 only; other servers take these clips"

    def _whole(self, example: Example) -> Callable[[Any], Any]:
        """Replaces a segment by a file of its own."""

        def whole(part: Any) -> Any:
            if not isinstance(part, Audio) or (part.start is None and part.end is None):
                return part
            clip = AudioClip((example.root / part.path).absolute(), part.start or 0.0, part.end)
            if clip not in self.segments:
                store = ClipStore(self.out.parent / "clips")
                samples, sample_rate = read_samples(clip)
                self.segments[clip] = store.add(encode_samples(samples, sample_rate), "segment.wav", str(clip))
            return Audio(str(self.segments[clip].absolute()))

        return whole

    def _name_clip(self, example: Example) -> Callable[[Audio], str]:
        """How the row names a clip."""

        def name_clip(part: Audio) -> str:
            file = (example.root / part.path).absolute()
            if self.form.clip_name == "absolute":
                return str(file)
            if self.form.clip_name == "url":
                return file.as_uri()
            if self.form.clip_name == "relative":
                return Path(relative_path(file, self.out.parent)).as_posix()
            data = file.read_bytes()
            name = clip_suffix(file.name, data[:16]).removeprefix(".")
            if name not in OPENAI_FORMATS:
                self.counts[f"format {name}"] += 1
            return f"data:audio/{name};base64,{base64.b64encode(data).decode()}"

        return name_clip

    def _check(self, row: dict[str, Any], example: Example) -> None:
        """Refuse a row that is not read back as the example that it was made from."""
        files = (
            {_sha256(file): file.absolute() for file in example.audio_paths} if self.form.clip_name == "data" else {}
        )
        place = f"row {example.id!r}"
        advice = "rename the field that means something else there"
        try:
            again = manifest.from_row(
                json.loads(json.dumps(row)), root=self.out.parent.absolute(), location=place,
                save_clip=lambda data: files[hashlib.sha256(data).hexdigest()],
            )  # fmt: skip
        except DataError as error:
            raise DataError(f"{error} (as {self.form.title} reads the row: {advice})") from error
        expected, found = _comparable(example), _comparable(again)
        for name in expected:
            if expected[name] != found[name]:
                raise DataError(
                    f"{place}: {name} would be read back from {self.form.title} as {found[name]!r:.60}; it is "
                    f"{expected[name]!r:.60} here; {advice}"
                )


def write_chat(path: Path, out: Path, form: str, *, style: str | None = None, notify: Notify = lambda _: None) -> int:
    """Write a manifest as JSON lines of another program's rows.

    Args:
        path: Manifest.
        out: File to write; segments that are cut out go to `clips/` beside it.
        form: Name of the form, a key of `forms.FORMS`.
        style: Prompt style that words question, options and replies; None leaves options in a field of their own.
        notify: Receives what a reader of the file should know, a line each.
    Returns:
        Number of rows.
    Raises:
        DataError: for a row that the form cannot hold, or an invalid row.
        ConfigError: for a style that does not exist or needs reasoning that a row has not.
    """
    export = ChatExport(FORMS[form], out)
    examples = manifest.iterate(path, check_files=True)
    tracked = progress.track(examples, "rows written", count_rows(path))
    count = write_jsonl(out, (export.row(example, style) for example in tracked))
    if not count:
        out.unlink()
        raise DataError(f"{path}: holds no rows; write at least one")
    for line in export.notes():
        notify(line)
    return count


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _comparable(example: Example) -> dict[str, Any]:
    """What must come back: everything, with clips by their files, and a chosen reply also as the answer."""
    values = {item.name: getattr(example, item.name) for item in fields(example) if item.name not in ("root", "turns")}
    values["answer"] = example.answer or example.chosen
    values["meta"] = dict(example.meta)
    values["turns"] = [
        (turn.role, joined_parts(turn, lambda part: os.path.normpath((example.root / part.path).absolute())))
        for turn in example.turns
    ]
    return values
