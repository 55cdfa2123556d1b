"""Preference data for DPO, made of scored completions: those with a better score against those with a worse one.

Between the completions that an evaluation or a training run has logged and a manifest with `chosen` and `rejected`.
Completions are taken word for word, so that a policy learns from its own. Questions whose completions all have the same
score are left out and counted. Qwen2-Audio (arXiv:2407.10759) prefers by human judgement; here any score will do.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from earwise.answers import parse
from earwise.answers.option_texts import normalise
from earwise.data import manifest
from earwise.errors import DataError
from earwise.files import read_log
from earwise.prompts import target_text
from earwise.types import Example

LOG_NAMES = ("samples.jsonl", "rollouts.jsonl")
"""Logs that completions are read from: of an evaluation, and of a GRPO training."""
ScoreKind = Literal["official", "strict", "lenient"]


@dataclass(frozen=True, slots=True)
class PreferenceOptions:
    """Which completions become preferences."""

    score: ScoreKind = "lenient"
    """Score of an evaluation that counts; for rollouts it is the reward."""
    margin: float = 1.0
    """Smallest difference of scores between a chosen and a rejected completion; above 0."""
    max_per_side: int = 4
    """Largest number of chosen, and of rejected, completions of a row, the first ones in the logs."""
    gold_style: str | None = None
    """Prompt style in which the true answer is chosen where no completion is right; None leaves such rows out."""

    def __post_init__(self) -> None:
        if self.margin <= 0:
            raise DataError(f"margin {self.margin} must be above 0: completions with equal scores are no preference")


@dataclass(frozen=True, slots=True)
class ScoredCompletion:
    """A completion and its score."""

    id: str
    """Id of the example that it answers."""
    text: str
    """The completion."""
    score: float
    """Its score or reward."""


def build_preferences(
    examples: Sequence[Example], runs: Sequence[Path], out: Path, options: PreferenceOptions | None = None
) -> dict[str, Any]:
    """Write a manifest of the examples that have better and worse completions.

    Args:
        examples: The examples that were asked.
        runs: Folders or logs of evaluations and trainings; their completions are taken together.
        out: Manifest to write.
        options: Which completions become preferences; None takes the defaults.
    Returns:
        Numbers of `rows`, `replies` (completions) and `pairs`, `counts` of rows by outcome, and `out`.
    Raises:
        DataError: if there are no completions in a run, or no example has better and worse ones.
    """
    options = options or PreferenceOptions()
    completions = [completion for run in runs for completion in read_completions(run, options.score)]
    counts: Counter[str] = Counter()
    rows = list(prefer(examples, completions, options, counts))
    if not rows:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        raise DataError(
            f"no row has a better and a worse completion ({outcomes}); evaluate again at temperature 1, or choose the "
            "true answer with --gold"
        )
    manifest.write(out, rows)
    num_pairs = sum(len(row.chosen) * len(row.rejected) for row in rows)
    return {
        "rows": len(rows), "replies": len(completions), "pairs": num_pairs, "counts": dict(counts), "out": str(out),
    }  # fmt: skip


def read_completions(path: Path, score: ScoreKind = "lenient") -> list[ScoredCompletion]:
    """Read the scored completions of an evaluation or a training run.

    Args:
        path: One of the logs `LOG_NAMES`, or a folder that holds one.
        score: Score of an evaluation that counts.
    Raises:
        DataError: if there is no such file, or a row of it has no completions with scores.
    """
    logs = [path] if path.is_file() else [path / name for name in LOG_NAMES if (path / name).is_file()]
    if not logs:
        raise DataError(
            f"{path}: holds neither {' nor '.join(LOG_NAMES)}; give the folder of an evaluation or a training"
        )
    completions: list[ScoredCompletion] = []
    for log in logs:
        for number, row in enumerate(read_log(log), 1):
            try:
                completions += _row_completions(row, score)
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{log}:{number}: this row has no completions with scores ({error}); give a log of the kind "
                    f"{' or '.join(LOG_NAMES)}"
                ) from error
    return completions


def prefer(
    examples: Iterable[Example],
    completions: Sequence[ScoredCompletion],
    options: PreferenceOptions,
    counts: Counter[str],
) -> Iterator[Example]:
    """Make preferences of completions.

    Args:
        examples: The examples that were asked.
        completions: Their completions; empty texts are ignored, and of equal texts the first one's score counts.
        options: Which completions become preferences.
        counts: Gains the number of rows by outcome: "written", "no difference", "not asked", and, besides "written",
            "true answer chosen".
    Returns:
        The examples with completions on both sides, with `chosen` and `rejected`.
    """
    scores_by_id: dict[str, dict[str, float]] = {}
    for completion in completions:
        if completion.text.strip():
            scores_by_id.setdefault(completion.id, {}).setdefault(completion.text, completion.score)
    for example in examples:
        scores = scores_by_id.get(example.id)
        if not scores:
            counts["not asked"] += 1
            continue
        best = max(scores.values())
        chosen = [text for text, score in scores.items() if score == best]
        if options.gold_style is not None and example.answer and not any(_is_right(example, text) for text in chosen):
            chosen, best = [target_text(example, options.gold_style)], float("inf")
            counts["true answer chosen"] += 1
        rejected = [text for text, score in scores.items() if score <= best - options.margin and text not in chosen]
        if not rejected:
            counts["no difference"] += 1
            continue
        counts["written"] += 1
        limit = options.max_per_side
        yield replace(example, chosen=tuple(chosen[:limit]), rejected=tuple(rejected[:limit]))


def _row_completions(row: Mapping[str, Any], score: ScoreKind) -> list[ScoredCompletion]:
    """The completions in one row of a log; none if the row has no scores."""
    if "completions" in row:
        if row["rewards"] is None:  # sample answers of a stage without rewards
            return []
        pairs = zip(row["completions"], row["rewards"], strict=True)
        return [ScoredCompletion(row["id"], text, float(reward)) for text, reward in pairs]
    if row["status"] == "error" or not row["scores"]:
        return []
    return [ScoredCompletion(row["id"], row["output"], float(row["scores"][score]))]


def _is_right(example: Example, text: str) -> bool:
    """Whether a completion gives one of the accepted answers."""
    answer = parse(text, example.choices).answer
    return answer is not None and normalise(answer) in {normalise(accepted) for accepted in example.answer}
