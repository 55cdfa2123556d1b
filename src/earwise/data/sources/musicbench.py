"""MusicBench: 10 s music clips with captions and detected chords, beats, tempo and key, as JSON lines.

Source: Melechovsky et al. 2024 (NAACL, with Mustango), `MusicBench_{train,test_A,test_B}.json`; fields `location,
main_caption, alt_caption, prompt_*, beats` (times and numbers in the bar), `bpm, chords, chords_time, key` (tonic and
mode), `keyprob`. Key, tempo and metre become open questions (Ke-Omni-R trains on these three); `--choices` adds
options. The values come from automatic detectors: a row whose `keyprob` is below `MIN_KEY_PROBABILITY` (ours) gets no
question about the key.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    find_audio,
    pick_by_hash,
    short_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import CAPTION, KEY, METRE, TEMPO
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY-SA 3.0 (captions and features); audio from YouTube by way of MusicCaps"
MIN_KEY_PROBABILITY = 0.5
METRES = (2, 3, 4)


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One caption Example per row, and one each for key, tempo and metre if the row states them (`meta.field`)."""
    info = SourceInfo("MusicBench", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        clip = string_field(row, "location", location).replace("\\", "/")
        captions = [text_field(row, "main_caption", location)]
        if isinstance(row.get("alt_caption"), str) and row["alt_caption"].strip():
            captions.append(text_field(row, "alt_caption", location))
        common = {"category": "music", "group": f"youtube:{Path(clip).stem[:11]}"}
        key = short_hash(clip)
        audio = [find_audio(audio_root, (clip, f"datashare/{clip}"))]
        identifier = f"musicbench-{split}-{key}"
        captions = list(dict.fromkeys(captions))
        yield build_example(
            info,
            f"{identifier}-caption",
            audio,
            pick_by_hash(CAPTION, key),
            captions,
            task="caption",
            **common,
        )
        for field, templates, answer in (
            ("key", KEY, _key(row, location)),
            ("tempo", TEMPO, _tempo(row, location)),
            ("metre", METRE, _metre(row, location)),
        ):
            if answer is not None:
                question = pick_by_hash(templates, key)
                meta = {"field": field}
                yield build_example(
                    info, f"{identifier}-{field}", audio, question, [answer], task="open", meta=meta, **common
                )

    yield from convert_rows(
        _unique_locations(json_rows(path, ("location", "main_caption"), on_skip), on_skip), convert, on_skip
    )


def _unique_locations(rows: Iterator[tuple[str, Row]], on_skip: OnSkip) -> Iterator[tuple[str, Row]]:
    """The rows without those that repeat an earlier `location`, which would get the same ids."""
    keys: set[str] = set()
    for location, row in rows:
        key = short_hash(str(row["location"]))
        if key in keys:
            on_skip(f"{location}: location {row['location']!r} occurs twice")
            continue
        keys.add(key)
        yield location, row


def _key(row: Row, location: str) -> str | None:
    """Tonic and mode, such as "C# minor"; None if the row states no key or the detector was not certain."""
    key, probability = row.get("key"), _number(row.get("keyprob"))
    if not key or (probability is not None and probability < MIN_KEY_PROBABILITY):
        return None
    parts = key if isinstance(key, list) else str(key).split()
    if len(parts) != 2 or not re.fullmatch(r"[A-G][#b]?", str(parts[0])) or parts[1] not in ("major", "minor"):
        raise DataError(f"{location}: key is {key!r:.40} where tonic and mode are expected")
    return f"{parts[0]} {parts[1]}"


def _tempo(row: Row, location: str) -> str | None:
    """Tempo such as "120 BPM"; None if the row states none."""
    bpm = _number(row.get("bpm"))
    if bpm is None:
        return None
    if not 20 <= bpm <= 400:
        raise DataError(f"{location}: bpm is {bpm}, outside 20 to 400")
    return f"{round(bpm)} BPM"


def _metre(row: Row, location: str) -> str | None:
    """Beats per bar, which is the highest beat number; None if the row has no beats or an unusual metre."""
    beats = row.get("beats")
    if not beats:
        return None
    if not isinstance(beats, list) or len(beats) != 2 or not isinstance(beats[1], list):
        raise DataError(f"{location}: beats is {beats!r:.40} where a list of times and a list of numbers are expected")
    count = round(max((_number(number) or 0 for number in beats[1]), default=0))
    return str(count) if count in METRES else None


def _number(value: Any) -> float | None:
    """A number, or the first number of a list."""
    if isinstance(value, list):
        value = value[0] if value else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
