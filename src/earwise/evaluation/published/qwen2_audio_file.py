"""The evaluation files of Qwen2-Audio: one object per line with `audio`, `source`, `prompt` and `gt`.

Source: QwenLM/Qwen2-Audio@595360e, eval_audio/EVALUATION.md. `source` names the set and results are grouped by it;
`prompt` is what the base model reads after the clip. The clips are not part of the files: `audio` is searched below the
audio folder with its sub-folders, and by its name alone.
"""

import re
from pathlib import Path
from typing import Any

from earwise.evaluation.published.choice_file import check_audio, locate, read_items
from earwise.types import Audio, Example, Text, Turn

FIELDS = ("audio", "source", "prompt", "gt")
LANGUAGES = {
    "cmn": "zh", "mandarin": "zh", "chinese": "zh", "cantonese": "yue", "english": "en", "french": "fr",
    "german": "de", "japanese": "ja", "spanish": "es", "italian": "it", "librispeech": "en", "aishell": "zh",
    "fleurs": "zh", "fluers": "zh",
}  # fmt: skip
"""Language of names that do not contain its code: names of languages, and of sets; the published program writes
"fluers"."""
SPEAKER = re.compile(r"(\d+)-\d+-\d{4}|BAC009(S\d{4})W\d{4}")
"""Names of the clips of LibriSpeech and AISHELL-1."""
CODES = ("en", "zh", "yue", "fr", "de", "ja", "es", "it")


def is_qwen2_audio_file(path: Path) -> bool:
    """Whether the first line of a file has the four fields."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            line = file.readline()
    except OSError:
        return False
    return line.lstrip().startswith("{") and all(f'"{field}"' in line for field in FIELDS)


def language_of(source: str, file_name: str) -> str:
    """Language of a set, from its name and that of its file: `cv15_asr_yue_eval.jsonl` is Cantonese.

    >>> language_of("librispeech_test_clean", ""), language_of("cv15", "cv15_asr_yue_eval.jsonl")
    ('en', 'yue')
    >>> language_of("zh-HK", ""), language_of("", "google/fleurs?config=cmn_hans_cn"), language_of("zh-CN", "")
    ('yue', 'zh', 'zh')
    """
    for name in (source.lower(), file_name.lower()):
        parts = re.split(r"[\W_]+", name)
        if "hk" in parts:
            return "yue"
        for code in CODES:
            if code in parts:
                return code
        for prefix, code in LANGUAGES.items():
            if prefix in name:
                return code
    return "en"


def speaker_of(name: str) -> str:
    """The speaker that the name of a clip of LibriSpeech or AISHELL-1 says; empty for all other names.

    >>> speaker_of("test-clean/84/121123/84-121123-0000.flac"), speaker_of("wav/S0764/BAC009S0764W0121.wav")
    ('speaker:84', 'speaker:S0764')
    >>> speaker_of("common_voice_en_100.mp3")
    ''
    """
    match = SPEAKER.fullmatch(Path(name).stem)
    return f"speaker:{match[1] or match[2]}" if match else ""


def load_file(path: Path, audio_root: Path | None, task: str, **fields: Any) -> list[Example]:
    """The items of a file.

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
        task: `task` of the examples.
        fields: Further fields of the examples, for example `choices`.
    Raises:
        DataError: if the file is not one of Qwen2-Audio's, or none of its clips exists.
    """
    examples = [
        Example(
            id=f"{row['source']}-{number}",
            turns=(Turn("user", (Audio(str(locate(str(row["audio"]), path, audio_root).absolute())),
                                 Text(str(row["prompt"])))),),
            answer=(str(row["gt"]),),
            task=task,
            category=str(row["source"]),
            source=str(row["source"]),
            group=speaker_of(str(row["audio"])) or str(row["audio"]),
            split="test",
            language=language_of(str(row["source"]), path.name),
            **fields,
        )
        for number, row in enumerate(read_items(path, FIELDS, ""), 1)
    ]  # fmt: skip
    check_audio(examples, path)
    return examples
