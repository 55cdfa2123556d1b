"""Requests to a teacher on a real HTTP server: every way in which it can misbehave, and what the log then holds."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from chat_server import ServerReply, run_chat_server
from earwise.datasets.teachers import request_runner
from earwise.datasets.teachers.keyed_log import KeyedLog, in_shard, parse_shard
from earwise.datasets.teachers.request_runner import ask_teacher, request_key
from earwise.datasets.teachers.teacher import RemoteTeacher, TeacherRequest, TemplateTeacher
from earwise.engine.remote.openai_http import RateLimiter, RequestLimits, retry_after_s
from earwise.errors import ConfigError, EngineError

QUICK = RequestLimits(concurrency=4, backoff_s=0.01, max_backoff_s=0.02)


class Colour(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: str

    @field_validator("colour")
    @classmethod
    def must_be_allowed(cls, value: str, info: ValidationInfo) -> str:
        allowed = (info.context or {}).get("allowed")
        if allowed and value not in allowed:
            raise ValueError(f"{value!r} is none of {allowed}")
        return value


def request_for(text: str, schema: type[BaseModel] | None = None, **more: Any) -> TeacherRequest:
    return TeacherRequest(id=text, kind="test", messages=({"role": "user", "content": text},), schema=schema, **more)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("rows*.jsonl")) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_answers_are_logged_and_a_second_run_sends_nothing(tmp_path: Path) -> None:
    requests = [request_for(f"question {number}") for number in range(20)]
    with run_chat_server(
        lambda body, count: ServerReply(f"answer to {body['messages'][0]['content']}", wait_s=0.01)
    ) as chat:
        teacher = RemoteTeacher(chat.url, "m", api_key="secret", price=(1.0, 10.0))
        first = ask_teacher([*requests, requests[3]], teacher, tmp_path, limits=QUICK)
        again = ask_teacher(requests, teacher, tmp_path, limits=QUICK)
    assert (first.requests, first.asked, first.ok, first.repeated, first.already) == (21, 20, 20, 1, 0)
    assert (first.input_tokens, first.output_tokens) == (200, 100)
    assert first.cost == pytest.approx(200 * 1e-6 + 100 * 10e-6)
    assert (again.asked, again.already, again.cost) == (0, 20, 0.0)
    assert len(chat.bodies) == 20 and chat.max_in_flight <= 4 and chat.max_in_flight > 1
    assert chat.headers[0]["authorization"] == "Bearer secret" and "secret" not in repr(teacher)
    answers = request_runner.read_answers(requests, teacher, tmp_path)
    values = {request.id: row["value"] for request, row in answers if row}
    assert values == {request.id: f"answer to {request.id}" for request in requests}
    assert "secret" not in (tmp_path / "rows.jsonl").read_text()


def test_request_key_depends_on_what_decides_the_answer() -> None:
    request, teacher = request_for("a"), RemoteTeacher("http://x/v1", "m")
    key = request_key(teacher, request)
    elsewhere = RemoteTeacher("http://elsewhere/v1", "m", api_key="k", timeout_s=1.0, price=(1, 1))
    assert key == request_key(elsewhere, request)
    renamed = TeacherRequest(id="other", kind="test", messages=request.messages, facts={"x": 1})
    assert key == request_key(teacher, renamed)
    different_keys = [
        request_key(RemoteTeacher("http://x/v1", "n"), request),
        request_key(RemoteTeacher("http://x/v1", "m", temperature=0.0), request),
        request_key(teacher, request_for("b")),
        request_key(teacher, request_for("a", Colour)),
        request_key(teacher, request_for("a", sample_index=1)),
        request_key(RemoteTeacher("http://x/v1", "m", seed=None), request_for("a", sample_index=1)),
        request_key(teacher, request_for("a", language="de")),
    ]
    assert len({key, *different_keys}) == len(different_keys) + 1


def test_requests_to_a_busy_server_are_retried(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], count: int) -> ServerReply:
        what = body["messages"][0]["content"]
        if what == "late" and count == 1:
            return ServerReply(status=429, headers={"retry-after": "0.4"})
        if what == "flaky" and count <= 3:
            return (ServerReply(status=503), ServerReply(hang_up=True), ServerReply(raw=b"<html>gateway</html>"))[
                count - 1
            ]
        return ServerReply("fine")

    requests = [request_for(what) for what in ("late", "flaky", "easy")]
    with run_chat_server(respond) as chat:
        summary = ask_teacher(requests, RemoteTeacher(chat.url, "m"), tmp_path, limits=QUICK)
        late_times = [
            time_s
            for time_s, body in zip(chat.times, chat.bodies, strict=True)
            if body["messages"][0]["content"] == "late"
        ]
    assert (summary.ok, sum(summary.failed.values())) == (3, 0)
    assert summary.tried_again == {
        "status 429": 1,
        "status 503": 1,
        "connection": 1,
        "status 200 without a chat completion": 1,
    }
    assert late_times[1] - late_times[0] >= 0.4
    assert {row["value"] for row in rows(tmp_path)} == {"fine"}


def test_a_slow_answer_times_out_and_is_retried(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], count: int) -> ServerReply:
        return ServerReply("too late", wait_s=1.5) if count == 1 else ServerReply("fine")

    with run_chat_server(respond) as chat:
        summary = ask_teacher(
            [request_for("slow")], RemoteTeacher(chat.url, "m", timeout_s=0.5), tmp_path, limits=QUICK
        )
    assert summary.ok == 1 and summary.tried_again["timeout"] >= 1
    assert [row["value"] for row in rows(tmp_path)] == ["fine"]


def test_an_unusable_answer_is_repaired_with_what_is_wrong(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], count: int) -> ServerReply:
        what = body["messages"][0]["content"]
        answers = {
            "mends": ["blue", '{"colour": 3}', '```json\n{"colour": "blue"}\n```'],
            "knows": ['{"colour": "mauve"}', '<think>hm {"colour": 1}</think>{"colour": "red"}'],
            "never": ['{"color": "blue"}'] * 3,
            "refuses": ["I'm sorry, but I can't help with that request."] * 3,
            "silent": ["  "] * 3,
            "cut": ['{"colour": "bl'] * 3,
        }[what]
        return ServerReply(answers[min(count, len(answers)) - 1], finish="length" if what == "cut" else "stop")

    requests = [request_for(what, Colour) for what in ("mends", "never", "refuses", "silent", "cut")]
    requests.append(request_for("knows", Colour, facts={"allowed": ("red", "blue")}))
    with run_chat_server(respond) as chat:
        teacher = RemoteTeacher(chat.url, "m")
        summary = ask_teacher(requests, teacher, tmp_path, limits=QUICK)
        again = ask_teacher(requests, teacher, tmp_path, limits=QUICK)
        times_asked = dict(chat.message_counts)
        no_repairs = RequestLimits(concurrency=1, repairs=0)
        retried = ask_teacher(requests[1:2], teacher, tmp_path, limits=no_repairs, retry_failed=True)
    assert (summary.ok, dict(summary.failed)) == (2, {"invalid": 1, "refusal": 1, "empty": 1, "truncated": 1})
    assert dict(summary.unusable) == {"invalid": 6, "refusal": 3, "empty": 3, "truncated": 3}
    assert (summary.input_tokens, summary.output_tokens) == (170, 85)  # 17 answers, the unusable ones too
    assert times_asked == {"mends": 3, "knows": 2, "never": 3, "refuses": 3, "silent": 3, "cut": 3}
    assert (again.asked, again.already) == (0, 6) and dict(retried.failed) == {"invalid": 1}
    by_id = {row["id"]: row for row in rows(tmp_path)[:6]}
    assert by_id["mends"]["value"] == {"colour": "blue"} and by_id["knows"]["value"] == {"colour": "red"}
    assert by_id["never"]["text"] == '{"color": "blue"}' and "colour" in by_id["never"]["error"]
    bodies = [body for body in chat.bodies if body["messages"][0]["content"] == "mends"]
    assert [len(body["messages"]) for body in bodies] == [1, 3, 3]  # the conversation does not grow
    assert bodies[1]["messages"][1] == {"role": "assistant", "content": "blue"}
    assert "not JSON" in bodies[1]["messages"][2]["content"]
    assert bodies[0]["response_format"]["json_schema"]["schema"]["required"] == ["colour"]
    assert bodies[0]["seed"] != bodies[1]["seed"]


def test_a_wrong_api_key_ends_the_run_and_keeps_the_answers(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], count: int) -> ServerReply:
        number = int(body["messages"][0]["content"])
        return ServerReply("fine") if number < 5 else ServerReply(status=401, raw=b'{"error": "bad key"}')

    with run_chat_server(respond) as chat, pytest.raises(EngineError, match=r"401.*bad key.*check the address"):
        ask_teacher(
            [request_for(str(number)) for number in range(9)],
            RemoteTeacher(chat.url, "m"),
            tmp_path,
            limits=RequestLimits(concurrency=1),
        )
    assert [row["value"] for row in rows(tmp_path)] == ["fine"] * 5


def test_an_unreachable_server_ends_the_run_and_is_asked_again_by_the_next(tmp_path: Path) -> None:
    impatient = RequestLimits(concurrency=2, tries=2, backoff_s=0.001, give_up_after=4)
    requests = [request_for(str(number)) for number in range(50)]
    with (
        run_chat_server(lambda body, count: ServerReply(status=500)) as chat,
        pytest.raises(EngineError, match="in a row failed"),
    ):
        ask_teacher(requests, RemoteTeacher(chat.url, "m"), tmp_path, limits=impatient)
    assert 8 <= len(chat.bodies) <= 12
    with run_chat_server(lambda body, count: ServerReply("back")) as chat:
        summary = ask_teacher(requests, RemoteTeacher(chat.url, "m"), tmp_path, limits=impatient)
    assert (summary.asked, summary.ok, summary.already) == (50, 50, 0)


def test_rejected_requests_are_logged_and_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    def respond(body: dict[str, Any], count: int) -> ServerReply:
        return (
            ServerReply(status=400, raw=b"too long")
            if body["messages"][0]["content"] == "long"
            else ServerReply("fine")
        )

    with run_chat_server(respond) as chat:
        summary = ask_teacher(
            [request_for("long"), request_for("short")], RemoteTeacher(chat.url, "m"), tmp_path, limits=QUICK
        )
    assert (summary.ok, dict(summary.failed)) == (1, {"rejected": 1})
    with (
        run_chat_server(lambda body, count: ServerReply(status=400, raw=b"no response_format here")) as chat,
        pytest.raises(EngineError, match="no response_format here"),
    ):
        ask_teacher(
            [request_for(str(n)) for n in range(99)],
            RemoteTeacher(chat.url, "m"),
            tmp_path / "b",
            limits=RequestLimits(give_up_after=5),
        )


def test_shards_divide_the_work_and_are_read_together(tmp_path: Path) -> None:
    requests = [request_for(str(number)) for number in range(60)]
    with run_chat_server(lambda body, count: ServerReply("fine")) as chat:
        teacher = RemoteTeacher(chat.url, "m")
        parts = [ask_teacher(requests, teacher, tmp_path, limits=QUICK, shard=(i, 3)) for i in (1, 2, 3)]
        whole = ask_teacher(requests, teacher, tmp_path, limits=QUICK)
    assert [part.asked + part.other_shards for part in parts] == [60, 60, 60]
    assert sum(part.asked for part in parts) == len(chat.bodies) == 60 and all(part.asked > 5 for part in parts)
    assert (whole.asked, whole.already) == (0, 60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"rows-{i}-of-3.jsonl" for i in (1, 2, 3)] + [
        "rows.jsonl"
    ]
    assert parse_shard("2/3") == (2, 3) and in_shard("0" * 64, (1, 3)) and not in_shard("0" * 64, (2, 3))
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(ConfigError, match="i/n"):
            parse_shard(wrong)


def test_estimate_sends_nothing(tmp_path: Path) -> None:
    requests = [request_for("x" * 400, expected_tokens=50, sample_index=sample_index) for sample_index in range(10)]
    with run_chat_server(lambda body, count: ServerReply("fine")) as chat:
        teacher = RemoteTeacher(chat.url, "m", price=(1.0, 2.0))
        ask_teacher(requests[:4], teacher, tmp_path, limits=QUICK)
        pace = RequestLimits(requests_per_minute=3, tokens_per_minute=1000)
        estimate = request_runner.estimate_requests(requests, teacher, tmp_path, limits=pace)
    assert len(chat.bodies) == 4
    assert (estimate.requests, estimate.already, estimate.input_tokens, estimate.output_tokens) == (6, 4, 600, 300)
    assert estimate.cost == pytest.approx(600e-6 + 600e-6) and estimate.minutes == pytest.approx(2.0)
    assert (
        not (tmp_path / "never").exists()
        and request_runner.estimate_requests(requests, teacher, tmp_path / "never").requests == 10
    )
    assert not (tmp_path / "never").exists()


def test_rate_limiter_spaces_events_and_takes_back_units() -> None:
    pace = RateLimiter(60)
    assert [pace.reserve(1, now) for now in (100.0, 100.0, 100.0)] == [0.0, 1.0, 2.0]
    assert pace.reserve(1, 110.0) == 0.0 and pace.reserve(1, 110.0) == 1.0
    pace.reserve(-1, 110.0)
    assert pace.reserve(1, 110.0) == 1.0
    pace.hold(130.0)
    assert pace.reserve(1, 111.0) == 19.0
    assert RateLimiter(None).reserve(1e9, 5.0) == 0.0


def test_the_rate_limit_is_kept_by_the_run(tmp_path: Path) -> None:
    with run_chat_server(lambda body, count: ServerReply("fine")) as chat:
        limits = RequestLimits(concurrency=8, requests_per_minute=1200)
        ask_teacher(
            [request_for(str(number)) for number in range(10)], RemoteTeacher(chat.url, "m"), tmp_path, limits=limits
        )
    assert chat.times[-1] - chat.times[0] >= 9 * 0.05 - 0.03


def test_a_partial_last_line_is_cut_and_a_damaged_line_is_asked_again(tmp_path: Path) -> None:
    requests = [request_for(str(number)) for number in range(4)]
    teacher = TemplateTeacher({"test": lambda facts: "fine"})
    ask_teacher([request_for(str(n), facts={"n": n}) for n in range(4)], teacher, tmp_path)
    log = tmp_path / "rows.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4 and len(requests) == 4
    log.write_bytes(lines[0] + b"\0\0\0\n" + lines[2] + lines[3][:-7])
    summary = ask_teacher([request_for(str(n), facts={"n": n}) for n in range(4)], teacher, tmp_path)
    assert (summary.already, summary.asked, summary.damaged) == (2, 2, 1)
    assert summary.healed_bytes == len(lines[3]) - 7
    with KeyedLog(tmp_path, read_only=True) as reopened:
        assert len(reopened) == 4 and all(row["status"] == "ok" for row in reopened.rows())


def test_template_teacher_is_named_in_its_rows_and_is_not_asked_twice(tmp_path: Path) -> None:
    teacher = TemplateTeacher({"test": lambda facts: {"colour": facts["colour"]}})
    summary = ask_teacher([request_for("a", Colour, facts={"colour": "red"})], teacher, tmp_path)
    assert (summary.ok, summary.input_tokens, summary.cost) == (1, 0, 0.0)
    row = rows(tmp_path)[0]
    assert row["template"] is True and row["teacher"] == "template-1" and row["value"] == {"colour": "red"}
    wrong = ask_teacher([request_for("a", Colour, facts={"colour": 3})], teacher, tmp_path)
    assert dict(wrong.failed) == {"invalid": 1} and rows(tmp_path)[1]["answers"] == 1
    with pytest.raises(ConfigError, match=r"no sentences for 'essay'.*--teacher"):
        ask_teacher([TeacherRequest(id="x", kind="essay", messages=())], teacher, tmp_path)


def test_retry_after_is_a_number_or_a_date() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("Thu, 01 Jan 2026 12:00:30 GMT", now) == 30.0
    assert retry_after_s("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0.0
    assert retry_after_s("1.5", now) == 1.5 and retry_after_s("soon", now) is None


def test_invalid_settings_raise() -> None:
    with pytest.raises(ConfigError, match="neither 'template' nor the address"):
        RemoteTeacher("gpt", "m")
    with pytest.raises(ConfigError, match="concurrency is 0"):
        RequestLimits(concurrency=0)
    with pytest.raises(ConfigError, match="requests_per_minute is -1"):
        RequestLimits(requests_per_minute=-1)


def test_request_runner_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, earwise.datasets.teachers.request_runner; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
