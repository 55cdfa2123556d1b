"""ClothoAQA (EUSIPCO 2022): yes/no and one-word questions about Clotho's clips, each answered by three annotators.

Data: the published CSV of one split. Annotators disagree, so one accuracy is not enough: `row` counts agreement with
every single annotator (its ceiling is below 1 and stands beside it), `majority` with most of them. `mellow` is the rule
of Mellow's program: the gold answer is contained in the output, so that "know" is "no".
"""

from collections import Counter
from pathlib import Path

from earwise.answers import extract_answer, mentions
from earwise.answers.option_texts import normalise
from earwise.evaluation.metrics.mellow import contains_answer
from earwise.evaluation.published.choice_file import check_audio, locate, question_turn, read_items
from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.published.speech_files import is_table
from earwise.evaluation.published.table_rows import clip_names
from earwise.evaluation.task import Task
from earwise.types import Example, Score

YES_NO = ("yes", "no")


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read the CSV of a split, or a table: one example a question, with the votes of its annotators in `meta`.

    Args:
        path: The file, or a name on a hub.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if the file is wrong.
    """
    return _table(path, audio_root) if is_table(path) else load_source("clothoaqa")(path, audio_root)


def _table(path: Path, audio_root: Path | None) -> list[Example]:
    """A table with a row for each annotator's answer, or for each question.

    Raises:
        DataError: if a column is missing, or none of the clips exists.
    """
    votes: dict[tuple[str, str], Counter[str]] = {}
    for row in read_items(path, ("audio", "question", "answer"), ""):
        (clip, *_) = clip_names(row["audio"])
        votes.setdefault((clip, str(row["question"])), Counter())[str(row["answer"]).strip().lower()] += 1
    examples = []
    for number, ((clip, question), answers) in enumerate(votes.items(), 1):
        most = max(answers.values())
        choices = YES_NO if set(answers) <= set(YES_NO) else ()
        example = Example(
            id=f"clothoaqa-{number}",
            turns=question_turn([locate(clip, path, audio_root)], question),
            answer=tuple(answer for answer, count in answers.items() if count == most),
            choices=choices,
            task="yes_no" if choices else "open",
            group=clip,
            split="test",
            meta={"votes": dict(answers)},
        )
        examples.append(example)
    check_audio(examples, path)
    return examples


ONE_WORD = "Answer the question using a single word only."
"""Instruction of lmms-eval 0.7.3."""


def prompt(example: Example) -> str:
    """The question, with the instruction of Mellow's yes/no questions or lmms-eval's for one word."""
    if set(example.choices) == set(YES_NO):
        return f"{example.question} Answer yes or no only."
    return f"{example.question}\nAnswer the question using a single word only."


def score(example: Example, completion: str) -> Score:
    """Agreement with the accepted answer, with single annotators, and by containment.

    Args:
        example: The item; `meta["votes"]` counts the annotators' answers.
        completion: The model's output.
    """
    text = extract_answer(completion) or ""
    votes: Counter[str] = Counter(dict(example.meta.get("votes") or dict.fromkeys(example.answer, 1)))
    agreeing = sum(count for answer, count in votes.items() if normalise(answer) == normalise(text))
    values = {
        "majority": float(normalise(text) in {normalise(gold) for gold in example.answer}),
        "row": agreeing / votes.total() if votes else 0.0,
        "lenient": float(any(mentions(text, gold) for gold in example.answer)),
        "mellow": float(any(contains_answer(completion, gold) for gold in example.answer)),
    }
    if not text.strip():
        return Score(values, "unparsed", None, "the output is empty")
    return Score(values, "ok", text)


TASK = Task(
    name="clothoaqa",
    load=load,
    score=score,
    scorer="clothoaqa-votes/1",
    score_notes={
        "majority": "the output is the answer of most annotators, up to case and punctuation",
        "row": "mean agreement with single annotators; below 1 even for a perfect model",
        "lenient": "the output mentions the answer of most annotators as whole words",
        "mellow": "the answer is contained in the output, as in Mellow's program",
    },
    headline="majority",
    prompts={"clothoaqa": prompt, "lmms-eval": lambda example: f"{example.question}\n{ONE_WORD} "},
    default_style="clothoaqa",
    source="Lipping et al. 2022 (EUSIPCO), Zenodo 6473207",
    licence="MIT (annotations); clips of Clotho with their own Freesound licences",
    unverified="the published CSV and hub names (TwinkStart/ClothoAQA, lmms-lab-audio/ClothoAQA)",
)
