"""Recordings with a text or a label, in the forms in which speech sets are published: tables, and their own folders.

Tables (Parquet, `datasets` on disk, names on a hub) are read under their own column names, for example of
`openslr/librispeech_asr`, `TwinkStart/CommonVoice_15`, `google/fleurs` and `TwinkStart/covost2`. FLEURS' own form is a
table without a heading, that of AISHELL a file of transcripts beside a folder of clips.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from earwise.data.readers.text_lines import numbered_lines
from earwise.errors import DataError
from earwise.evaluation.published.choice_file import check_audio, locate, question_turn
from earwise.evaluation.published.qwen2_audio_file import language_of, speaker_of
from earwise.evaluation.published.table_rows import clip_names, dataset_name, first_value, rows_of, table_location
from earwise.types import Example

AUDIO_COLUMNS = ("audio", "speech", "wav", "file_name", "path", "audio_path")
ID_COLUMNS = ("id", "utt_id", "uid", "key", "client_id")
SPEAKER_COLUMNS = ("speaker_id", "client_id", "speaker")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
AISHELL2_DEVICES = ("ios", "android", "mic")
AISHELL_TRANSCRIPTS = ("aishell_transcript_v0.8.txt", "trans.txt")


@dataclass(frozen=True, slots=True)
class SpeechTable:
    """How a task reads a table."""

    task: str
    """`task` of the examples."""
    references: tuple[str, ...]
    """Columns that may hold the text or label, the likeliest first."""
    question: str
    """Question of every row, where the set has none."""
    choices: tuple[str, ...] = ()
    """Labels; empty: all that occur if `has_labels`, otherwise none."""
    has_labels: bool = False


def is_table(path: Path) -> bool:
    """Whether a path or a name on a hub is a table."""
    return table_location(path) is not None


def load_table(path: Path, audio_root: Path | None, form: SpeechTable, language: str = "") -> list[Example]:
    """The rows of a table.

    Args:
        path: The table, or a name on a hub.
        audio_root: Folder of clips that the table names without holding them; None: the table's own folder.
        form: How the task reads it.
        language: Language of the texts; empty: that of the row, or of the table's name.
    Raises:
        DataError: if no column holds the text or the audio, or none of the clips exists.
    """
    rows = rows_of(path)
    name = dataset_name(path)
    examples = []
    for number, row in enumerate(rows, 1):
        reference, clips = first_value(row, form.references), clip_names(first_value(row, AUDIO_COLUMNS))
        if reference is None or not clips:
            raise DataError(
                f"{name}: row {number}: no column holds audio and a text ({', '.join(form.references)}); there are "
                f"{', '.join(row)[:120]}"
            )
        stated = str(first_value(row, LANGUAGE_COLUMNS) or "")
        identifier = f"{number}-{first_value(row, ID_COLUMNS) or Path(clips[0]).stem}"
        row_language = language or language_of(stated, _last_parts(name))
        located = [locate(clip, path, audio_root) for clip in clips]
        part = str(row.get("split") or "")
        example = _example(form, identifier, str(reference), located, row_language, part)
        speaker = first_value(row, SPEAKER_COLUMNS)
        examples.append(example if speaker is None else replace(example, group=f"speaker:{speaker}"))
    return _checked(examples, path, form)


def _last_parts(name: str) -> str:
    """The end of a name that may say the language: file, folder, and what follows the question mark.

    >>> _last_parts("hf://datasets/google/fleurs?config=fr_fr")
    'google/fleurs?config=fr_fr'
    """
    path, mark, query = name.partition("?")
    return "/".join(path.split("/")[-2:]) + mark + query


def load_fleurs(path: Path, audio_root: Path | None, form: SpeechTable) -> list[Example]:
    """FLEURS' own table, `test.tsv` of a language's folder: id, file, raw transcript and more, without a heading.

    Raises:
        DataError: if a line has fewer than four columns, or none of the clips exists.
    """
    language = language_of(path.parent.name, "")
    examples = []
    for number, line in numbered_lines(path):
        columns = line.rstrip("\n").split("\t")
        if len(columns) < 4:
            raise DataError(f"{path}:row {number}: {len(columns)} columns, FLEURS has seven; download it again")
        names = [f"audio/{path.stem}/{columns[1]}", f"{path.stem}/{columns[1]}", columns[1]]
        clip = _first_file(names, path, audio_root)
        examples.append(_example(form, f"{number}-{columns[0]}", columns[2], [clip], language, path.parent.name))
    return _checked(examples, path, form)


def load_aishell(folder: Path, audio_root: Path | None, form: SpeechTable) -> list[Example]:
    """AISHELL-1 or AISHELL-2: files of transcripts (`ID text`) and clips named by their ids; the test part, where parts
    are told apart. AISHELL-2 has a folder with a file of transcripts for each device, which is the category.

    Raises:
        DataError: if none of the clips exists.
    """
    files = aishell_files(folder)
    files = [file for file in files if "test" in file.relative_to(folder).parts] or files
    examples = []
    for transcripts in files:
        examples += _aishell_part(transcripts, folder, audio_root, form)
    if not examples:
        raise DataError(f"{folder}: none of the clips of {files[0].name} is there; give the folder that holds wav/")
    return examples


def _aishell_part(transcripts: Path, folder: Path, audio_root: Path | None, form: SpeechTable) -> list[Example]:
    """The examples of one file of transcripts: its clips lie beside it, or below the folder."""
    clips = {clip.stem: clip for clip in transcripts.parent.rglob("*.wav")}
    if audio_root is not None or not clips:
        clips = {clip.stem: clip for clip in (audio_root or folder).rglob("*.wav")}
    test = {name for name, clip in clips.items() if "test" in clip.parts}
    device = next((part for part in transcripts.parts if part.lower() in AISHELL2_DEVICES), "")
    examples = []
    for _, line in numbered_lines(transcripts):
        identifier, _, words = line.strip().partition("\t" if "\t" in line else " ")
        if identifier in clips and (not test or identifier in test):
            text, name = "".join(words.split()), f"{device}-{identifier}".strip("-")
            examples.append(_example(form, name, text, [clips[identifier]], "zh", device))
    return examples


def aishell_files(folder: Path) -> list[Path]:
    """The files of transcripts of AISHELL in a folder."""
    return [file for name in AISHELL_TRANSCRIPTS for file in sorted(folder.rglob(name))]


def _first_file(names: Iterable[str], path: Path, audio_root: Path | None) -> Path:
    candidates = [locate(name, path, audio_root) for name in names]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def _example(
    form: SpeechTable, identifier: str, reference: str, clips: Sequence[Path], language: str, part: str
) -> Example:
    return Example(
        id=f"{form.task}-{identifier}",
        turns=question_turn(clips, form.question),
        answer=(reference,),
        choices=form.choices,
        task=form.task,
        category=part,
        group=speaker_of(clips[0].name) or str(clips[0]),
        split="test",
        language=language,
    )


def _checked(examples: list[Example], path: Path, form: SpeechTable) -> list[Example]:
    """The examples, with all labels that occur as choices where the task has labels.

    Raises:
        DataError: if none of the clips exists.
    """
    check_audio(examples, path)
    if not form.has_labels or form.choices:
        return examples
    labels = tuple(sorted({example.answer[0] for example in examples}))
    return [replace(example, choices=labels) for example in examples]
