"""MuChoMusic (arXiv:2408.01337): 1,187 questions about pieces of music with four options, in a CSV file.

Source: mulab-mir/muchomusic@d3c9a42 (MIT) and Zenodo 12709974: columns `question, correct_answer,
distractor_1_answer` to `distractor_3_answer, dataset, dataset_identifier, genre, music_knowledge, music_reasoning` (the
last three are lists as Python text). Clips lie where the authors' program looks for them, at
`sdd/audio/70/1234170.2min.mp3` and `musiccaps/audio/[YTID]-[30-40].wav`, or at `{dataset}/{dataset_identifier}` with a
sound file's ending. The default prompt has one worked example, without its audio, before the question
(`prepare_prompts.py` and `configs/default.yaml`, with their blanks); `muchomusic-0shot` has none.
"""

from collections.abc import Sequence
from pathlib import Path

from earwise.data.sources.row_readers import csv_rows
from earwise.errors import DataError
from earwise.evaluation.metrics import mmau
from earwise.evaluation.metrics.letters import LETTERS, muchomusic_option
from earwise.evaluation.published.choice_file import check_audio, list_of_texts
from earwise.evaluation.published.lettered_file import ideal_answer
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.types import Audio, Example, Score, Text, Turn

COLUMNS = (
    "question", "correct_answer", "distractor_1_answer", "distractor_2_answer", "distractor_3_answer", "dataset",
    "dataset_identifier",
)  # fmt: skip
SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", "")
KINDS = ("knowledge", "reasoning")
"""What a question asks for; some ask for both."""
WORKED_EXAMPLE = (
    "Question: What rhythm pattern do the digital drums primarily follow in this pop music piece? \n\n"
    "Options: (A) Four on the floor. (B) Off-beat syncopation. (C) Scat singing. (D) E-guitar playing a simple melody. "
    "\n\nThe correct answer is: A"
)
"""The in-context example of the default configuration."""


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
        clip = find_clip(row["dataset"], row["dataset_identifier"], audio_root or path.parent)
        knowledge, reasoning = (list_of_texts(row.get(name)) or [] for name in ("music_knowledge", "music_reasoning"))
        choices = tuple(row[name] for name in COLUMNS[1:5] if row[name])
        example = Example(
            id=f"muchomusic-{number}",
            turns=(Turn("user", (Audio(str(clip.absolute())), Text(row["question"]))),),
            answer=(row["correct_answer"],),
            choices=choices,
            task=", ".join(kind for kind, names in zip(KINDS, (knowledge, reasoning), strict=True) if names) or "music",
            category=", ".join(list_of_texts(row.get("genre")) or [str(row.get("genre") or "")]),
            source=row["dataset"],
            group=f"{row['dataset']}/{row['dataset_identifier']}",
            split="test",
            meta={"music_knowledge": knowledge, "music_reasoning": reasoning},
        )
        examples.append(example)
    if not examples:
        raise DataError(f"{path}: holds no items; download it again")
    check_audio(examples, path)
    return examples


def find_clip(dataset: str, identifier: str, root: Path) -> Path:
    """The clip of a row, under any of the names that it has in practice; the first of them if there is none.

    Args:
        dataset: `sdd` or `musiccaps`.
        identifier: Identifier of the row: a track's number or a video's id, in the published file with the name of
            the question file behind it (`1234170.json`, `YTID_3.json`).
        root: Folder of the clips.
    """
    plain = identifier.removesuffix(".json")
    names = [f"{identifier}{suffix}" for suffix in SUFFIXES]
    patterns = [f"{plain[-2:]}/{plain}.2min.mp3"]
    if dataset == "musiccaps":
        video = plain.rpartition("_")[0] if identifier.endswith(".json") else plain
        patterns = [f"[[]{video}[]]-[[]*[]].wav"]
    folders = [root / part for part in (dataset, f"{dataset}/audio", f"data/{dataset}/audio", "audio", "")]
    candidates = [folder / name for folder in folders for name in names]
    stored = [clip for folder in folders for pattern in patterns for clip in sorted(folder.glob(pattern))]
    return next((clip for clip in [*candidates, *stored] if clip.is_file()), candidates[0])


def prompt_without_example(example: Example) -> str:
    """The question in MuChoMusic's form, with the blanks of the authors' program."""
    options = "".join(f"({letter}) {choice} " for letter, choice in zip(LETTERS, example.choices, strict=False))
    return f"Question: {example.question}\n Options: {options}\n The correct answer is: "


def prompt_with_example(example: Example) -> str:
    """The authors' default prompt: a worked example about another piece, then the question."""
    return f"{WORKED_EXAMPLE}\n {prompt_without_example(example)}"


def score(example: Example, completion: str) -> Score:
    """The official verdict (see `metrics.letters.muchomusic_option`), and the answer as it is read everywhere else."""
    general = mmau.score(example, completion)
    index = muchomusic_option(completion, example.choices)
    official = 0 <= index < len(example.choices) and example.choices[index] in example.answer
    return Score({**general.values, "official": float(official)}, general.status, general.answer, general.explanation)


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores; the official accuracy of knowledge and of reasoning, whose items overlap; and the share of
    outputs in which the official program reads no option."""
    metrics = mean_scores(rows)
    for kind in KINDS:
        values = [row["scores"]["official"] for row in rows if kind in row["task"].split(", ")]
        if values:
            metrics[kind] = {"accuracy": sum(values) / len(values), "n": len(values)}
    unanswered = sum(muchomusic_option(row["output"], row["choices"]) < 0 for row in rows)
    return metrics | {"unanswered": {"accuracy": unanswered / len(rows), "n": len(rows)}}


TASK = Task(
    name="muchomusic",
    load=load,
    score=score,
    scorer=f"muchomusic-letter/1, {mmau.SCORER}",
    score_notes={"official": "the option that the official program reads in the raw output"}
    | {name: note for name, note in mmau.SCORE_NOTES.items() if name != "official"},
    reasoning_headline="lenient",
    aggregate=aggregate,
    ideal_answer=ideal_answer,
    prompts={"muchomusic": prompt_with_example, "muchomusic-0shot": prompt_without_example},
    default_style="muchomusic",
    source="arXiv:2408.01337, mulab-mir/muchomusic",
    licence="MIT (questions); clips: see their sources",
    unverified="the published CSV; its columns are those that the authors' program reads",
)
