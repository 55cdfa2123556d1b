"""MMAU-Pro (arXiv:2508.13992): 5,305 items with options, open questions, and instructions about the form of an answer.

Source: sonalkum/MMAUPro@960e93a; data on a hub (`gamma-lab-umd/MMAU-Pro`, `test.parquet` and `data.zip`): rows `id,
audio_path` (one or several), `question, choices, answer, category, task_identifier, kwargs`. The category says how an
item is scored: `open` by a judge, `instruction following` by rules (compared case by case, `tests/golden`), all others
by their options. The overall figure is the mean over all items, as published. The authors' program takes
the option whose embedding (NV-Embed-v2) is nearest to the whole output, so that nothing can be unreadable: `official`,
with `--embeddings MODEL`. `score`, the headline, reads the option from the output, and an unreadable one is wrong.
Deviations: items with fewer than two options, which that program drops, are scored as short answers; an empty output
follows no instruction and is near no option. The wording of the judge's prompt is ours; criteria, scale and form are
theirs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from earwise.engine.embeddings.embedders import Embedder
from earwise.errors import DataError
from earwise.evaluation.aggregates.clusters import clip_clusters, mean_row
from earwise.evaluation.judge.judging import JudgePrompt, JudgeRequest, Judging, Values, request
from earwise.evaluation.judge.nearest import nearest_options
from earwise.evaluation.judge.replies import final_text
from earwise.evaluation.metrics import mmau
from earwise.evaluation.metrics.instructions.mmau_pro import follows_instruction
from earwise.evaluation.metrics.judgements import MMAUPRO_CRITERIA, read_mmaupro_scores
from earwise.evaluation.published.choice_file import check_audio, list_of_texts, locate, question_turn, read_items
from earwise.evaluation.published.table_rows import clip_names, first_value
from earwise.evaluation.results import Row
from earwise.evaluation.scores import Metric, mean_scores
from earwise.evaluation.task import Task
from earwise.types import Example, Score

REQUIRED_FIELDS = ("id", "question", "answer", "category")
OPEN, INSTRUCTION = "open", "instruction following"
MOST_POINTS = 5
PROMPT = JudgePrompt(
    "mmaupro-open/1",
    """Grade a model's answer to an open question about a recording. You do not hear the recording; take the reference \
answer as true.

Question: {question}

Reference answer: {reference}

The model's answer: {response}

Give four scores from 1 to 5, where 5 is best, each with a reason of one sentence: correctness (do the facts agree \
with the reference?), relevance (does it answer this question?), completeness (is everything that matters in the \
reference there?) and clarity (is it easy to follow?). Then give their average. Reply in this form:

CORRECTNESS: score - reason
RELEVANCE: score - reason
COMPLETENESS: score - reason
CLARITY: score - reason
OVERALL: average - reason""",
    system="You grade answers fairly and by the same measure.",
    max_tokens=512,
)


def load(path: Path, audio_root: Path | None = None) -> list[Example]:
    """Read MMAU-Pro's Parquet file, or the same rows as JSON.

    Args:
        path: The file, or a name on a hub.
        audio_root: Folder that holds `data/` or the clips themselves; None: the file's own folder.
    Raises:
        DataError: if the file is not MMAU-Pro's, or none of its clips exists.
    """
    examples = []
    for number, row in enumerate(read_items(path, REQUIRED_FIELDS), 1):
        names = clip_names(first_value(row, ("audio", "audio_path", "audio_paths")))
        if not names:
            raise DataError(f"{path}: item {number}: audio_path is empty; download the file again")
        clips = [locate(name, path, audio_root) for name in names]
        choices = list_of_texts(row.get("choices")) or []
        category = str(row["category"])
        example = Example(
            id=str(row["id"]),
            turns=question_turn(clips, str(row["question"])),
            answer=(str(row["answer"]),) if row["answer"] not in (None, "") else (),
            choices=tuple(map(str, choices)) if len(choices) > 1 and category not in (OPEN, INSTRUCTION) else (),
            task=category if category in (OPEN, INSTRUCTION) else "closed",
            category=category,
            source="MMAU-Pro",
            group=" ".join(names),
            split="test",
            meta={"task_identifier": row.get("task_identifier"), "kwargs": _kwargs(row.get("kwargs"), number, path)},
        )
        examples.append(example)
    check_audio(examples, path)
    return examples


def _kwargs(value: Any, number: int, path: Path) -> dict[str, Any]:
    """Numbers and words of an instruction, which tables hold as JSON or with a null for each name that is not used.

    Raises:
        DataError: if they are no object.
    """
    try:
        values = json.loads(value) if isinstance(value, str) and value else value or {}
        return {name: inner for name, inner in values.items() if inner is not None}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: item {number}: kwargs is {value!r}, no object; download the file again") from error


def prompt(example: Example) -> str:
    """The question, and its options with letters after a blank line, as NeMo-Skills asks."""
    if not example.choices:
        return example.question
    lines = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, example.choices, strict=False)]
    return "\n".join([example.question, "", *lines])


def score(example: Example, completion: str) -> Score:
    """Whether the option that is read is right, or the instruction is followed; open answers are left to the judge."""
    text = completion.strip()
    if example.category == OPEN:
        return Score({}, "ok" if text else "unparsed", text or None, "" if text else "the output is empty")
    if example.category == INSTRUCTION:
        follows = bool(text) and follows_instruction(
            str(example.meta["task_identifier"]), completion, example.meta["kwargs"], example.question
        )
        explanation = "" if follows else f"does not follow {example.meta['task_identifier']!r}"
        return Score({"score": float(follows)}, "ok" if text else "unparsed", text or None, explanation)
    general = mmau.score(example, completion)
    return Score({"score": general.values["lenient"]}, general.status, general.answer, general.explanation)


def with_embeddings(task: Task, embedder: Embedder) -> Task:
    """The task with the score `nearest` of items with options, and the authors' figure `official`."""
    note = f"the option is nearest to the output, by embeddings of {embedder.name}"
    return replace(
        task,
        score_notes={**task.score_notes, "nearest": note},
        add_scores=lambda rows: _nearest_scores(rows, embedder),
    )


def _nearest_scores(rows: Sequence[Row], embedder: Embedder) -> list[Row]:
    """The rows with options with the score `nearest`."""
    places = [place for place, row in enumerate(rows) if row["choices"] and row["gold"] and row["output"].strip()]
    outputs, options = [rows[place]["output"] for place in places], [rows[place]["choices"] for place in places]
    options_taken = dict(zip(places, nearest_options(embedder, outputs, options), strict=True))
    scored = list(rows)
    for place, row in enumerate(rows):
        if row["choices"] and row["scores"] is not None:
            right = place in options_taken and row["choices"][options_taken[place]] in row["gold"]
            scored[place] = row | {"scores": row["scores"] | {"nearest": float(right)}}
    return scored


def aggregate(rows: Sequence[Row]) -> dict[str, Metric]:
    """Means of the scores, and `official` where embeddings decided the items with options."""
    metrics = mean_scores(rows)
    if all("nearest" in row["scores"] for row in rows if row["choices"]) and any(row["choices"] for row in rows):
        values = [row["scores"]["nearest"] if row["choices"] else row["scores"]["score"] for row in rows]
        metrics["official"] = mean_row(values, clip_clusters(rows))
    return metrics


def remarks(rows: Sequence[Row]) -> list[str]:
    """A sentence about the authors' reading, where no embeddings were at hand."""
    if all("nearest" in row["scores"] for row in rows if row["choices"]):
        return []
    return [
        "score reads the option from the output; the authors take the option whose embedding is nearest to it: add "
        "--embeddings MODEL (theirs is NV-Embed-v2) for that figure, official"
    ]


def requests(example: Example, row: Row) -> Sequence[JudgeRequest]:
    """One request for an open answer."""
    fields = {"question": example.question, "reference": " / ".join(example.answer), "response": row["output"].strip()}
    return [request(row, "open", PROMPT, fields)]


def read(example: Example, part: str, text: str) -> float | None:
    """The overall score; None if the reply has none of the scores, or one off the scale. Single missing ones are 3, as
    in the authors' program."""
    reply = final_text(text)
    if not any(f"{name}:" in reply.lower() for name in (*MMAUPRO_CRITERIA, "overall")):
        return None
    overall = read_mmaupro_scores(reply)["overall"]
    return overall if 1 <= overall <= MOST_POINTS else None


def judge_scores(example: Example, row: Row, values: Values) -> dict[str, float]:
    """The overall score divided by the 5 points that are possible; 0 for an empty answer."""
    return {"score": values["open"] / MOST_POINTS if values else 0.0}


def ideal_answer(example: Example) -> str:
    """The accepted answer; for an instruction, one of a few texts that follows it."""
    if example.category != INSTRUCTION:
        return example.answer[0] if example.answer else ""
    name, kwargs = str(example.meta["task_identifier"]), example.meta["kwargs"]
    words: Mapping[str, Any] = kwargs
    texts = [str(value) for value in words.values() if isinstance(value, str)]
    candidates = [*texts, "yes", "YES", '"yes"', *example.answer]
    return next((text for text in candidates if follows_instruction(name, text, kwargs, example.question)), "")


JUDGING = Judging(
    prompts=(PROMPT,),
    score_notes={
        "score": "the option that is read is right; the instruction is followed; or the judge's overall score of an "
        "open answer, 5 points as 100"
    },
    headline="score",
    requests=requests,
    read=read,
    score=judge_scores,
    sample_reply=lambda example, part, good: f"CORRECTNESS: {5 if good else 1}\nOVERALL: {5 if good else 1}",
    applies=lambda example: example.category == OPEN,
)
TASK = Task(
    name="mmau-pro",
    load=load,
    score=score,
    scorer=f"mmau-pro/1, {mmau.SCORER}",
    score_notes=JUDGING.score_notes,
    headline="score",
    aggregate=aggregate,
    remarks=remarks,
    judging=JUDGING,
    with_embeddings=with_embeddings,
    needs_answer=False,
    ideal_answer=ideal_answer,
    prompts={"nemo-skills": prompt},
    default_style="nemo-skills",
    max_new_tokens=512,
    source="arXiv:2508.13992, sonalkum/MMAUPro",
    licence="see the benchmark's page on the hub",
    unverified="the published file (gamma-lab-umd/MMAU-Pro); its columns are those that the authors' program reads",
)
