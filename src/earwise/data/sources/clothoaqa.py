"""ClothoAQA: six questions per clip, each answered by three annotators, as CSV `file_name,QuestionText,answer,...`.

Source: Lipping et al. 2022 (EUSIPCO), files `clotho_aqa_{train,val,test}.csv`; 1,991 clips of Clotho, each with four
yes/no questions and two questions with a one-word answer. The annotators disagree on many questions; `votes` selects
how they are merged:

- `majority` (default): one Example per question, with the answer of most annotators. A yes/no question without a
  majority is skipped; a one-word question without a majority accepts every answer. `meta.conflict` marks every question
  on which the annotators disagree.
- `all`: one Example per annotator, as in ReasonAQA: the same question with answers that contradict each other.
- `unanimous`: only questions to which all annotators gave the same answer.

The whole file is held in memory (35k rows), because the answers to a question are in separate rows.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from earwise.data.sources import clotho
from earwise.data.sources.example_builder import (
    SourceInfo,
    build_example,
    find_audio,
    short_hash,
    string_field,
    text_field,
)
from earwise.data.sources.row_readers import OnSkip, csv_rows
from earwise.errors import DataError
from earwise.types import Example

LICENCE = "see LICENSE.txt of ClothoAQA (questions); Freesound licence of each clip"
YES_NO = ("yes", "no")
Votes = Literal["majority", "all", "unanimous"]


def load(
    path: Path,
    audio_root: Path,
    split: str,
    on_skip: OnSkip,
    *,
    votes: Votes = "majority",
    one_word: bool = True,
    source: str = "ClothoAQA",
) -> Iterator[Example]:
    """Yes/no questions (task `yes_no`, with choices) and one-word questions (task `open`).

    Args:
        path: File of one split.
        audio_root: Folder of the clips.
        split: Split of the file.
        on_skip: Callback for every row or question that is skipped.
        votes: How the answers of the annotators are merged (see above).
        one_word: Whether to include the one-word questions.
        source: Value of the examples' field `source`.
    """
    info = SourceInfo(source, LICENCE, audio_root, split)
    answers_by_question: dict[tuple[str, str], list[str]] = {}
    for location, row in csv_rows(path, ("file_name", "QuestionText", "answer"), on_skip):
        try:
            key = (
                string_field(row, "file_name", location),
                text_field(row, "QuestionText", location),
            )
            answer = text_field(row, "answer", location).lower().rstrip(".")
        except DataError as error:
            on_skip(str(error))
            continue
        answers_by_question.setdefault(key, []).append(answer)
    for (clip, question), answers in answers_by_question.items():
        if not one_word and not set(answers) <= set(YES_NO):
            continue
        vote_counts = Counter(answers)
        accepted = _accepted(vote_counts, votes)
        if accepted is None:
            on_skip(f"{path}: {clip!r}, {question!r}: answers {', '.join(answers)}: no majority")
            continue
        is_yes_no = set(answers) <= set(YES_NO)
        for number, accepted_answers in enumerate(accepted):
            yield build_example(
                info,
                f"clothoaqa-{split}-{short_hash(clip, question)}" + (f"-{number + 1}" if votes == "all" else ""),
                [_locate(audio_root, split, clip)],
                question,
                accepted_answers,
                choices=YES_NO if is_yes_no else (),
                task="yes_no" if is_yes_no else "open",
                category="sound",
                group=clotho.group(clip),
                meta={"votes": dict(vote_counts), "conflict": len(vote_counts) > 1},
            )


def _accepted(vote_counts: Counter[str], votes: Votes) -> list[tuple[str, ...]] | None:
    """Accepted answers of each Example of a question; None for a yes/no question without a majority."""
    if votes == "all":
        return [(answer,) for answer in vote_counts.elements()]
    if votes == "unanimous":
        return [tuple(vote_counts)] if len(vote_counts) == 1 else []
    (first, most), *others = vote_counts.most_common()
    if not others or 2 * most > vote_counts.total():
        return [(first,)]
    return None if set(vote_counts) <= set(YES_NO) else [tuple(vote_counts)]


def _locate(audio_root: Path, split: str, clip: str) -> str:
    path = find_audio(audio_root, (f"audio_files/{clip}", clip))
    return path if (audio_root / path).is_file() else clotho.locate(audio_root, split, clip)
