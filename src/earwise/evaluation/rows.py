"""The result of one item into one row of `samples.jsonl`.

Between the request pipeline and `evaluation.run`, which appends the rows. The field names are a format on disk: rows of
earlier versions are read by the same code, so they do not change.
"""

import math
from pathlib import Path
from typing import Any

from earwise.algorithms import rewards
from earwise.algorithms.confidence import completion_confidence
from earwise.answers import parse
from earwise.data.clip_fields import segments_field
from earwise.engine.request_pipeline import RequestAudio, RequestResult
from earwise.evaluation.aggregates.draws import CONFIDENCE, CONFIDENCES, DRAWS
from earwise.evaluation.items import EvalItem
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.results import Row
from earwise.evaluation.scores import LOWER_IS_BETTER
from earwise.evaluation.task import Task
from earwise.files import relative_path
from earwise.prompts import TAGGED_STYLES, THINKING_STYLES
from earwise.types import Completion, Example

_NO_EXAMPLE = Example("", ())
"""Stands in for the example: the format rewards look at the completion alone."""
_NO_AUDIO = RequestAudio((), (), False)
"""Stands in for the audio of an item whose clip could not be read."""


def is_formatted(completion: str, style: str) -> bool | None:
    """Whether a completion is one answer block and nothing else (after one reasoning block in thinking styles); None in
    styles without tags.

    >>> is_formatted("<answer>dog</answer>", "answer"), is_formatted("dog", "answer"), is_formatted("dog", "open")
    (True, False, None)
    """
    if style not in TAGGED_STYLES:
        return None
    reward = rewards.format_think if style in THINKING_STYLES else rewards.format_answer
    if style == "adaptive":
        reward = rewards.format_adaptive
    return reward(_NO_EXAMPLE, completion) == 1


def answer_confidence(completion: Completion) -> float | None:
    """The probability that a model gave to the answer it wrote: the product over the tokens from the answer on, given
    the reasoning before it.

    >>> answer_confidence(Completion("dog", (5, 6), (math.log(0.5), math.log(0.5))))
    0.25

    Args:
        completion: The completion; without log-probabilities of its tokens the result is None, as it is if there is no
            answer.
    Returns:
        A probability in [0, 1], or None.
    """
    logprobs = completion.logprobs[completion.reasoning_tokens or 0 :]
    return math.exp(min(0.0, math.fsum(logprobs))) if logprobs else None


def draw_fields(example: Example, completion: Completion, task: Task, window: int) -> dict[str, Any]:
    """What a row keeps of each of its completions where several were drawn.

    Args:
        example: The item.
        completion: The completion.
        task: The task, which scores it.
        window: Tokens of a group of its confidence.
    """
    score = task.score(example, completion.text)
    confidence = {name: completion_confidence(completion.confidences, name, window) for name in CONFIDENCES}
    return {
        "output": completion.text,
        "answer": score.answer,
        "choice": parse(completion.text, example.choices).choice,
        "status": score.status,
        "scores": dict(score.values) if task.is_scored(example) else None,
        "finish_reason": completion.finish_reason,
        **({CONFIDENCE: confidence} if completion.confidences else {}),
    }


def sample_row(
    item: EvalItem, result: RequestResult, task: Task, options: EvalOptions, out: Path, truncated: bool
) -> Row:
    """The row of one item; an item without a completion is a row with `status: error` and scores of 0.

    Args:
        item: The item.
        result: What the engine returned for it.
        task: The task, which scores the completion.
        options: How the run asks.
        out: Folder of the run; audio paths are written relative to it.
        truncated: Whether the model received only the beginning of a clip.
    """
    example, audio = item.example, result.audio or _NO_AUDIO
    completion = result.completions[0] if result.completions else None
    several = result.completions if len(result.completions) > 1 else []
    draws = [draw_fields(example, draw, task, options.confidence_window) for draw in several]
    text = completion.text if completion else ""
    score = task.error_score(example, str(result.error)) if completion is None else task.score(example, text)
    parsed = parse(text, example.choices)
    meta = example.meta
    return {
        "id": example.id,
        "permutation": item.permutation,
        "prompt": item.prompt_text,
        "output": text,
        "reasoning": parsed.reasoning,
        "answer": score.answer,
        "status": score.status,
        "scores": dict(score.values) if task.is_scored(example) else None,
        "explanation": score.explanation,
        "task": example.task,
        "category": example.category,
        "sub_category": meta.get("sub-category"),
        "difficulty": example.difficulty,
        "language": example.language,
        "group": example.group,
        "benchmark": f"{meta['benchmark']} {meta['version']}" if "benchmark" in meta and "version" in meta else None,
        "question": example.question,
        "choices": list(example.choices),
        "gold": list(example.answer),
        "gold_position": next((k for k, choice in enumerate(example.choices) if choice in example.answer), None),
        "choice": parsed.choice,
        "formatted": is_formatted(text, options.style),
        "finish_reason": completion.finish_reason if completion else None,
        "reasoning_tokens": completion.reasoning_tokens if completion else None,
        "confidence": answer_confidence(completion) if completion else None,
        "audio": [relative_path(clip.path, out) for clip in item.clips],
        "audio_sha256": " ".join(audio.sha256),
        "silent": audio.is_silent,
        "truncated": truncated and result.audio is not None,
        "pieces": audio.num_chunks,
        **({DRAWS: draws} if draws else {}),
        **({LOWER_IS_BETTER: sorted(task.lower_is_better)} if task.lower_is_better else {}),
        **({"counts": {name: list(counts) for name, counts in score.counts.items()}} if score.counts else {}),
    } | segments_field(item.clips)
