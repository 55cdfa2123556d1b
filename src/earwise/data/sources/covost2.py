"""CoVoST 2: Common Voice sentences and their translations, as `covost_v2.{from}_{to}.{train,dev,test}.tsv`.

Source: Wang et al. 2020 (arXiv:2007.10310), after its script has cut the published table into splits. Columns `path,
sentence, translation, client_id`. The languages stand in the file's name. One of Qwen2-Audio's tests.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from earwise.data.sources import common_voice, example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.question_templates import TRANSLATE
from earwise.data.sources.row_readers import OnSkip, Row
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
    """One translation Example a row; `language` is the spoken one.

    Raises:
        DataError: if the file's name does not say which languages.
    """
    named = _FILE.fullmatch(path.stem)
    if named is None or named[2] not in LANGUAGES:
        raise DataError(f"{path}: the name does not say which languages; keep covost_v2.FROM_TO.SPLIT.tsv")
    spoken, wanted = named[1], LANGUAGES[named[2]]
    origin = SourceInfo("CoVoST 2", LICENCE, audio_root, split)

    def make(where: str, row: Row) -> Iterator[Example]:
        clip = example_builder.string_field(row, "path", where)
        yield example_builder.build_example(
            origin,
            f"covost2-{spoken}-{named[2]}-{Path(clip).stem}",
            [common_voice.locate(audio_root, clip)],
            example_builder.pick_by_hash(TRANSLATE, clip).format(language=wanted),
            [example_builder.text_field(row, "translation", where)],
            task="translate",
            category="speech",
            language=spoken,
            group=f"common-voice:{example_builder.short_hash(example_builder.string_field(row, 'client_id', where))}",
            meta={"sentence": example_builder.text_field(row, "sentence", where), "to": named[2]},
        )

    yield from example_builder.convert_rows(
        row_readers.csv_rows(path, COLUMNS, on_skip, delimiter="\t", quoted=False), make, on_skip
    )
