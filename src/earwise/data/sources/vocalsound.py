"""VocalSound: laughter, sighs, coughs, throat clearing, sneezes and sniffs, as `datafiles/{tr,val,te}.json`.

Source: Gong et al. 2022 (ICASSP): an object whose list `data` holds `wav` (a path of the authors' machine) and
`labels`. What the sound is, the speaker and the gender stand in the name: `f0001_0_laughter.wav`. One of Qwen2-Audio's
tests.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from earwise.data.sources import example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import VOCAL
from earwise.data.sources.row_readers import OnSkip, Row
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY-SA 4.0"
NAMES = {
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
    """One Example a clip with all six sounds as choices."""
    origin = SourceInfo("VocalSound", LICENCE, audio_root, SPLITS.get(path.stem, split))

    def make(where: str, row: Row) -> Iterator[Example]:
        clip = PurePosixPath(example_builder.string_field(row, "wav", where)).name
        matched = _FILE.fullmatch(clip)
        if matched is None or matched[3] not in NAMES:
            raise DataError(f"{where}: wav {clip!r} does not name one of {', '.join(NAMES)}")
        yield example_builder.build_example(
            origin,
            f"vocalsound-{clip.removesuffix('.wav')}",
            [example_builder.find_audio(audio_root, (f"audio_16k/{clip}", clip, f"data_44k/{clip}"))],
            example_builder.pick_by_hash(VOCAL, clip),
            [NAMES[matched[3]]],
            choices=tuple(NAMES.values()),
            task="recognition",
            category="sound",
            group=f"vocalsound:{matched[1]}{matched[2]}",
            meta={"field": "sound", "gender": {"f": "female", "m": "male"}[matched[1]]},
        )

    yield from example_builder.convert_rows(row_readers.json_rows(path, ("wav",), on_skip, key="data"), make, on_skip)
