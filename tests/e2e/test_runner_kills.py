"""Requests to a teacher survive kill -9 at any moment: no answer is lost, and none is requested again once logged.

A real server, real processes, real kills. A parent process that has imported the runner forks one child for every kill,
so that a hundred kills take seconds.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chat_server import ChatServer, ServerReply, run_chat_server
from e2e.shell import started

KILLS = 100
BUDGET_S = 60.0
MIN_KILLS = 10
NUM_REQUESTS = 1500

# Forks a runner for every line on stdin, prints its process id, and then its exit status once it has ended.
PARENT = """
import os, sys
from pathlib import Path
from earwise.datasets.teachers.request_runner import ask_teacher
from earwise.datasets.teachers.teacher import RemoteTeacher, TeacherRequest
from earwise.engine.remote.openai_http import RequestLimits
import httpx  # here, so that children have it
url, folder, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
requests = [TeacherRequest(str(i), "test", ({"role": "user", "content": f"question {i}"},)) for i in range(n)]
for line in sys.stdin:
    child = os.fork()
    if not child:
        ask_teacher(requests, RemoteTeacher(url, "m"), folder, limits=RequestLimits(concurrency=8, backoff_s=0.01))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def answer(body: dict[str, Any], count: int) -> ServerReply:
    return ServerReply(f"answer to {body['messages'][0]['content']} " + "x" * 200)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log; a partial last line, which the runner will cut off, is ignored."""
    path = folder / "rows.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def environment() -> dict[str, str]:
    return os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def wait_for_a_request(chat: ChatServer, before: int, deadline: float) -> None:
    while len(chat.bodies) == before and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_hundred_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    kills = 0
    deadline = time.monotonic() + BUDGET_S
    with run_chat_server(answer) as chat:
        command = [sys.executable, "-c", PARENT, chat.url, str(tmp_path), str(NUM_REQUESTS)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        ) as parent:
            assert parent.stdin and parent.stdout
            done: set[str] = set()
            while kills < KILLS and time.monotonic() < deadline and len(done) < NUM_REQUESTS:
                before = len(chat.bodies)
                parent.stdin.write("go\n")
                parent.stdin.flush()
                child = int(parent.stdout.readline())
                wait_for_a_request(chat, before, deadline)
                time.sleep(rng.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
                parent.stdout.readline()
                kills += 1
                requested = {body["messages"][0]["content"].split()[1] for body in chat.bodies[before:]}
                assert not requested & done, "requested again although the answer was logged"
                rows = logged(tmp_path)
                now = {row["id"] for row in rows}
                assert len(rows) == len(now) and done <= now, "an answer was lost or written twice"
                done = now
                if kills % 5 == 0:  # as after a kill in the middle of a write
                    with (tmp_path / "rows.jsonl").open("ab") as log:
                        log.write(b'{"key": "0123", "val')
            before = len(chat.bodies)
            parent.stdin.write("go\n")
            parent.stdin.close()
            parent.stdout.readline()
            assert parent.stdout.readline().strip() == "0"
    assert kills >= MIN_KILLS
    rows = logged(tmp_path)
    assert sorted(int(row["id"]) for row in rows) == list(range(NUM_REQUESTS))
    assert all(row["value"].startswith(f"answer to question {row['id']} x") for row in rows)
    assert not {body["messages"][0]["content"].split()[1] for body in chat.bodies[before:]} & done
    repeated = len(chat.bodies) - NUM_REQUESTS
    assert repeated <= 8 * kills, "more requests were repeated than were in flight at the kills"


def test_command_continues_after_kills(tmp_path: Path) -> None:
    """`earwise build sari`, killed while it sends requests to a server and started again, writes the same files as an
    uninterrupted build.
    """

    def teacher(body: dict[str, Any], count: int) -> ServerReply:
        text = body["messages"][1]["content"]
        if "multiple-choice" in text:
            number = text.split("bell number ")[1].split()[0]
            question = {"question": f"How many strokes ring out in take {number}?", "choices": ["two", "four", "six",
                        "nine"], "answer": "six"}  # fmt: skip
            return ServerReply(json.dumps({"questions": [question]}), wait_s=0.005)
        parts = ("planning", "caption", "reasoning", "summary")
        chain = {part: "I hear a bell and count: six." for part in parts}
        return ServerReply(json.dumps(chain if "four parts" in text else {"thought": "I count six."}), wait_s=0.005)

    row = {"labels": ["bell"], "split": "train"}
    rows = [row | {"path": f"clips/{n}.wav", "caption": f"A bell number {n} rings six times."} for n in range(120)]
    collection = tmp_path / "clips.jsonl"
    collection.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(out: str) -> list[object]:
        sizes = ["--sft", 40, "--rl", 60, "--concurrency", 4, "--seed", 3]
        return [
            "build",
            "sari",
            collection,
            "--out",
            tmp_path / out,
            "--teacher",
            chat.url,
            "--teacher-model",
            "m",
            *sizes,
        ]

    rng = random.Random(1)
    with run_chat_server(teacher) as chat:
        for _ in range(2):
            before = len(chat.bodies)
            child = started(arguments("killed"))
            wait_for_a_request(chat, before, time.monotonic() + 60)
            time.sleep(rng.uniform(0, 0.3))
            child.kill()
            child.communicate()
        for out in ("killed", "whole"):
            child = started(arguments(out))
            _, err = child.communicate(timeout=300)
            assert child.returncode == 0, err
    for name, count in (("sft-structured.jsonl", 40), ("sft-unstructured.jsonl", 40), ("rl.jsonl", 60)):
        killed = (tmp_path / "killed" / name).read_bytes()
        assert killed == (tmp_path / "whole" / name).read_bytes() and killed.count(b"\n") == count
    for step in ("questions", "chains"):
        rows_of = logged(tmp_path / "killed" / "work" / step)
        assert len({row["key"] for row in rows_of}) == len(rows_of) == {"questions": 120, "chains": 80}[step]
