"""ClothoAQA: six questions a clip, each answered by three annotators, as CSV `file_name,QuestionText,answer,...`.

Source: Lipping et al. 2022 (EUSIPCO), files `clotho_aqa_{train,val,test}.csv`; 1,991 clips of Clotho, four questions
answered by yes or no and two by one word. The annotators disagree on many questions; what to do with them is `votes`:

- `majority` (default): one row a question with the answer of most annotators; where a yes/no question has no majority
  it is handed to `bad`, where a one-word question has none every answer is accepted. `conflict` marks both and every
  question that was not answered alike by all.
- `all`: one row an annotator, as ReasonAQA keeps them: the same question with answers that contradict each other.
- `unanimous`: only questions that all answered alike.

The whole file is held (35k rows), since the answers to one question stand apart.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from earwise.data.sources import clotho, example_builder, row_readers
from earwise.data.sources.example_builder import SourceInfo
from earwise.data.sources.row_readers import OnSkip
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
    """Yes/no questions (task `yes_no`, with choices) and, if `one_word`, questions with free answers (task `open`)."""
    origin = SourceInfo(source, LICENCE, audio_root, split)
    asked: dict[tuple[str, str], list[str]] = {}
    for where, row in row_readers.csv_rows(path, ("file_name", "QuestionText", "answer"), on_skip):
        try:
            key = (
                example_builder.string_field(row, "file_name", where),
                example_builder.text_field(row, "QuestionText", where),
            )
            answer = example_builder.text_field(row, "answer", where).lower().rstrip(".")
        except DataError as error:
            on_skip(str(error))
            continue
        asked.setdefault(key, []).append(answer)
    for (clip, question), answers in asked.items():
        if not one_word and not set(answers) <= set(YES_NO):
            continue
        counted = Counter(answers)
        accepted = _accepted(counted, votes)
        if accepted is None:
            on_skip(f"{path}: {clip!r}, {question!r}: answers {', '.join(answers)}: no majority")
            continue
        binary = set(answers) <= set(YES_NO)
        for number, right in enumerate(accepted):
            yield example_builder.build_example(
                origin,
                f"clothoaqa-{split}-{example_builder.short_hash(clip, question)}"
                + (f"-{number + 1}" if votes == "all" else ""),
                [_locate(audio_root, split, clip)],
                question,
                right,
                choices=YES_NO if binary else (),
                task="yes_no" if binary else "open",
                category="sound",
                group=clotho.group(clip),
                meta={"votes": dict(counted), "conflict": len(counted) > 1},
            )


def _accepted(counted: Counter[str], votes: Votes) -> list[tuple[str, ...]] | None:
    """The accepted answers of each row to be made of one question; None where a yes/no question is undecided."""
    if votes == "all":
        return [(answer,) for answer in counted.elements()]
    if votes == "unanimous":
        return [tuple(counted)] if len(counted) == 1 else []
    (first, most), *rest = counted.most_common()
    if not rest or 2 * most > counted.total():
        return [(first,)]
    return None if set(counted) <= set(YES_NO) else [tuple(counted)]


def _locate(audio_root: Path, split: str, clip: str) -> str:
    own = example_builder.find_audio(audio_root, (f"audio_files/{clip}", clip))
    return own if (audio_root / own).is_file() else clotho.locate(audio_root, split, clip)
