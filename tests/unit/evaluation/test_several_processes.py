"""Several processes answer one evaluation on one folder: killed anywhere and started again, without loss or doubles."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_server import choose_by_loudness, run_chat_server
from child_process import python_path
from earwise.errors import ConfigError
from earwise.evaluation.items import build_items
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.processes.parts import WHOLE, Part, launched_part, parse_part, share_of
from earwise.evaluation.processes.row_log import all_rows, open_log
from earwise.evaluation.processes.run_part import evaluate_part
from earwise.evaluation.run import evaluate_with_controls, plan
from earwise.files import append_jsonl, read_log
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task

WORKER = """
import sys, time
from pathlib import Path
from scripted_engine import ScriptedEngine, answer_by_pitch, tone_task
from earwise.evaluation.options import EvalOptions
from earwise.evaluation.processes.parts import Part
from earwise.evaluation.processes.run_part import evaluate_part

def slow(prompt):
    time.sleep(0.01)
    return answer_by_pitch(prompt)

folder, out, index, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
evaluate_part(ScriptedEngine(slow), tone_task(folder, 48), out, EvalOptions(batch=2), part=Part(index, count),
              blind=("silence", "shuffled"))
"""
FOLDERS = (".", "silence", "shuffled")


def start(tmp_path: Path, out: Path, index: int, count: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", WORKER, str(tmp_path), str(out), str(index), str(count)]
    return subprocess.Popen(arguments, env=environment)


def timeless(out: Path) -> list[dict[str, Any]]:
    """Rows without the time they took, and without paths, which depend on the folder."""
    return [{**row, "seconds": 0, "audio": []} for row in read_log(out / "samples.jsonl")]


def row_keys(out: Path) -> set[tuple[str, str, int]]:
    return {(folder, row["id"], row["permutation"]) for folder in FOLDERS for row in all_rows(out / folder)}


def test_two_processes_that_are_killed_at_random_equal_one(tmp_path: Path) -> None:
    out, rng = tmp_path / "parts", random.Random(4)
    tone_task(tmp_path, 48)
    kept: set[tuple[str, str, int]] = set()
    running = {index: start(tmp_path, out, index, 2) for index in (0, 1)}
    for _ in range(5):
        before, limit = len(row_keys(out)), time.monotonic() + 30
        while len(row_keys(out)) < before + rng.randrange(4, 16) and time.monotonic() < limit:
            time.sleep(0.005)
        # One of them, or both at once; the other goes on meanwhile.
        for index in rng.choice(([0], [1], [0, 1])):
            running[index].send_signal(signal.SIGKILL)
            running[index].wait()
            rows = row_keys(out)
            assert kept <= rows, "no finished row is lost"
            kept = rows
            running[index] = start(tmp_path, out, index, 2)
    assert [process.wait() for process in running.values()] == [0, 0]
    whole = evaluate_with_controls(
        ScriptedEngine(answer_by_pitch), tone_task(tmp_path, 48), tmp_path / "whole", EvalOptions(batch=2)
    )
    for folder in FOLDERS:
        assert timeless(out / folder) == timeless(tmp_path / "whole" / folder), "the order of the items, and each once"
        assert not (out / folder / "parts").exists()
    metrics = json.loads((out / "metrics.json").read_text())
    assert {**metrics, "seconds": 0} == {**json.loads(json.dumps(whole)), "seconds": 0}


def test_what_two_processes_left_is_finished_by_one_or_three(tmp_path: Path) -> None:
    examples = tone_task(tmp_path, 24)
    for count in (1, 3):
        out, asked = tmp_path / f"by-{count}", 0
        assert evaluate_part(ScriptedEngine(answer_by_pitch), examples, out, part=Part(0, 2), blind=()) is None
        num_kept = len(all_rows(out))
        assert 10 <= num_kept <= 14
        for index in range(count):
            engine = ScriptedEngine(answer_by_pitch)
            metrics = evaluate_part(engine, examples, out, part=Part(index, count), blind=())
            asked += sum(engine.batches)
        assert metrics is not None and metrics["n"] == 24 and asked == 24 - num_kept


def test_the_command_in_two_processes(tmp_path: Path) -> None:
    """As `torchrun` starts it, by RANK and WORLD_SIZE: the last process writes and prints the results; then more items
    are asked in the same folder."""
    rows = []
    for number, example in enumerate(tone_task(tmp_path, 20)):
        clip = f"clips/{number // 2}.wav"
        content = [{"type": "audio", "audio": clip}, {"type": "text", "text": "Which sound is this?"}]
        rows.append({"id": example.id, "messages": [{"role": "user", "content": content}],
                     "choices": list(example.choices), "answer": example.answer[0], "licence": "CC0"})  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with run_chat_server(choose_by_loudness) as server:
        for limit in (6, 20):
            processes = []
            for rank in ("0", "1"):
                environment = {
                    **os.environ,
                    "RANK": rank,
                    "WORLD_SIZE": "2",
                    "EARWISE_HOME": str(tmp_path / rank),
                    "PYTHONPATH": python_path(),
                }
                arguments = ["evaluate", "--data", "rows.jsonl", "--model", f"{server.url}/m", "--out", "run", "--json"]
                arguments += ["--control", "silence", "--limit", str(limit)]
                program = [sys.executable, "-m", "earwise", *arguments]
                processes.append(subprocess.Popen(program, cwd=tmp_path, env=environment, text=True,
                                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE))  # fmt: skip
            outputs = [process.communicate(timeout=120) for process in processes]
            assert [process.returncode for process in processes] == [0, 0], outputs
            printed = [json.loads(stdout) for stdout, _ in outputs if stdout]
            assert [metrics["n"] for metrics in printed] == [limit]
            assert any("the last part writes the results" in stderr for _, stderr in outputs)
    for folder in (".", "silence"):
        ids = [row["id"] for row in read_log(tmp_path / "run" / folder / "samples.jsonl")]
        assert len(ids) == len(set(ids)) == 20 and not (tmp_path / "run" / folder / "parts").exists()


# The folder ----------------------------------------------------------------------------------------------------------


def test_one_writer_a_folder(tmp_path: Path) -> None:
    examples, out = tone_task(tmp_path, 6), tmp_path / "run"
    process = start(tmp_path, out, 0, 2)
    limit = time.monotonic() + 30
    while not (out / "parts" / "1-of-2" / "samples.jsonl").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    engine = ScriptedEngine(answer_by_pitch)
    with pytest.raises(ConfigError, match=r"1 other processes are at work in this folder \(1-of-2\)"):
        evaluate_with_controls(engine, examples, out, blind=())
    with pytest.raises(ConfigError, match="a process is at work as part 1-of-2, this one is 1-of-3"):
        evaluate_part(engine, examples, out, part=Part(0, 3), blind=())
    with pytest.raises(ConfigError, match="another process is at work in this folder"):
        evaluate_part(engine, examples, out, part=Part(0, 2), blind=())
    with pytest.raises(ConfigError, match=r"at work here with other settings \(.*items"):
        evaluate_part(engine, examples, out, part=Part(1, 2), blind=())
    process.kill()
    process.wait()
    assert not engine.batches


def test_a_row_that_stands_twice_counts_once(tmp_path: Path) -> None:
    """A kill between merging the parts and deleting them leaves rows in both places."""
    examples, out = tone_task(tmp_path, 8), tmp_path / "run"
    engine = ScriptedEngine(answer_by_pitch)
    evaluate_with_controls(engine, examples, out, blind=())
    for row in read_log(out / "samples.jsonl")[:5]:
        append_jsonl(out / "parts" / "2-of-2" / "samples.jsonl", row)
    metrics = evaluate_with_controls(ScriptedEngine(answer_by_pitch), examples, out, blind=())
    assert metrics["n"] == 8 and len(read_log(out / "samples.jsonl")) == 8


def test_a_half_written_row_of_another_process_is_left_alone(tmp_path: Path) -> None:
    examples, out = tone_task(tmp_path, 8), tmp_path / "run"
    evaluate_part(ScriptedEngine(answer_by_pitch), examples, out, part=Part(0, 2), blind=())
    path = out / "parts" / "1-of-2" / "samples.jsonl"
    num_rows = len(all_rows(out))
    path.write_bytes(path.read_bytes() + b'{"id": "item-0')
    assert len(all_rows(out)) == num_rows and path.read_bytes().endswith(b"item-0")
    run_plan = plan(ScriptedEngine(answer_by_pitch), examples)
    with open_log(out, run_plan.settings, run_plan.contents, Part(1, 2)) as log:
        assert len(log.rows) == num_rows


# Shares --------------------------------------------------------------------------------------------------------------


def test_items_on_one_clip_follow_each_other_in_one_process(tmp_path: Path) -> None:
    examples = tone_task(tmp_path, 12)
    twins = [replace(example, id=f"{example.id}-again") for example in examples]
    items = build_items([*examples, *twins], EvalOptions())
    shares = [share_of(items, Part(index, 3)) for index in range(3)]
    assert sorted(item.example.id for share in shares for item in share) == sorted(item.example.id for item in items)
    assert [len(share) for share in shares] == [8, 8, 8]
    for share in shares:
        for first, second in zip(share[::2], share[1::2], strict=True):
            assert first.clips == second.clips and second.example.id == f"{first.example.id}-again"
    assert [item.example.id for item in share_of(items, WHOLE)[:2]] == ["item-000", "item-000-again"]


def test_parts_of_the_command_line_and_of_launchers() -> None:
    assert parse_part("2/4") == Part(1, 4) and parse_part("2/4").name == "2-of-4"
    for text in ("0/4", "5/4", "2", "a/b", ""):
        with pytest.raises(ConfigError, match="part"):
            parse_part(text)
    assert launched_part({"RANK": "1", "WORLD_SIZE": "2"}) == Part(1, 2) and launched_part({}) == WHOLE
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "False"}
    with pytest.raises(ConfigError, match="started one process only"):  # accelerate launch --num_processes 2, no GPU
        launched_part(alone)
    assert launched_part(alone | {"RANK": "0", "WORLD_SIZE": "2"}) == Part(0, 2)
