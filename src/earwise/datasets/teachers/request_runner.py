"""The runner: asks a teacher any number of things, keeps every answer, and never asks the same thing twice.

requests -> those of this shard that the log does not hold -> teacher, many at a time, at an allowed pace -> judged ->
one row of the log each. The key of a row is the hash of what was sent (prompt, model, settings), so kill -9 and the
same command again lose nothing but the requests that were under way. Requests are read as they are needed: memory does
not grow with their number beyond a key each. No torch.

What ends how: busy servers (429, 5xx, timeouts) are tried again, as `engine/wire.py` says; an
answer that cannot be used is asked for again with what is wrong with it, then stands in the log as failed, under its
kind (`verdict.Kind`, or `rejected`); what could not be asked (`unreachable`) is asked again by the next run.
"""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from earwise.datasets.teachers.keyed_log import WHOLE, KeyedLog, Row, Shard, in_shard
from earwise.datasets.teachers.teacher import Ask, Reply, Request, Teacher, schema_of
from earwise.datasets.teachers.validate_reply import judge
from earwise.engine.remote.openai_http import Busy, Limits, Line, Rejected, tokens_in
from earwise.errors import EngineError

NOT_ASKED = "unreachable"


@dataclass(slots=True)
class Summary:
    """Counts of one run; `requests` = `other_shards` + `already` + `repeated` + `asked` once it has ended."""

    requests: int = 0
    other_shards: int = 0
    already: int = 0
    """In the log from earlier runs, whether ok or failed."""
    repeated: int = 0
    """The same content as an earlier request of this run: answered by that."""
    asked: int = 0
    ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """By kind: empty, refusal, truncated, invalid, language, rejected, unreachable."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Single answers that could not be used, by kind, whether a later one could or not."""
    tried_again: Counter[str] = field(default_factory=Counter)
    """Pauses because of the server, by reason."""
    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0
    """Answers whose tokens the server did not count, so that they are estimates."""
    cost: float | None = None
    """In the currency of the price; None without a price."""
    seconds: float = 0.0
    damaged: int = 0
    healed_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {name: dict(getattr(self, name)) for name in ("failed", "unusable", "tried_again")}

    def line(self) -> str:
        """One line for people."""
        failed = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failed.items()))
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        return (
            f"{self.asked} asked, {self.ok} ok, {sum(self.failed.values())} failed{f' ({failed})' if failed else ''}; "
            f"{self.already} were there already; {self.input_tokens} + {self.output_tokens} tokens{cost}, "
            f"{self.seconds:.1f} s"
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would take."""

    requests: int
    already: int
    other_shards: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    minutes: float | None
    """At the allowed pace; None without a pace."""


def request_key(teacher: Teacher, request: Request) -> str:
    """SHA-256 of all that decides the answer: prompt, model, settings, the form that it must have."""
    schema = schema_of(request.schema) if request.schema else None
    return content_key([teacher.body(request), schema, request.language, request.draw])


def content_key(value: object) -> str:
    """64 hexadecimal digits that name a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run(
    requests: Iterable[Request],
    teacher: Teacher,
    folder: Path,
    *,
    limits: Limits | None = None,
    shard: Shard = WHOLE,
    writer: Shard | None = None,
    retry_failed: bool = False,
    on_progress: Callable[[Summary], None] | None = None,
) -> Summary:
    """Ask what has not been asked yet.

    Args:
        requests: Read as they are needed; their order is the order of asking.
        teacher: Who answers.
        folder: Of the log; several machines share it, or bring their files together in it afterwards.
        limits: Pace and patience.
        shard: Which part of the requests is ours, by key.
        writer: Whose file of the log is written, where the requests are one shard's already; by default `shard`.
        retry_failed: Also ask again what failed in an earlier run.
        on_progress: Called after every answer.
    Returns:
        Counts of this run.
    Raises:
        EngineError: if the teacher refuses everything (key, model, address) or stays away; the answers so far are kept.
        DataError: if the disk refuses; the same.
    """
    limits = limits or Limits()
    summary = Summary(cost=None if teacher.price is None else 0.0)
    start = time.monotonic()
    with KeyedLog(folder, writer or shard) as log:
        summary.damaged, summary.healed_bytes = log.damaged, log.healed_bytes
        todo = _todo(requests, teacher, log, shard, retry_failed, summary)
        try:
            asyncio.run(_drive(todo, teacher, log, limits, summary, on_progress))
        except BaseExceptionGroup as group:  # of one error: the first ends all workers
            raise _first(group) from None
        finally:
            summary.seconds = time.monotonic() - start
    return summary


def estimate(
    requests: Iterable[Request], teacher: Teacher, folder: Path, *, limits: Limits | None = None, shard: Shard = WHOLE
) -> Estimate:
    """What `run` would ask, without asking: tokens of the prompts by length, of the answers by `expected_tokens`."""
    limits = limits or Limits()
    summary = Summary()
    tokens_in_all = tokens_out_all = count = 0
    log = KeyedLog(folder, shard, read_only=True)
    for request, _ in _todo(requests, teacher, log, shard, False, summary):
        count += 1
        if not teacher.is_template:
            tokens_in_all += tokens_in(teacher.body(request)["messages"])
            tokens_out_all += request.expected_tokens
    log.close()
    paces = [
        units / limit
        for units, limit in (
            (count, limits.requests_per_minute),
            (tokens_in_all + tokens_out_all, limits.tokens_per_minute),
        )
        if limit
    ]
    price = teacher.price
    return Estimate(
        requests=count,
        already=summary.already,
        other_shards=summary.other_shards,
        input_tokens=tokens_in_all,
        output_tokens=tokens_out_all,
        cost=None if price is None else _cost(price, tokens_in_all, tokens_out_all),
        minutes=max(paces) if paces else None,
    )


def answers(requests: Iterable[Request], teacher: Teacher, folder: Path) -> Iterator[tuple[Request, Row | None]]:
    """Each request with its row of the log: `status`, and `value` where that is "ok"; None: not asked yet."""
    log = KeyedLog(folder, read_only=True)
    try:
        for request in requests:
            yield request, log.get(request_key(teacher, request))
    finally:
        log.close()


def _todo(
    requests: Iterable[Request], teacher: Teacher, log: KeyedLog, shard: Shard, retry_failed: bool, summary: Summary
) -> Iterator[tuple[Request, str]]:
    under_way = set[bytes]()
    for request in requests:
        summary.requests += 1
        key = request_key(teacher, request)
        short = bytes.fromhex(key)
        if not in_shard(key, shard):
            summary.other_shards += 1
        elif short in under_way:
            summary.repeated += 1
        elif log.is_ok(key) or (key in log and not retry_failed and (log.get(key) or {})["status"] != NOT_ASKED):
            summary.already += 1
        else:
            under_way.add(short)
            yield request, key


async def _drive(
    todo: Iterator[tuple[Request, str]],
    teacher: Teacher,
    log: KeyedLog,
    limits: Limits,
    summary: Summary,
    on_progress: Callable[[Summary], None] | None,
) -> None:
    """`concurrency` workers that take from one list; the first error ends them all."""
    in_a_row = 0

    async def work(ask: Ask, line: Line[Reply]) -> None:
        nonlocal in_a_row
        for request, key in todo:
            row = await _settle(request, key, teacher, ask, line)
            log.append(row)
            _count(row, summary, teacher)
            if on_progress is not None:
                on_progress(summary)
            in_a_row = in_a_row + 1 if row["status"] in (NOT_ASKED, "rejected") else 0
            if in_a_row >= limits.give_up_after:
                raise EngineError(
                    f"teacher {teacher.name}: {in_a_row} requests in a row went wrong (last: {row['error']}); "
                    "what was answered is kept, the same command goes on from there"
                )

    def on_pause(reason: str) -> None:
        summary.tried_again[reason] += 1

    async with teacher.session() as ask, asyncio.TaskGroup() as group:
        line = Line[Reply](limits, _used, on_pause)
        for _ in range(limits.concurrency):
            group.create_task(work(ask, line))


def _used(reply: Reply) -> int:
    return reply.input_tokens + reply.output_tokens


async def _settle(request: Request, key: str, teacher: Teacher, ask: Ask, line: Line[Reply]) -> Row:
    """One request until it has a row, usable or not."""
    first = body = teacher.body(request)
    rng = random.Random(key)
    row: Row = {
        "key": key, "id": request.id, "kind": request.kind, "teacher": teacher.name, "template": teacher.is_template,
        "status": "", "value": None, "error": "", "answers": 0, "input_tokens": 0, "output_tokens": 0, "uncounted": 0,
        "unusable": [],
    }  # fmt: skip
    for repair in range(line.limits.repairs + 1):
        expected = tokens_in(body.get("messages", ())) + request.expected_tokens
        reply = await line.send(ask, body, expected, rng)
        if isinstance(reply, Busy | Rejected):
            return row | {"status": NOT_ASKED if isinstance(reply, Busy) else "rejected", "error": reply.reason}
        row["answers"] += 1
        row["input_tokens"] += reply.input_tokens
        row["output_tokens"] += reply.output_tokens
        row["uncounted"] += not reply.counted
        verdict = judge(reply, request)
        text = "" if verdict.status == "ok" else reply.text
        row |= {"status": verdict.status, "value": verdict.value, "error": verdict.error, "text": text}
        if verdict.status == "ok":
            break
        row["unusable"].append(verdict.status)
        following = teacher.again(first, reply.text, verdict.error) if repair < line.limits.repairs else None
        if following is None:
            break
        body = following
    return row


def _count(row: Row, summary: Summary, teacher: Teacher) -> None:
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
    return (price[0] * input_tokens + price[1] * output_tokens) / 1e6


def _first(group: BaseExceptionGroup) -> BaseException:
    """The error that the group holds, the first if there are several."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
