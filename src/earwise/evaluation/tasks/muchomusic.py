"""MuChoMusic (arXiv:2408.01337): 1,187 questions about pieces of music with four options, in a CSV file.

Source: mulab-mir/muchomusic@d3c9a42 (MIT) and Zenodo 12709974: columns `question, correct_answer,
distractor_1_answer` to `distractor_3_answer, dataset, dataset_identifier, genre, music_knowledge, music_reasoning` (the
last three are lists as Python text). Clips lie at `{dataset}/{dataset_identifier}` with a sound file's ending. The
default prompt of the authors has one worked example without audio before the question; `muchomusic-0shot` has none.
"""

from pathlib import Path

from earwise.data.sources.row_readers import csv_rows
from earwise.errors import DataError
from earwise.evaluation.metrics import mmau
from earwise.evaluation.metrics.letters import LETTERS, muchomusic_option
from earwise.evaluation.published.choice_file import check_audio, list_of_texts, locate
from earwise.evaluation.task import Task
from earwise.types import Audio, Example, Score, Text, Turn

COLUMNS = (
    "question", "correct_answer", "distractor_1_answer", "distractor_2_answer", "distractor_3_answer", "dataset",
    "dataset_identifier",
)  # fmt: skip
SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", "")


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read MuChoMusic's CSV file.

    Args:
        path: The file.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if a row cannot be used (none may be left out of a benchmark), or none of its clips exists.
    """

    def refuse(message: str) -> None:
        raise DataError(f"{message}; a benchmark is read whole or not at all")

    examples = []
    for number, (_, row) in enumerate(csv_rows(path, COLUMNS, refuse), 1):
        stem = f"{row['dataset']}/{row['dataset_identifier']}"
        clips = [locate(stem + suffix, path, audio_root) for suffix in SUFFIXES]
        clip = next((clip for clip in clips if clip.is_file()), clips[0])
        knowledge, reasoning = (list_of_texts(row.get(name)) or [] for name in ("music_knowledge", "music_reasoning"))
        choices = tuple(row[name] for name in COLUMNS[1:5] if row[name])
        example = Example(
            id=f"muchomusic-{number}",
            turns=(Turn("user", (Audio(str(clip.absolute())), Text(row["question"]))),),
            answer=(row["correct_answer"],),
            choices=choices,
            task="knowledge" if knowledge else "reasoning" if reasoning else "music",
            category=", ".join(list_of_texts(row.get("genre")) or [str(row.get("genre") or "")]),
            source=row["dataset"],
            group=stem,
            split="test",
            meta={"music_knowledge": knowledge, "music_reasoning": reasoning},
        )
        examples.append(example)
    if not examples:
        raise DataError(f"{path}: holds no items; download it again")
    check_audio(examples, path)
    return examples


def prompt_without_example(example: Example) -> str:
    """The question in MuChoMusic's form."""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False))
    return f"Question: {example.question}\nOptions: {options}\nThe correct answer is: "


def score(example: Example, completion: str) -> Score:
    """The official verdict (see `metrics.letters.muchomusic_option`), and the answer as it is read everywhere else."""
    general = mmau.score(example, completion)
    index = muchomusic_option(completion, example.choices)
    official = index >= 0 and example.choices[index] in example.answer
    return Score({**general.values, "official": float(official)}, general.status, general.answer, general.explanation)


TASK = Task(
    name="muchomusic",
    load=load,
    score=score,
    scorer=f"muchomusic-letter/1, {mmau.SCORER}",
    score_notes={"official": "the option that the official program reads in the raw output"}
    | {name: note for name, note in mmau.SCORE_NOTES.items() if name != "official"},
    reasoning_headline="lenient",
    prompts={"muchomusic-0shot": prompt_without_example},
    default_style="muchomusic-0shot",
    source="arXiv:2408.01337, mulab-mir/muchomusic",
    licence="MIT (questions); clips: see their sources",
)
