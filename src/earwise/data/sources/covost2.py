"""CoVoST 2: Common Voice sentences and their translations, as `covost_v2.{from}_{to}.{train,dev,test}.tsv`.

Source: Wang et al. 2020 (arXiv:2007.10310), after the authors' script has divided the published table into splits.
Columns `path, sentence, translation, client_id`. The file name states the languages. A benchmark of Qwen2-Audio.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import common_voice
from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    convert_rows,
    pick_by_hash,
    short_hash,
    string_field,
    text_field,
)
from earwise.data.sources.question_templates import TRANSLATE
from earwise.data.sources.row_readers import OnSkip, Row, csv_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "CC BY-NC 4.0 (translations); CC0 1.0 (audio)"
COLUMNS = ("path", "sentence", "translation", "client_id")
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "ja": "Japanese",
    "zh-CN": "Chinese", "pt": "Portuguese", "ru": "Russian", "nl": "Dutch", "ar": "Arabic", "tr": "Turkish",
    "ca": "Catalan", "fa": "Persian", "et": "Estonian", "mn": "Mongolian", "cy": "Welsh", "lv": "Latvian",
    "sl": "Slovenian", "ta": "Tamil", "id": "Indonesian", "sv-SE": "Swedish",
}  # fmt: skip
_FILE = re.compile(r"covost_v2\.([a-zA-Z-]+)_([a-zA-Z-]+)\.(train|dev|test)")


def load(path: Path, audio_root: Path, split: str, on_skip: OnSkip) -> Iterator[Example]:
    """One translation Example per row; `language` is the spoken language.

    Raises:
        DataError: if the file name does not state the languages.
    """
    match = _FILE.fullmatch(path.stem)
    if match is None or match[2] not in LANGUAGES:
        raise DataError(f"{path}: the name does not say which languages; name the file covost_v2.FROM_TO.SPLIT.tsv")
    spoken, target_name = match[1], LANGUAGES[match[2]]
    info = SourceInfo("CoVoST 2", LICENCE, audio_root, split)

    def convert(location: str, row: Row) -> Iterator[Example]:
        clip = string_field(row, "path", location)
        yield build_example(
            info,
            f"covost2-{spoken}-{match[2]}-{Path(clip).stem}",
            [common_voice.locate(audio_root, clip)],
            pick_by_hash(TRANSLATE, clip).format(language=target_name),
            [text_field(row, "translation", location)],
            task="translate",
            category="speech",
            language=spoken,
            group=f"common-voice:{short_hash(string_field(row, 'client_id', location))}",
            meta={"sentence": text_field(row, "sentence", location), "to": match[2]},
        )

    yield from convert_rows(csv_rows(path, COLUMNS, on_skip, delimiter="\t", quoted=False), convert, on_skip)
