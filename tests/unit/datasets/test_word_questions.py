"""Questions about words ask for the transcript, and neither their options nor yes and no give the answer away."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from earwise.data import manifest
from earwise.datasets.labels.build_questions import QuestionOptions, build_questions
from earwise.datasets.labels.varied import wordings
from earwise.datasets.labels.varied.word_questions import NOTHING, build_word_questions
from earwise.types import Example, Text

WORDS = ("boat", "cart", "lemon", "window", "river", "paper", "candle", "garden")
GERMAN = ("das Boot", "der Wagen")
SENTENCES = tuple(f"Please put the {word} on the table." for word in WORDS)


def row(path: str, text: str | None, *, split: str = "train", language: str = "en", **fields: Any) -> dict[str, Any]:
    """One row of a labelled collection."""
    base = {"path": path, "labels": ["speech"], "category": "speech", "split": split, "group": path, "text": text}
    return base | {"language": language} | fields


ROWS = [
    *(
        row(f"{split}{number}-{copy}.wav", text, split=split)
        for split in ("train", "val")
        for number, text in enumerate((*WORDS, *SENTENCES))
        for copy in range(3)
    ),
    *(row(f"de{number}.wav", text, language="de") for number, text in enumerate(GERMAN)),
    row("bracket.wav", "hash [#]"),
    row("letter.wav", "x"),
    row("unknown.wav", None),
    *(row(f"rain{number}.wav", None, category="sound", language=None) for number in range(100)),
]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return build_word_questions(ROWS, Path("clips"), seed=3)


def question(example: Example) -> str:
    return next(part.text for part in example.turns[0].parts if isinstance(part, Text))


def texts_of(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["path"]: row["text"] for row in rows}


def test_open_questions_are_answered_with_the_transcript(examples: list[Example]) -> None:
    transcripts = texts_of(ROWS)
    open_questions = [example for example in examples if example.task == "transcript"]
    answers = {example.audio_paths[0].name: example.answer[0] for example in open_questions}
    assert len(answers) == len(open_questions)
    spoken = {path: text for path, text in answers.items() if text != NOTHING}
    assert spoken == {
        path: text for path, text in transcripts.items() if text and path not in ("bracket.wav", "letter.wav")
    }
    silent = [path for path, text in answers.items() if text == NOTHING]
    assert 3 <= len(silent) <= 20 and all(path.startswith("rain") for path in silent)
    languages = {example.language for example in open_questions if example.answer[0] in GERMAN}
    assert languages == {"de"}


def test_options_are_texts_of_the_same_kind_and_balanced(examples: list[Example]) -> None:
    transcripts = texts_of(ROWS)
    choices = [example for example in examples if example.task == "words"]
    assert len(choices) > 60
    answers, options = Counter[str](), Counter[str]()
    for example in choices:
        assert example.answer[0] == transcripts[example.audio_paths[0].name]
        assert example.answer[0] in example.choices and len(set(example.choices)) == len(example.choices)
        alike = next(texts for texts in (WORDS, SENTENCES, GERMAN) if example.answer[0] in texts)
        assert set(example.choices) <= set(alike)
        if example.split == "val":
            assert len(example.choices) == 4
            answers[example.answer[0]] += 1
            options.update(example.choices)
    expected = {text: 4 * count for text, count in answers.items()}
    assert options == expected, "each option is right one time in four"


def test_yes_and_no_are_balanced_and_true(examples: list[Example]) -> None:
    transcripts = texts_of(ROWS)
    answers = Counter[str]()
    for example in examples:
        if example.task == "yes_no":
            asked = example.meta["asked"]
            assert f'"{asked}"' in question(example)
            assert example.answer[0] == ("yes" if asked == transcripts[example.audio_paths[0].name] else "no")
            answers[example.answer[0]] += 1
    assert answers["yes"] == answers["no"] > 40


def test_validation_uses_wordings_that_are_never_trained_on(examples: list[Example]) -> None:
    for task, key in (("transcript", "words"), ("words", "choice.words")):
        for split in ("train", "val"):
            known = set(wordings.question_wordings()[key].of_split(split))
            asked = {question(example) for example in examples if example.task == task and example.split == split}
            assert asked <= known and len(asked) == len(known)


def test_the_task_is_built_by_name(tmp_path: Path) -> None:
    lines = ["path,label,category,split,text,language", "a.wav,speech,speech,train,boat,en"]
    soundfile.write(tmp_path / "a.wav", np.full(4000, 0.1, np.float32), 16000)
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    built = build_questions(tmp_path / "clips.csv", tmp_path / "out.jsonl", QuestionOptions(tasks=("words",)))
    (example,) = manifest.read(tmp_path / "out.jsonl")
    assert built.tasks == {"transcript": 1} and example.answer == ("boat",)
