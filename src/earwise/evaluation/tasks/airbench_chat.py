"""AIR-Bench, chat part (arXiv:2402.07729): open questions on speech, sound, music and mixtures, scored by a judge.

Source: OFA-Sys/AIR-Bench@9832476, file `Chat_meta.json` of the published data: a list of objects `path, question,
answer_gt, meta_info, task_name, dataset_name, uniq_id`; clips as in the foundation part. The prompt is the question.
The judge reads a description of the sound (`meta_info`), the question, and two answers, the reference and the model's,
in both orders; it gives each 1 to 10. Deviations: temperature 0 (the authors' program draws half of its judgements at
temperature 2), an empty answer scores 0 without a judge, nothing is left out of the denominator, and the wording of the
prompt is ours: the authors' layout, criteria, scale and form of the reply.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earwise.errors import DataError
from earwise.evaluation.judge.judging import JudgePrompt, JudgeRequest, Judging, Values, request
from earwise.evaluation.judge.replies import final_text
from earwise.evaluation.metrics.judgements import (
    AIRBENCH_GROUPS,
    airbench_groups,
    airbench_overall,
    read_airbench_pair,
)
from earwise.evaluation.published.choice_file import check_audio, locate, question_turn, read_items
from earwise.evaluation.results import EvalRun, Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.evaluation.tasks.airbench_foundation import clip_name
from earwise.files import write_jsonl
from earwise.types import Example, Score

REQUIRED_FIELDS = ("question", "answer_gt", "meta_info", "task_name", "dataset_name")
MOST_POINTS = 10
MIXED = ("speech_and_sound", "speech_and_music")
"""The groups whose mean the leaderboard prints as mixed audio."""
REFERENCE_FIRST, MODEL_FIRST = "reference first", "model first"
PROMPT = JudgePrompt(
    "airbench-pair/1",
    """Two assistants were asked about a recording. You do not hear it, but read what is in it.

[Recording]
{description}

[Question]
{question}

[Assistant 1]
{first}

[Assistant 2]
{second}

[Your task]
Compare both answers with the recording and the question. How helpful, relevant, accurate and comprehensive is each of \
them? Give each assistant a score from 1 to 10; more is better. Write a single line with two whole numbers and a blank \
between them, the score of assistant 1 first, and nothing else.""",
    max_tokens=16,
)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read `Chat_meta.json`.

    Args:
        path: The file.
        audio_root: Folder that holds a folder of clips for each task and data set; None: the file's own folder.
    Raises:
        DataError: if the file is not AIR-Bench's, or none of its clips exists.
    """
    examples = []
    for number, row in enumerate(read_items(path, REQUIRED_FIELDS, ""), 1):
        if row["task_name"] not in AIRBENCH_GROUPS:
            known = ", ".join(AIRBENCH_GROUPS)
            raise DataError(f"{path}: item {number}: task_name {row['task_name']!r} is none of {known}")
        clip = locate(clip_name(row), path, audio_root)
        example = Example(
            id=_identifier(row, number),
            turns=question_turn([clip], str(row["question"])),
            answer=(str(row["answer_gt"]),),
            task=row["task_name"],
            category=AIRBENCH_GROUPS[row["task_name"]],
            source=row["dataset_name"],
            group=str(clip),
            split="test",
            meta={"meta_info": str(row["meta_info"])},
        )
        examples.append(example)
    check_audio(examples, path)
    return examples


def score(example: Example, completion: str) -> Score:
    """Whether there is an answer; its scores are the judge's."""
    text = completion.strip()
    return Score({}, "ok" if text else "unparsed", text or None, "" if text else "the output is empty")


def requests(example: Example, row: Row) -> Sequence[JudgeRequest]:
    """Both orders of the reference answer and the model's."""
    answers = (example.answer[0], row["output"].strip())
    fields = {"description": example.meta["meta_info"], "question": example.question}
    return [
        request(row, part, PROMPT, fields | {"first": first, "second": second})
        for part, (first, second) in ((REFERENCE_FIRST, answers), (MODEL_FIRST, answers[::-1]))
    ]


def read(example: Example, part: str, text: str) -> tuple[int, int] | None:
    """The scores of the reference and of the model; None for a reply that is not two whole numbers from 1 to 10."""
    pair = read_airbench_pair(final_text(text))
    if pair is None or min(pair) < 1:
        return None
    return pair[::-1] if part == MODEL_FIRST else pair


def judge_scores(example: Example, row: Row, values: Values) -> dict[str, float]:
    """Means of both orders, divided by the 10 points that are possible."""
    pairs = list(values.values())
    if not pairs:
        return {"judge": 0.0, "win": 0.0, "reference": 0.0}
    return {
        "judge": sum(model for _, model in pairs) / len(pairs) / MOST_POINTS,
        "win": sum(model > reference for reference, model in pairs) / len(pairs),
        "reference": sum(reference for reference, _ in pairs) / len(pairs) / MOST_POINTS,
    }


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores; for each group that of the authors' program over both orders; `mixed` (mean of the two
    groups with speech and something else) and the overall score, where all groups of it are there. All points are
    divided by the 10 that are possible."""
    metrics = mean_scores(rows)
    points: dict[str, list[float]] = {}
    counts = Counter(AIRBENCH_GROUPS[row["task"]] for row in rows)
    for part in (REFERENCE_FIRST, MODEL_FIRST):
        judgements = [(row["task"], pair) for row in rows for pair in _pairs(row, part)]
        for group, scores in airbench_groups(judgements, part == MODEL_FIRST).items():
            points.setdefault(group, []).append(scores.model_mean / MOST_POINTS)
    means = {group: sum(values) / len(values) for group, values in points.items()}
    for group, value in means.items():
        metrics[group] = {"accuracy": value, "n": counts[group]}
    if all(group in means for group in MIXED):
        mixed = sum(means[group] for group in MIXED) / len(MIXED)
        metrics["mixed"] = {"accuracy": mixed, "n": sum(counts[group] for group in MIXED)}
    overall = airbench_overall(means)
    return metrics if overall is None else metrics | {"overall": {"accuracy": overall, "n": len(rows)}}


def _pairs(row: Row, part: str) -> list[tuple[int, int] | None]:
    """What the judges wrote about a row under one order of the answers; no points for an empty answer, which none
    read."""
    texts = [entry["texts"] for entry in row.get("judgements", [])]
    return [read_airbench_pair(final_text(parts[part])) if part in parts else (0, 0) for parts in texts]


def write_predictions(run: EvalRun, path: Path, source: Path) -> int:
    """Write the file that the authors' own judge program reads: the items with the answers under `response`.

    Returns:
        Number of items without an answer.
    """
    answers = {name: row["output"] for name, row in run.first.items()}
    rows = [
        row | {"response": answers.get(_identifier(row, number), "")}
        for number, row in enumerate(read_items(source, REQUIRED_FIELDS, ""), 1)
    ]
    write_jsonl(path, rows)
    return sum(not row["response"] for row in rows)


def _identifier(row: Mapping[str, Any], number: int) -> str:
    return f"airbench-chat-{row.get('uniq_id', number)}"


JUDGING = Judging(
    prompts=(PROMPT,),
    score_notes={
        "judge": "the judge's score of the model's answer, mean of both orders; 10 points are written as 100",
        "win": "share of orders in which the model's answer has more points than the reference",
        "reference": "the judge's score of the reference answer",
    },
    headline="judge",
    requests=requests,
    read=read,
    score=judge_scores,
    sample_reply=lambda example, part, good: ("1 10" if good else "10 1") if part == REFERENCE_FIRST else (
        "10 1" if good else "1 10"
    ),
)  # fmt: skip
TASK = Task(
    name="airbench-chat",
    load=load,
    score=score,
    scorer="airbench-chat/1",
    score_notes=JUDGING.score_notes,
    headline="judge",
    aggregate=aggregate,
    judging=JUDGING,
    write_predictions=write_predictions,
    predictions_name="predictions.jsonl",
    default_style="open",
    max_new_tokens=256,
    source="arXiv:2402.07729, OFA-Sys/AIR-Bench",
    licence="Apache-2.0 (repository)",
    unverified="the published files; rows are read as the authors' program names them",
)
