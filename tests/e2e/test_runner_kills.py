"""kill -9 at any moment, again and again: no answer is lost, none is asked for twice once it is there.

A real server, real processes, real kills. A parent process that has imported the runner forks one for every kill, so
that a hundred take seconds.
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

from chat_server import Chat, Say, serving
from e2e.shell import started

KILLS = 100
BUDGET_S = 60.0
ENOUGH = 10
N = 1500

# Forks a runner for every line on stdin and says its process id; waits for it when told.
PARENT = """
import os, sys
from pathlib import Path
from earwise.datasets.teachers.request_runner import ask_teacher
from earwise.datasets.teachers.teacher import RemoteTeacher, TeacherRequest
from earwise.engine.remote.openai_http import Limits
import httpx  # here, so that children have it
url, folder, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
requests = [TeacherRequest(str(i), "test", ({"role": "user", "content": f"question {i}"},)) for i in range(n)]
for line in sys.stdin:
    child = os.fork()
    if not child:
        ask_teacher(requests, RemoteTeacher(url, "m"), folder, limits=Limits(concurrency=8, backoff_s=0.01))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def answer(body: dict[str, Any], count: int) -> Say:
    return Say(f"answer to {body['messages'][0]['content']} " + "x" * 200)


def logged(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the log; a half one at the end is left for the runner to heal."""
    path = folder / "rows.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def environment() -> dict[str, str]:
    return os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def wait_for_a_request(chat: Chat, before: int, deadline: float) -> None:
    while len(chat.bodies) == before and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_hundred_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    kills = 0
    deadline = time.monotonic() + BUDGET_S
    with serving(answer) as chat:
        command = [sys.executable, "-c", PARENT, chat.url, str(tmp_path), str(N)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        ) as parent:
            assert parent.stdin and parent.stdout
            done: set[str] = set()
            while kills < KILLS and time.monotonic() < deadline and len(done) < N:
                before = len(chat.bodies)
                parent.stdin.write("go\n")
                parent.stdin.flush()
                child = int(parent.stdout.readline())
                wait_for_a_request(chat, before, deadline)
                time.sleep(rng.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
                parent.stdout.readline()
                kills += 1
                asked = {body["messages"][0]["content"].split()[1] for body in chat.bodies[before:]}
                assert not asked & done, "asked for again although the answer was there"
                rows = logged(tmp_path)
                now = {row["id"] for row in rows}
                assert len(rows) == len(now) and done <= now, "an answer was lost or written twice"
                done = now
                if kills % 5 == 0:  # what a kill inside the write itself leaves
                    with (tmp_path / "rows.jsonl").open("ab") as log:
                        log.write(b'{"key": "0123", "val')
            before = len(chat.bodies)
            parent.stdin.write("go\n")
            parent.stdin.close()
            parent.stdout.readline()
            assert parent.stdout.readline().strip() == "0"
    assert kills >= ENOUGH
    rows = logged(tmp_path)
    assert sorted(int(row["id"]) for row in rows) == list(range(N))
    assert all(row["value"].startswith(f"answer to question {row['id']} x") for row in rows)
    assert not {body["messages"][0]["content"].split()[1] for body in chat.bodies[before:]} & done
    repeated = len(chat.bodies) - N
    assert repeated <= 8 * kills, "more was asked for again than was under way at the kills"


def test_the_command_line_goes_on_after_kills(tmp_path: Path) -> None:
    """`earwise build sari` with a server as its teacher, killed while it asks, ends with the same files as an
    undisturbed run.
    """

    def teacher(body: dict[str, Any], count: int) -> Say:
        text = body["messages"][1]["content"]
        if "multiple-choice" in text:
            number = text.split("bell number ")[1].split()[0]
            question = {"question": f"How many strokes ring out in take {number}?", "choices": ["two", "four", "six",
                        "nine"], "answer": "six"}  # fmt: skip
            return Say(json.dumps({"questions": [question]}), wait_s=0.005)
        parts = ("planning", "caption", "reasoning", "summary")
        said = {part: "I hear a bell and count: six." for part in parts}
        return Say(json.dumps(said if "four parts" in text else {"thought": "I count six."}), wait_s=0.005)

    row = {"labels": ["bell"], "split": "train"}
    rows = [row | {"path": f"clips/{n}.wav", "caption": f"A bell number {n} rings six times."} for n in range(120)]
    listed = tmp_path / "clips.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(out: str) -> list[object]:
        sizes = ["--sft", 40, "--rl", 60, "--concurrency", 4, "--seed", 3]
        return ["build", "sari", listed, "--out", tmp_path / out, "--teacher", chat.url, "--teacher-model", "m", *sizes]

    rng = random.Random(1)
    with serving(teacher) as chat:
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
