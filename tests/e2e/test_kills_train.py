"""Repeated kill -9 at any moment of a training run: `--resume` ends with the same bits, and no step is logged twice.

Real processes and real kills. A parent process that has imported torch forks one `earwise train` for each kill. A kill
comes at the n-th time that the run is about to touch its folder (open, rename, delete ...), which hits the gaps between
two writes, or some milliseconds later, which hits the inside of writes and of steps.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import tiny_qwen2_audio, tone
from child_process import python_path
from earwise.audio import encode_ogg
from earwise.data import manifest
from earwise.types import Audio, Example, Text, Turn

TESTS = Path(__file__).parents[1]
KILLS_PER_RUN = 8
MIN_KILLS = 20
"""Kills of the four runs together; a run may be finished before its last kill comes."""
MAX_DELAY_S = 0.03
TIMINGS = ("seconds", "data_seconds", "tokens_per_s", "audio_s_per_s")

# For each line on stdin, forks the processes of one `earwise train`; prints their ids, and later their exit codes.
PARENT = """
import json, os, resource, signal, sys
import torch, accelerate, peft
torch.set_num_threads(1)
from earwise import cli
from earwise.engine import local
from earwise.models.families import qwen2_audio
from earwise.training import run

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR
REPORTS = os.dup(1)

def count_touches(folder, number, exact):
    touches = 0
    def hook(event, values):
        nonlocal touches
        if event not in EVENTS or not any(str(value).startswith(folder) for value in values):
            return
        if event == "open" and not values[2] & WRITES:
            return
        touches += 1
        if touches == number:
            os.write(REPORTS, b"reached 0\\n")
            if exact:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return lambda: touches

def train(rank, job):
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "LOCAL_WORLD_SIZE": job["processes"]}
    if job["processes"] > 1:
        os.environ.update({name: str(value) for name, value in ranks.items()} | {"MASTER_PORT": str(job["port"])})
    if job["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the limit holds for the file behind stderr, too
    os.dup2(2, 1)  # the output of the command
    num_touches = count_touches(job["folder"], job["touch"], job["exact"])
    code = cli.run(job["arguments"])
    if rank == 0:
        os.write(REPORTS, b"touched %d\\n" % num_touches())
    os._exit(code)

for line in sys.stdin:
    job = json.loads(line)
    children = [os.fork() or train(rank, job) for rank in range(job["processes"])]
    print(*children, flush=True)
    for child in children:
        print("ended", os.waitpid(child, 0)[1], flush=True)
"""

COMMON = {"save_steps": 1, "pack_tokens": 300, "optimizer": {"learning_rate": 3e-3}}
FULL = {"trainable": {"decoder": "full"}}
LORA = {"trainable": {"decoder": "lora", "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}}}
SFT = {"kind": "sft", "max_steps": 3, "clips_per_step": 2, "questions_per_clip": 1}
DPO = {"kind": "dpo", "max_steps": 3, "clips_per_step": 1, "questions_per_clip": 1, "negatives": "options"}
GRPO = {"kind": "grpo", "max_steps": 4, "prompts_per_step": 2, "group_size": 3, "max_new_tokens": 4,
        "rewards": {"e2e.shell:vowels": 1.0}, "log_completions_steps": 1}  # fmt: skip
COMPRESS = {"kind": "compress", "max_steps": 3, "clips_per_step": 1, "questions_per_clip": 1, "steps_per_unit": 1,
            "reset_optimizer": True, "styles": "think"}  # fmt: skip
ONLINE = {"curriculum": {"order": "online", "reward": "e2e.shell:vowels", "exploration": 0.3}}
RUNS: dict[str, list[dict[str, Any]]] = {
    "sft then grpo": [SFT | FULL, GRPO | LORA],
    "rare saves": [GRPO | FULL | ONLINE | {"num_iterations": 2, "max_steps": 8, "save_steps": 4}],
    "dpo then compress": [DPO | LORA, COMPRESS | FULL | {"save_total_limit": 2}],
    "grpo online": [GRPO | FULL | ONLINE | {"beta": 0.0, "max_steps": 6}],
}


@dataclass(frozen=True)
class CommandResult:
    """Result of a command: exit codes of its processes (-9: killed), touches of the folder, last line on stderr."""

    codes: tuple[int, ...]
    touches: int
    line: str


class CommandRunner:
    """Runs commands through the parent process, whose children write their stderr to `log`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self._log = process, log

    def __call__(
        self, arguments: list[object], folder: Path, touch: int = 0, after_s: float | None = None, *,
        processes: int = 1, victim: int = 0, limit: int = 0,
    ) -> CommandResult:  # fmt: skip
        """Run a command line.

        Args:
            arguments: Arguments of `earwise`.
            folder: Folder of the run.
            touch: Number of the touch of the folder at which a process is killed; 0: never.
            after_s: Seconds from that touch to the kill; None: exactly at the touch.
            processes: Number of processes that run the command together.
            victim: Number of the process that is killed.
            limit: Largest file that may be written, in bytes; 0: no limit.
        """
        requests, reports = self._process.stdin, self._process.stdout
        assert requests and reports
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        job = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "touch": touch,
            "limit": limit,
        }
        job |= {"exact": after_s is None, "processes": processes, "port": port}
        requests.write(json.dumps(job) + "\n")
        requests.flush()
        children = [int(child) for child in reports.readline().split()]
        codes, touches = [], 0
        while len(codes) < processes:
            word, value = reports.readline().split()
            if word == "reached" and after_s is not None:
                time.sleep(after_s)
                with suppress(ProcessLookupError):  # it has already ended
                    os.kill(children[victim], signal.SIGKILL)
            elif word == "touched":
                touches = int(value)
            elif word == "ended":
                codes.append(os.waitstatus_to_exitcode(int(value)))
        return CommandResult(tuple(codes), touches, self._log.read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def run_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandRunner]:
    log = tmp_path_factory.mktemp("commands") / "stderr"
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(), "MASTER_ADDR": "127.0.0.1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        log.open("a") as stderr,
        subprocess.Popen([sys.executable, "-c", PARENT], stderr=stderr, env=os.environ | variables, **pipes) as process,
    ):
        yield CommandRunner(process, log)
        assert process.stdin
        process.stdin.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with four clips, a question with reasoning about each, and a tiny model."""
    folder = tmp_path_factory.mktemp("data")
    tiny_qwen2_audio(3).save(folder / "base")
    rows = []
    for number, answer in enumerate(("low", "mid", "high", "low")):
        (folder / f"{number}.ogg").write_bytes(encode_ogg(tone(0.3 + 0.1 * number, 300.0 * (number + 1)), 16000))
        turns = (Turn("user", (Audio(f"{number}.ogg"), Text("pitch?"))),)
        choices, reasoning = ("low", "mid", "high"), f"It hums. It stays so. So it is {answer}."
        rows.append(Example(f"{number}", turns, (answer,), choices, reasoning=reasoning, root=folder))
    manifest.write(folder / "rows.jsonl", rows)
    return folder


def write_recipe(folder: Path, name: str) -> Path:
    """Write the recipe of one of `RUNS`."""
    stages = []
    for stage in RUNS[name]:
        style = stage.get("styles", "answer")
        mixture = {"mixture": [{"manifest": "rows.jsonl"}], "styles": {style: 1.0}}
        stages.append(COMMON | {"data": mixture} | {key: value for key, value in stage.items() if key != "styles"})
    path = folder / f"{name}.yaml"
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    path.write_text(yaml.safe_dump({"recipe": "t", "model": model, "seed": 5, "trackers": [], "stages": stages}))
    return path


def train_arguments(path: Path, out: Path) -> list[object]:
    """Arguments that start a run, or resume it if its folder exists already."""
    return ["train", "--resume", out] if (out / "recipe.json").exists() else ["train", path, "--out", out]


def logged_rows(out: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without timings and without the check under silence, which every process logs once."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in TIMINGS and not key.endswith("/hearing")}
        for row in rows
    ]


def file_contents(run: Path, name: str) -> dict[str, bytes]:
    """Contents of all files of a folder of a run, without the run's path, which an adapter names as its base."""
    contents = {path.relative_to(run / name): path.read_bytes() for path in (run / name).rglob("*") if path.is_file()}
    return {str(path): content.replace(str(run).encode(), b"") for path, content in contents.items()}


kills: list[str] = []
"""The kills of all runs, each beginning with the name of the run."""


@pytest.mark.parametrize("name", RUNS)
def test_run_that_is_killed_repeatedly_equals_an_undisturbed_run(
    name: str, run_command: CommandRunner, data: Path, tmp_path: Path
) -> None:
    path, whole, out = write_recipe(data, name), tmp_path / "whole", tmp_path / "killed"
    undisturbed = run_command(train_arguments(path, whole), whole)
    assert undisturbed.codes == (0,), undisturbed.line
    rng = random.Random(name)
    for number in range(KILLS_PER_RUN):
        touch = rng.randint(1, 2 * undisturbed.touches // (KILLS_PER_RUN + 1))
        after_s = None if number % 2 else rng.uniform(0, MAX_DELAY_S)
        result = run_command(train_arguments(path, out), out, touch, after_s)
        if result.codes != (-signal.SIGKILL,):
            assert result.codes == (0,), result.line
            break
        kills.append(f"{name}: {touch} {after_s}")
    last = run_command(train_arguments(path, out), out)
    assert last.codes == (0,), last.line
    assert_same_files(out, whole)
    steps = [(row["stage"], row["step"]) for row in logged_rows(out)]
    assert len(set(steps)) == len(steps) == sum(stage["max_steps"] for stage in RUNS[name])
    assert list(out.rglob(".*")) == [], "unfinished files of killed processes are deleted"


def assert_same_files(out: Path, whole: Path) -> None:
    """Assert that two runs have the same weights, log rows and samples."""
    for stage in sorted(whole.glob("stage-*")):
        assert file_contents(out, f"{stage.name}/final") == file_contents(whole, f"{stage.name}/final")
    assert file_contents(out, "final") == file_contents(whole, "final")
    assert logged_rows(out) == logged_rows(whole)
    if (whole / "rollouts.jsonl").exists():
        assert (out / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()


def test_number_of_kills() -> None:
    """Checked if all tests above have run."""
    if len({kill.partition(":")[0] for kill in kills}) == len(RUNS):
        assert len(kills) >= MIN_KILLS


def test_log_torn_by_a_full_disk_is_continued(run_command: CommandRunner, data: Path, tmp_path: Path) -> None:
    """With a limit on the size of files, the log row that does not fit is torn, and no checkpoint can be saved."""
    path, whole, out = write_recipe(data, "rare saves"), tmp_path / "whole", tmp_path / "full"
    assert run_command(train_arguments(path, whole), whole).codes == (0,)
    out.mkdir()
    record = (whole / "recipe.json").read_text().replace('"save_steps": 4', '"save_steps": 100')
    (out / "recipe.json").write_text(record)
    full = run_command(train_arguments(path, out), out, limit=(whole / "metrics.jsonl").stat().st_size * 2 // 3)
    assert full.codes == (2,)
    logs = [log.read_bytes() for log in out.glob("*.jsonl")]
    assert any(not log.endswith(b"\n") for log in logs) and all(log.count(b"\n") > 1 for log in logs)
    assert run_command(train_arguments(path, out), out).codes == (0,)
    assert_same_files(out, whole)


DISK = """
import json, shutil, subprocess, sys
from earwise import cli
disk, recipe, size, copies = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
first = cli.run(["train", recipe, "--out", f"{disk}/run"])
shutil.copytree(f"{disk}/run", f"{copies}/full", symlinks=True)
subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
second = cli.run(["train", "--resume", f"{disk}/run"])
shutil.copytree(f"{disk}/run", f"{copies}/run", symlinks=True)
print(first, second)
"""


def test_full_disk_leaves_the_last_checkpoint(run_command: CommandRunner, data: Path, tmp_path: Path) -> None:
    """On a file system with room for one and a half checkpoints, the second one does not fit."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("cannot mount a file system here: unshare is missing or not allowed")
    path, whole = (
        write_recipe(data, "grpo online"),
        tmp_path / "whole" / "run",
    )  # as deep as the other: logs have relative paths
    assert run_command(train_arguments(path, whole), whole).codes == (0,)
    (checkpoint,) = whole.glob("stage-*/checkpoint-*/state.pt")
    (tmp_path / "disk").mkdir()
    disk_arguments = [str(tmp_path / "disk"), str(path), str(int(1.5 * checkpoint.stat().st_size)), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    result = subprocess.run(
        [*unshare, sys.executable, "-c", DISK, *disk_arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.stdout.splitlines()[-1] == "2 0", result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert re.search(r"checkpoint at step 2 cannot be written \(.*it needs about 0\.\d MB, 0\.\d MB are free\)", line)
    assert line.endswith("free some space, then --resume")
    assert [path.name for path in tmp_path.glob("full/stage-0-grpo/*") if path.is_dir()] == ["checkpoint-1"]
    assert list((tmp_path / "full").rglob(".*")) == []
    assert_same_files(tmp_path / "run", whole)


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_stops_the_others_and_no_step_is_lost(
    victim: int, run_command: CommandRunner, data: Path, tmp_path: Path
) -> None:
    path, whole, out = write_recipe(data, "grpo online"), tmp_path / "whole", tmp_path / "lost"
    undisturbed = run_command(train_arguments(path, whole), whole, processes=2)
    assert undisturbed.codes == (0, 0), undisturbed.line
    lost = run_command(train_arguments(path, out), out, undisturbed.touches // 2, 0.01, processes=2, victim=victim)
    assert lost.codes[victim] == -signal.SIGKILL and lost.codes[1 - victim] == 2
    assert "lost the others" in lost.line and lost.line.endswith("start all of them again with --resume")
    resumed = run_command(train_arguments(path, out), out, processes=2)
    assert resumed.codes == (0, 0), resumed.line
    assert_same_files(out, whole)
