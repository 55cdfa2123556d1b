"""Sends requests to a teacher, logs every answer, and never asks for the same answer twice.

requests -> those of this shard that the log lacks -> teacher, many at a time, within the rate limits -> check of every
reply (`validate_reply.py`) -> one row of the log per request

The key of a row is a hash of everything that decides the answer (prompt, model, settings), so that a killed run,
started again with the same command, repeats only the requests that were in flight. Requests are consumed one by one;
memory grows by one key per request. No torch.

How a request ends, as `status` of its row: "ok"; the problem of its last reply (`validate_reply.ReplyStatus`), after it
was asked again together with what is wrong; "rejected", if the server refuses this request; "unreachable", if the
server stayed busy or away (`engine/remote/openai_http.py` retries first). The next run asks unreachable requests again,
and the other failed ones only if it is told to.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from earwise import progress
from earwise.datasets.teachers.keyed_log import UNSHARDED, KeyedLog, LogRow, Shard, content_key, in_shard
from earwise.datasets.teachers.teacher import SendBody, Teacher, TeacherReply, TeacherRequest, json_schema
from earwise.datasets.teachers.validate_reply import validate_reply
from earwise.engine.remote.openai_http import (
    RateLimitedSender,
    RejectedRequest,
    RequestLimits,
    TemporaryFailure,
    estimate_tokens,
)
from earwise.errors import EngineError

UNREACHABLE = "unreachable"
REJECTED = "rejected"


@dataclass(slots=True)
class RunSummary:
    """Counts of one run. At its end, `requests` = `other_shards` + `already` + `repeated` + `asked`."""

    requests: int = 0
    """All requests that the run was given."""
    other_shards: int = 0
    """Requests that belong to other shards."""
    already: int = 0
    """Requests that earlier runs have logged, whether ok or failed."""
    repeated: int = 0
    """Requests with the same content as an earlier one of this run, whose answer they share."""
    asked: int = 0
    """Requests that this run has sent."""
    ok: int = 0
    """Sent requests with a usable answer."""
    failed: Counter[str] = field(default_factory=Counter)
    """Sent requests without a usable answer, by the `status` of their row."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Single replies that were not usable, by problem, whether or not a later reply to the same request was."""
    tried_again: Counter[str] = field(default_factory=Counter)
    """Pauses because the server was busy or away, by reason."""
    input_tokens: int = 0
    """Tokens of all prompts that were sent."""
    output_tokens: int = 0
    """Tokens of all replies."""
    uncounted: int = 0
    """Replies whose tokens the server did not count, so that they are estimated."""
    cost: float | None = None
    """Cost of all tokens, in the currency of the teacher's price; None without a price."""
    seconds: float = 0.0
    """Duration of the run."""
    damaged: int = 0
    """Damaged lines that were found in the log."""
    healed_bytes: int = 0
    """Length of the partial last line that was cut off the log."""

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return asdict(self) | {name: dict(getattr(self, name)) for name in ("failed", "unusable", "tried_again")}

    def describe(self) -> str:
        """The most important counts in one line of text."""
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(self.failed.items()))
        failed = f"{sum(self.failed.values())} failed" + (f" ({statuses})" if statuses else "")
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.asked} requests sent, {self.ok} ok, {failed}; {self.already} already in the log; "
            f"{self.input_tokens} + {self.output_tokens} tokens{cost}, {self.seconds:.1f} s"
        )


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """What a run would take."""

    requests: int
    """Requests that it would send."""
    already: int
    """Requests that the log holds already."""
    other_shards: int
    """Requests that belong to other shards."""
    input_tokens: int
    """Estimated tokens of the prompts."""
    output_tokens: int
    """Estimated tokens of the answers."""
    cost: float | None
    """Estimated cost, in the currency of the teacher's price; None without a price."""
    minutes: float | None
    """Shortest possible duration within the rate limits; None without limits."""


def request_key(teacher: Teacher, request: TeacherRequest) -> str:
    """Hash of everything that decides an answer: prompt, model, settings, and the form that the answer must have."""
    schema = json_schema(request.schema) if request.schema else None
    return content_key([teacher.body(request), schema, request.language, request.sample_index])


def ask_teacher(
    requests: Iterable[TeacherRequest],
    teacher: Teacher,
    folder: Path,
    *,
    limits: RequestLimits | None = None,
    shard: Shard = UNSHARDED,
    log_shard: Shard | None = None,
    retry_failed: bool = False,
    description: str = "requests",
) -> RunSummary:
    """Send every request whose answer is not in the log yet.

    Args:
        requests: The requests, in the order in which they are sent; consumed one by one.
        teacher: The teacher that answers.
        folder: Folder of the log. Several machines may share it, or copy their log files into one folder afterwards.
        limits: Rate limits, concurrency and retries; None takes the defaults.
        shard: The part of the requests, selected by their keys, that this process sends.
        log_shard: Shard that names the log file of this process, if `requests` is already a single shard of the work;
            None takes `shard`.
        retry_failed: Whether to send requests again that failed in an earlier run.
        description: What is asked for, where the progress is shown.
    Returns:
        Counts of this run.
    Raises:
        EngineError: if the teacher refuses every request (key, model or address are wrong) or stays unreachable.
            Answers that have arrived stay in the log.
        DataError: if the log cannot be written; answers that have arrived stay in it.
    """
    limits = limits or RequestLimits()
    summary = RunSummary(cost=None if teacher.price is None else 0.0)
    start = time.monotonic()
    with KeyedLog(folder, log_shard or shard) as log:
        summary.damaged, summary.healed_bytes = log.damaged, log.healed_bytes
        pending = _pending_requests(requests, teacher, log, shard, retry_failed, summary)
        total = len(requests) if isinstance(requests, Sized) and shard == UNSHARDED else None
        try:
            with progress.task(description, total) as task:
                asyncio.run(_send_all(pending, teacher, log, limits, summary, task))
        except BaseExceptionGroup as group:  # of a single error, since the first one ends all workers
            raise _first_error(group) from None
        finally:
            summary.seconds = time.monotonic() - start
    return summary


def estimate_requests(
    requests: Iterable[TeacherRequest],
    teacher: Teacher,
    folder: Path,
    *,
    limits: RequestLimits | None = None,
    shard: Shard = UNSHARDED,
) -> RunEstimate:
    """Estimate what `ask_teacher` would send, without sending anything.

    Tokens of prompts are estimated from their length, tokens of answers are taken from `expected_tokens`.

    Args:
        requests: See `ask_teacher`.
        teacher: See `ask_teacher`.
        folder: Folder of the log; need not exist.
        limits: See `ask_teacher`.
        shard: See `ask_teacher`.
    """
    limits = limits or RequestLimits()
    summary = RunSummary()
    input_tokens = output_tokens = num_requests = 0
    log = KeyedLog(folder, shard, read_only=True)
    for request, _ in _pending_requests(requests, teacher, log, shard, False, summary):
        num_requests += 1
        if not teacher.is_template:
            input_tokens += estimate_tokens(teacher.body(request)["messages"])
            output_tokens += request.expected_tokens
    log.close()
    minutes = [
        amount / per_minute
        for amount, per_minute in (
            (num_requests, limits.requests_per_minute),
            (input_tokens + output_tokens, limits.tokens_per_minute),
        )
        if per_minute
    ]
    return RunEstimate(
        requests=num_requests,
        already=summary.already,
        other_shards=summary.other_shards,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost=None if teacher.price is None else _cost(teacher.price, input_tokens, output_tokens),
        minutes=max(minutes) if minutes else None,
    )


def read_answers(
    requests: Iterable[TeacherRequest], teacher: Teacher, folder: Path
) -> Iterator[tuple[TeacherRequest, LogRow | None]]:
    """Each request with its row of the log: `status`, and `value` if that is "ok". None if it was not sent yet."""
    log = KeyedLog(folder, read_only=True)
    try:
        for request in requests:
            yield request, log.get(request_key(teacher, request))
    finally:
        log.close()


def _pending_requests(
    requests: Iterable[TeacherRequest],
    teacher: Teacher,
    log: KeyedLog,
    shard: Shard,
    retry_failed: bool,
    summary: RunSummary,
) -> Iterator[tuple[TeacherRequest, str]]:
    """The requests to send, each with its key; `summary` counts the others."""
    keys_sent = set[bytes]()
    for request in requests:
        summary.requests += 1
        key = request_key(teacher, request)
        key_bytes = bytes.fromhex(key)
        if not in_shard(key, shard):
            summary.other_shards += 1
        elif key_bytes in keys_sent:
            summary.repeated += 1
        elif log.is_ok(key) or (key in log and not retry_failed and (log.get(key) or {})["status"] != UNREACHABLE):
            summary.already += 1
        else:
            keys_sent.add(key_bytes)
            yield request, key


async def _send_all(
    pending: Iterator[tuple[TeacherRequest, str]],
    teacher: Teacher,
    log: KeyedLog,
    limits: RequestLimits,
    summary: RunSummary,
    task: progress.Task,
) -> None:
    """Send requests from `concurrency` workers that share one iterator; the first error ends them all."""
    failures_in_a_row = 0

    async def work(send: SendBody, sender: RateLimitedSender[TeacherReply]) -> None:
        nonlocal failures_in_a_row
        for request, key in pending:
            row = await _answer_request(request, key, teacher, send, sender)
            log.append(row)
            _count_row(row, summary, teacher)
            num_failed = sum(summary.failed.values())
            finished = summary.asked + summary.already + summary.repeated
            task.advance(finished - task.done, f"{num_failed} failed" if num_failed else "")
            failures_in_a_row = failures_in_a_row + 1 if row["status"] in (UNREACHABLE, REJECTED) else 0
            if failures_in_a_row >= limits.give_up_after:
                raise EngineError(
                    f"teacher {teacher.name}: {failures_in_a_row} requests in a row failed (last: {row['error']}); "
                    "finished answers are kept and the same command continues from here"
                )

    def on_pause(reason: str) -> None:
        summary.tried_again[reason] += 1

    async with teacher.session() as send, asyncio.TaskGroup() as group:
        sender = RateLimitedSender[TeacherReply](limits, _used_tokens, on_pause)
        for _ in range(limits.concurrency):
            group.create_task(work(send, sender))


def _used_tokens(reply: TeacherReply) -> int:
    """Tokens that a reply adds to the rate limit."""
    return reply.input_tokens + reply.output_tokens


async def _answer_request(
    request: TeacherRequest, key: str, teacher: Teacher, send: SendBody, sender: RateLimitedSender[TeacherReply]
) -> LogRow:
    """Ask until a reply is usable or the repairs are used up; returns the row of the log."""
    first_body = body = teacher.body(request)
    rng = random.Random(key)
    row: LogRow = {
        "key": key, "id": request.id, "kind": request.kind, "teacher": teacher.name, "template": teacher.is_template,
        "status": "", "value": None, "error": "", "answers": 0, "input_tokens": 0, "output_tokens": 0, "uncounted": 0,
        "unusable": [],
    }  # fmt: skip
    for repair in range(sender.limits.repairs + 1):
        expected_tokens = estimate_tokens(body.get("messages", ())) + request.expected_tokens
        reply = await sender.send(send, body, expected_tokens, rng)
        if isinstance(reply, TemporaryFailure):
            return row | {"status": UNREACHABLE, "error": reply.reason}
        if isinstance(reply, RejectedRequest):
            return row | {"status": REJECTED, "error": reply.reason}
        row["answers"] += 1
        row["input_tokens"] += reply.input_tokens
        row["output_tokens"] += reply.output_tokens
        row["uncounted"] += not reply.counted
        check = validate_reply(reply, request)
        text = "" if check.status == "ok" else reply.text
        row |= {"status": check.status, "value": check.value, "error": check.error, "text": text}
        if check.status == "ok":
            break
        row["unusable"].append(check.status)
        is_last = repair == sender.limits.repairs
        repair_body = None if is_last else teacher.repair_body(first_body, reply.text, check.error)
        if repair_body is None:
            break
        body = repair_body
    return row


def _count_row(row: LogRow, summary: RunSummary, teacher: Teacher) -> None:
    """Add a new row of the log to the counts."""
    summary.asked += 1
    summary.ok += row["status"] == "ok"
    if row["status"] != "ok":
        summary.failed[row["status"]] += 1
    summary.unusable.update(row["unusable"])
    summary.input_tokens += row["input_tokens"]
    summary.output_tokens += row["output_tokens"]
    summary.uncounted += row["uncounted"]
    if teacher.price is not None and summary.cost is not None:
        summary.cost += _cost(teacher.price, row["input_tokens"], row["output_tokens"])


def _cost(price: tuple[float, float], input_tokens: int, output_tokens: int) -> float:
    """Cost of tokens at a price per million."""
    return (price[0] * input_tokens + price[1] * output_tokens) / 1e6


def _first_error(group: BaseExceptionGroup) -> BaseException:
    """The first error inside an exception group."""
    error = group.exceptions[0]
    return _first_error(error) if isinstance(error, BaseExceptionGroup) else error
