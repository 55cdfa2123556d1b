"""Multilingual-Alpaca-Speech (XS-CoT, arXiv:2504.20835): spoken instructions in Japanese, German and French.

Data: the published lists (`ja.list`, `de.list`, `fr.list`), read by `data/sources/multilingual_alpaca_speech.py`. The
paper's measure is a GPT-score of the answer in the spoken language; neither its prompt nor its scale is published, so
both are ours: 1 to 5 by a judge that reads the instruction, the reference answer and the model's last part. `earwise
compare` prints the relative change between two runs, which is what the paper states. chrF against the reference stands
beside it and needs no judge; the delay before the answer is in the rows (`reasoning_tokens`).
"""

from collections.abc import Sequence
from pathlib import Path

from earwise.answers import extract_answer
from earwise.config.resolve import require
from earwise.evaluation.judge.judging import JudgePrompt, JudgeRequest, Judging, Values, request
from earwise.evaluation.judge.replies import read_json_score
from earwise.evaluation.metrics.translation import corpus_chrf
from earwise.evaluation.published.source_file import load_source
from earwise.evaluation.results import Row
from earwise.evaluation.task import Task
from earwise.types import Example, Score

LANGUAGES = {"ja": "Japanese", "de": "German", "fr": "French", "en": "English"}
MOST_POINTS = 5
PROMPT = JudgePrompt(
    "xs-cot-score/1",
    """A voice assistant was given a spoken instruction in {language} and should answer in {language}.

Instruction: {instruction}

Reference answer, which is good but not the only good one: {reference}

The assistant's answer: {response}

Grade the assistant's answer from 1 (useless) to 5 (excellent) by how well it does what was asked, how right it is, \
and how natural its {language} is. An answer in another language is useless.

Reply with JSON only: {"reason": "one sentence", "score": N}""",
    max_tokens=256,
)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read a published list.

    Args:
        path: The file, named by its language.
        audio_root: Folder of the clips; None: the file's own folder.
    Raises:
        DataError: if a row cannot be used, or none of the clips exists.
    """
    return load_source("multilingual-alpaca-speech")(path, audio_root)


def score(example: Example, completion: str) -> Score:
    """chrF of the answer, without the parts before it."""
    require("sacrebleu", "eval", "chrF scores")
    text = (extract_answer(completion) or "").strip()
    chrf = max((corpus_chrf([gold], [text]) for gold in example.answer), default=0.0) / 100 if text else 0.0
    return Score({"chrf": chrf}, "ok" if text else "unparsed", text or None, "" if text else "the output has no answer")


def requests(example: Example, row: Row) -> Sequence[JudgeRequest]:
    """One request about the answer; none if the output ends before it."""
    if not row["answer"]:
        return []
    fields = {
        "language": LANGUAGES.get(example.language, example.language), "instruction": str(example.meta["instr_n"]),
        "reference": example.answer[0], "response": str(row["answer"]),
    }  # fmt: skip
    return [request(row, "score", PROMPT, fields)]


def judge_scores(example: Example, row: Row, values: Values) -> dict[str, float]:
    """The score divided by the 5 points that are possible; 0 without an answer."""
    return {"judge": values.get("score", 0.0) / MOST_POINTS}


JUDGING = Judging(
    prompts=(PROMPT,),
    score_notes={"judge": "the judge's score of the answer in the spoken language; 5 points are written as 100"},
    headline="judge",
    requests=requests,
    read=lambda example, part, text: read_json_score(text, 1, MOST_POINTS),
    score=judge_scores,
    sample_reply=lambda example, part, good: f'{{"score": {MOST_POINTS if good else 1}}}',
    alone=False,
)
TASK = Task(
    name="multilingual-alpaca",
    load=load,
    score=score,
    scorer="multilingual-alpaca-chrf/1",
    score_notes={"chrf": "chrF of the answer against the reference, divided by 100"},
    headline="chrf",
    judging=JUDGING,
    default_style="open",
    max_new_tokens=1024,
    source="arXiv:2504.20835, ASLP-lab/Multilingual-Alpaca-Speech",
    licence="as stated with the data set",
    unverified="the published lists; fields of the test archive are those of the paper's page",
)
