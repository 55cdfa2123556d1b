"""Judges at work: what they are asked about the rows of a run, what it will cost, and the rows with their scores.

rows -> requests of the task's `Judging` -> those without a judgement -> judges -> `judgements.jsonl` -> scores in rows

A judge that is unreachable or answers nonsense ends the evaluation with one line; answers and judgements stay on disk,
and the same command asks only what is missing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earwise import progress
from earwise.answers import parse
from earwise.engine.remote.openai_http import estimate_tokens
from earwise.errors import ConfigError, EngineError
from earwise.evaluation.aggregates.draws import DRAWS
from earwise.evaluation.judge.judgements import JudgementLog, judgement_key
from earwise.evaluation.judge.judging import JudgeRequest, Judging, row_key
from earwise.evaluation.judge.models import JudgeModel, JudgeReply
from earwise.evaluation.results import Row
from earwise.evaluation.task import Task
from earwise.types import Example

TRIES = 3
"""How often a judge is asked for a reply that can be read, in one run."""


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """What a judge will be asked."""

    judge: str
    requests: int
    """Requests that will be sent."""
    kept: int
    """Requests whose judgement is there already."""
    prompt_tokens: int
    """Estimated tokens of the prompts."""
    reply_tokens: int
    """Most tokens that the replies can have."""

    def describe(self) -> str:
        """The cost in one line."""
        return (
            f"judge {self.judge}: {self.requests} requests ({self.kept} more are kept from before), about "
            f"{self.prompt_tokens} tokens of prompts and at most {self.reply_tokens} of replies"
        )


@dataclass(frozen=True, slots=True)
class JudgePanel:
    """One or several judges that score the rows of a run."""

    judging: Judging
    judges: tuple[JudgeModel, ...]
    on_cost: Callable[[JudgeCost], None] = lambda cost: None
    """Called for each judge before it is asked."""

    def judge_rows(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> list[Row]:
        """The rows with the judges' scores; with several judges the mean of theirs.

        Args:
            examples: The items.
            rows: All rows of the run.
            folder: Folder of the run, which keeps the judgements.
        Raises:
            EngineError: if a judge is unreachable, or some of its replies cannot be read.
        """
        by_id = {example.id: example for example in examples}
        chosen = [row for row in rows if row["id"] in by_id and self.judging.applies(by_id[row["id"]])]
        log = JudgementLog(folder)
        requests = distinct(request for row in chosen for request in self._all_requests(by_id[row["id"]], row))
        for judge in self.judges:
            self._ask(judge, requests, by_id, log)
        keys = {row_key(row) for row in chosen}
        return [self._scored(by_id[row["id"]], row, log) if row_key(row) in keys else row for row in rows]

    def cost(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> list[JudgeCost]:
        """What each judge would be asked about these rows."""
        by_id, log = {example.id: example for example in examples}, JudgementLog(folder)
        requests = distinct(
            request for row in rows if row["id"] in by_id for request in self._all_requests(by_id[row["id"]], row)
        )
        return [_cost(judge.name, requests, log) for judge in self.judges]

    def _requests(self, example: Example, row: Row) -> list[JudgeRequest]:
        """Requests about a row; an item without an answer, or with an empty one, needs no judge."""
        if row["status"] == "error" or not row["output"].strip() or not self.judging.applies(example):
            return []
        return list(self.judging.requests(example, row))

    def _all_requests(self, example: Example, row: Row) -> list[JudgeRequest]:
        """Requests about each of a row's completions."""
        return [request for answer in (row, *draw_rows(row)) for request in self._requests(example, answer)]

    def _ask(
        self, judge: JudgeModel, requests: Sequence[JudgeRequest], by_id: dict[str, Example], log: JudgementLog
    ) -> None:
        """Ask for all judgements that are missing, several times where a reply cannot be read.

        Raises:
            EngineError: if some are still missing.
        """
        missing = log.missing(judge.name, requests)
        if missing:
            self.on_cost(_cost(judge.name, requests, log))
        problems: dict[str, str] = {}
        unreadable: dict[str, JudgeRequest] = {}
        with progress.task(f"judgements of {judge.name}", len(requests), done=len(requests) - len(missing)) as task:

            def keep(request: JudgeRequest, reply: JudgeReply) -> None:
                example = by_id[request.item if request.item in by_id else request.item.rpartition("#")[0]]
                value = None if reply.error else self.judging.read(example, request.part, reply.text)
                row = log.add(judge.name, request, reply, value)
                problems.pop(row["key"], None)
                unreadable.pop(row["key"], None)
                if row["status"] == "ok":
                    task.advance(1)
                    return
                reason = reply.error or f"unreadable reply {' '.join(reply.text.split())[:60]!r}"
                problems[row["key"]] = f"item {request.item!r}: {reason}"
                if row["status"] == "unreadable":
                    unreadable[row["key"]] = request

            judge.answer(missing, keep)
            for attempt in range(1, TRIES):
                judge.answer(list(unreadable.values()), keep, attempt)
        if problems:
            raise EngineError(
                f"judge {judge.name}: {len(problems)} of {len(requests)} judgements are missing (first: "
                f"{next(iter(problems.values()))}); answers and the other judgements are kept, see {log.path}; the "
                "same command asks for the missing ones only"
            )

    def _scored(self, example: Example, row: Row, log: JudgementLog) -> Row:
        """A row, and each of its completions, with the mean of the judges' scores; of the row's own completion also
        each judge's scores and texts."""
        judgements = self._judgements(example, row, log)
        scorer = f"{row['scorer'].partition(' | ')[0]} | {self.judging.name} by {', '.join(self._names())}"
        scores = (row["scores"] or {}) | _means(judgements)
        draws = [
            draw | {"scores": (draw["scores"] or {}) | _means(self._judgements(example, answer, log))}
            for draw, answer in zip(row.get(DRAWS, ()), draw_rows(row), strict=True)
        ]
        judged_draws = {DRAWS: draws} if draws else {}
        return row | {"scores": scores, "judgements": judgements, "scorer": scorer} | judged_draws

    def _judgements(self, example: Example, row: Row, log: JudgementLog) -> list[dict[str, Any]]:
        """Each judge's scores and texts about one completion."""
        judgements: list[dict[str, Any]] = []
        requests = self._requests(example, row)
        for judge in self.judges:
            records = [log.get(judgement_key(judge.name, request)) for request in requests]
            values = {record["part"]: record["value"] for record in records if record is not None}
            judgements.append({
                "judge": judge.name,
                "prompt": self.judging.name,
                "scores": self.judging.score(example, row, values),
                "texts": {record["part"]: record["text"] for record in records if record is not None},
            })  # fmt: skip
        return judgements

    def _names(self) -> list[str]:
        return [judge.name for judge in self.judges]


def judged(task: Task, panel: JudgePanel) -> Task:
    """The task, scored by a panel of judges.

    Args:
        task: The task.
        panel: The judges, with the judging of the task or a rubric of one's own.
    Raises:
        ConfigError: if two judges have one name.
    """
    names = [judge.name for judge in panel.judges]
    if len(set(names)) < len(names):
        raise ConfigError(f"--judge: {', '.join(names)}: two judges have one name; name two different models")
    return replace(
        task,
        score_notes={**panel.judging.score_notes, **task.score_notes},
        headline=panel.judging.headline,
        reasoning_headline=None,
        judge_rows=panel.judge_rows,
    )


def draw_rows(row: Row) -> list[Row]:
    """The row for each of its completions, where several were drawn: as if that one was the only one."""
    names = ("output", "answer", "choice", "status")
    return [
        row
        | {name: draw[name] for name in names}
        | {"reasoning": parse(draw["output"], row["choices"]).reasoning, DRAWS: []}
        for draw in row.get(DRAWS, ())
    ]


def distinct(requests: Iterable[JudgeRequest]) -> list[JudgeRequest]:
    """The requests, each once: completions that are equal are judged together."""
    return list({judgement_key("", request): request for request in requests}.values())


def _means(judgements: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of the judges' scores."""
    names = judgements[0]["scores"]
    return {name: sum(entry["scores"][name] for entry in judgements) / len(judgements) for name in names}


def _cost(judge: str, requests: Sequence[JudgeRequest], log: JudgementLog) -> JudgeCost:
    missing = log.missing(judge, requests)
    return JudgeCost(
        judge=judge,
        requests=len(missing),
        kept=len(requests) - len(missing),
        prompt_tokens=sum(estimate_tokens(request.messages) for request in missing),
        reply_tokens=sum(request.max_tokens for request in missing),
    )
