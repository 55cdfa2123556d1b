"""VocalSound: laughter, sighs, coughs, throat clearing, sneezes and sniffs, as `datafiles/{tr,val,te}.json`.

Source: Gong et al. 2022 (ICASSP): an object whose list `data` holds `wav` (a path on the authors' machine) and
`labels`. The file name states the speaker, the gender and the sound: `f0001_0_laughter.wav`. A benchmark of
Qwen2-Audio.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    find_audio,
    pick_by_hash,
    string_field,
)
from earwise.data.sources.question_templates import VOCAL
from earwise.data.sources.row_readers import OnSkip, Row, json_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY-SA 4.0"
LABELS = {
    "laughter": "laughter",
    "sigh": "sigh",
    "cough": "cough",
    "throatclearing": "throat clearing",
    "sneeze": "sneeze",
    "sniff": "sniff",
}
SPLITS = {"tr": "train", "val": "val", "te": "test"}
_FILE = re.compile(r"([fm])(\d+)_\d+_([a-z]+)\.wav")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One Example per clip, with all six sounds as choices."""
    info = SourceInfo("VocalSound", LICENCE, audio_root, SPLITS.get(path.stem, split))

    def convert(location: str, row: Row) -> Iterator[Example]:
        clip = PurePosixPath(string_field(row, "wav", location)).name
        match = _FILE.fullmatch(clip)
        if match is None or match[3] not in LABELS:
            raise DataError(f"{location}: wav {clip!r} does not name one of {', '.join(LABELS)}")
        yield build_example(
            info,
            f"vocalsound-{clip.removesuffix('.wav')}",
            [find_audio(audio_root, (f"audio_16k/{clip}", clip, f"data_44k/{clip}"))],
            pick_by_hash(VOCAL, clip),
            [LABELS[match[3]]],
            choices=tuple(LABELS.values()),
            task="recognition",
            category="sound",
            group=f"vocalsound:{match[1]}{match[2]}",
            meta={"field": "sound", "gender": {"f": "female", "m": "male"}[match[1]]},
        )

    yield from convert_rows(json_rows(path, ("wav",), on_skip, key="data"), convert, on_skip)
