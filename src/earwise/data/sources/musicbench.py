"""MusicBench: 10 s of music with a caption and the chords, beats, tempo and key heard in it, as JSON lines.

Source: Melechovsky et al. 2024 (NAACL, with Mustango), `MusicBench_{train,test_A,test_B}.json`; fields `location,
main_caption, alt_caption, prompt_*, beats` (times and numbers in the bar), `bpm, chords, chords_time, key` (tonic and
mode), `keyprob`. Key, tempo and metre become open questions (Ke-Omni-R trains on these three); `--choices` adds
options. The values are a detector's: a row whose key it did not trust (below `MIN_KEY_PROBABILITY`, ours) gets no key
question.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import CAPTION, KEY, METRE, TEMPO
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY-SA 3.0 (captions and features); audio from YouTube by way of MusicCaps"
MIN_KEY_PROBABILITY = 0.5
METRES = (2, 3, 4)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """A caption Example a row and, where the row says so, one each for key, tempo and metre (`meta.field`)."""
    origin = SourceInfo("MusicBench", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        clip = example_builder.string_field(row, "location", where).replace("\\", "/")
        said = [example_builder.text_field(row, "main_caption", where)]
        if isinstance(row.get("alt_caption"), str) and row["alt_caption"].strip():
            said.append(example_builder.text_field(row, "alt_caption", where))
        common = {"category": "music", "group": f"youtube:{Path(clip).stem[:11]}"}
        key = example_builder.short_hash(clip)
        audio = [example_builder.find_audio(audio_root, (clip, f"datashare/{clip}"))]
        identifier = f"musicbench-{split}-{key}"
        captions = list(dict.fromkeys(said))
        yield example_builder.build_example(
            origin,
            f"{identifier}-caption",
            audio,
            example_builder.pick_by_hash(CAPTION, key),
            captions,
            task="caption",
            **common,
        )
        for field, wordings, answer in (
            ("key", KEY, _key(row, where)),
            ("tempo", TEMPO, _tempo(row, where)),
            ("metre", METRE, _metre(row, where)),
        ):
            if answer is not None:
                ask = example_builder.pick_by_hash(wordings, key)
                meta = {"field": field}
                yield example_builder.build_example(
                    origin, f"{identifier}-{field}", audio, ask, [answer], task="open", meta=meta, **common
                )

    yield from example_builder.convert_rows(
        _numbered(row_readers.json_rows(path, ("location", "main_caption"), on_skip), on_skip), make, on_skip
    )


def _numbered(rows: Iterator[tuple[str, Row]], on_skip: OnSkip) -> Iterator[tuple[str, Row]]:
    """A location that occurs again would give the same ids again."""
    seen: set[str] = set()
    for where, row in rows:
        key = example_builder.short_hash(str(row["location"]))
        if key in seen:
            on_skip(f"{where}: location {row['location']!r} occurs twice")
            continue
        seen.add(key)
        yield where, row


def _key(row: Row, where: str) -> str | None:
    """Tonic and mode, "C# minor"."""
    key, probability = row.get("key"), _number(row.get("keyprob"))
    if not key or (probability is not None and probability < MIN_KEY_PROBABILITY):
        return None
    parts = key if isinstance(key, list) else str(key).split()
    if len(parts) != 2 or not re.fullmatch(r"[A-G][#b]?", str(parts[0])) or parts[1] not in ("major", "minor"):
        raise DataError(f"{where}: key is {key!r:.40} where tonic and mode are expected")
    return f"{parts[0]} {parts[1]}"


def _tempo(row: Row, where: str) -> str | None:
    bpm = _number(row.get("bpm"))
    if bpm is None:
        return None
    if not 20 <= bpm <= 400:
        raise DataError(f"{where}: bpm is {bpm}, outside 20 to 400")
    return f"{round(bpm)} BPM"


def _metre(row: Row, where: str) -> str | None:
    """Beats in a bar: the highest number in it."""
    beats = row.get("beats")
    if not beats:
        return None
    if not isinstance(beats, list) or len(beats) != 2 or not isinstance(beats[1], list):
        raise DataError(f"{where}: beats is {beats!r:.40} where a list of times and a list of numbers are expected")
    count = round(max((_number(number) or 0 for number in beats[1]), default=0))
    return str(count) if count in METRES else None


def _number(value: Any) -> float | None:
    """A number, or the first of a list of them."""
    if isinstance(value, list):
        value = value[0] if value else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
