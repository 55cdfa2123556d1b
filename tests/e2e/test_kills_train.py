"""kill -9 at any moment of a training run, again and again: `--resume` ends with the same bits, nothing logged twice.

Real processes and real kills. A parent that has imported torch forks one `earwise train` for every kill. A kill comes
at the n-th time that the run is about to touch its folder (open, rename, delete ...), which hits every gap between two
writes, or some milliseconds later, which hits the inside of writes and of steps.
"""

import json
import os
import random
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

from builders import sound, tiny_qwen2_audio
from earwise.audio import encode_ogg
from earwise.data import manifest
from earwise.types import Audio, Example, Text, Turn

TESTS = Path(__file__).parents[1]
KILLS = 8  # of each run; four runs
ENOUGH = 20  # in all: a run may be done before its last kill comes
LATEST_S = 0.03
TIMES = ("seconds", "data_seconds", "tokens_per_s", "audio_s_per_s")

# Forks `earwise train` for every line on stdin, once for every process of it; says their ids, then how they ended.
PARENT = """
import json, os, resource, signal, sys
import torch, accelerate, peft
torch.set_num_threads(1)
from earwise import cli
from earwise.engine import local
from earwise.models import qwen2_audio
from earwise.train import run

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR
TOLD = os.dup(1)

def watch(folder, number, exact):
    seen = 0
    def look(event, values):
        nonlocal seen
        if event not in EVENTS or not any(str(value).startswith(folder) for value in values):
            return
        if event == "open" and not values[2] & WRITES:
            return
        seen += 1
        if seen == number:
            os.write(TOLD, b"there 0\\n")
            if exact:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)
    return lambda: seen

def train(rank, job):
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["processes"], "LOCAL_WORLD_SIZE": job["processes"]}
    if job["processes"] > 1:
        os.environ.update({name: str(value) for name, value in ranks.items()} | {"MASTER_PORT": str(job["port"])})
    if job["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a file, too
    os.dup2(2, 1)  # what the command prints
    seen = watch(job["folder"], job["touch"], job["exact"])
    code = cli.run(job["arguments"])
    if rank == 0:
        os.write(TOLD, b"touched %d\\n" % seen())
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
class Ended:
    """How the processes of a command ended: exit codes (-9: killed), touches of the folder, the last line said."""

    codes: tuple[int, ...]
    touches: int
    line: str


class Warm:
    """The parent; `log` is its children's stderr."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self._log = process, log

    def __call__(
        self, arguments: list[object], folder: Path, touch: int = 0, after_s: float | None = None, *,
        processes: int = 1, victim: int = 0, limit: int = 0,
    ) -> Ended:  # fmt: skip
        """Run a command line.

        Args:
            arguments: Of `earwise`.
            folder: Of the run.
            touch: Kill at this touch of the folder; 0: never.
            after_s: Kill so long after it; None: exactly there.
            processes: How many run the command together.
            victim: Which of them is killed.
            limit: Largest file that may be written, bytes; 0: any.
        """
        into, out = self._process.stdin, self._process.stdout
        assert into and out
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {"arguments": [str(one) for one in arguments], "folder": str(folder), "touch": touch, "limit": limit}
        job |= {"exact": after_s is None, "processes": processes, "port": port}
        into.write(json.dumps(job) + "\n")
        into.flush()
        children = [int(child) for child in out.readline().split()]
        codes, touches = [], 0
        while len(codes) < processes:
            word, value = out.readline().split()
            if word == "there" and after_s is not None:
                time.sleep(after_s)
                with suppress(ProcessLookupError):  # done already
                    os.kill(children[victim], signal.SIGKILL)
            elif word == "touched":
                touches = int(value)
            elif word == "ended":
                codes.append(os.waitstatus_to_exitcode(int(value)))
        return Ended(tuple(codes), touches, self._log.read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    log = tmp_path_factory.mktemp("warm") / "stderr"
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "MASTER_ADDR": "127.0.0.1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        log.open("a") as said,
        subprocess.Popen([sys.executable, "-c", PARENT], stderr=said, env=os.environ | own, **pipes) as process,
    ):
        yield Warm(process, log)
        assert process.stdin
        process.stdin.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips with a question and a chain each, and a tiny model."""
    folder = tmp_path_factory.mktemp("data")
    tiny_qwen2_audio(3).save(folder / "base")
    rows = []
    for number, answer in enumerate(("low", "mid", "high", "low")):
        (folder / f"{number}.ogg").write_bytes(encode_ogg(sound(0.3 + 0.1 * number, 300.0 * (number + 1)), 16000))
        turns = (Turn("user", (Audio(f"{number}.ogg"), Text("pitch?"))),)
        choices, thought = ("low", "mid", "high"), f"It hums. It stays so. So it is {answer}."
        rows.append(Example(f"{number}", turns, (answer,), choices, reasoning=thought, root=folder))
    manifest.write(folder / "rows.jsonl", rows)
    return folder


def recipe(folder: Path, name: str) -> Path:
    stages = []
    for stage in RUNS[name]:
        style = stage.get("styles", "answer")
        given = {"mixture": [{"manifest": "rows.jsonl"}], "styles": {style: 1.0}}
        stages.append(COMMON | {"data": given} | {key: value for key, value in stage.items() if key != "styles"})
    path = folder / f"{name}.yaml"
    model = {"name": "qwen2_audio", "weights": str(folder / "base")}
    path.write_text(yaml.safe_dump({"recipe": "t", "model": model, "seed": 5, "trackers": [], "stages": stages}))
    return path


def arguments(path: Path, out: Path) -> list[object]:
    return ["train", "--resume", out] if (out / "recipe.json").exists() else ["train", path, "--out", out]


def logged(out: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, but for what is of the clock, and of a process: it looks once whether the model hears."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in TIMES and not key.endswith("/hearing")} for row in rows
    ]


def files(run: Path, name: str) -> dict[str, bytes]:
    """All files of a folder of a run; an adapter names the run's folder as its base."""
    found = {path.relative_to(run / name): path.read_bytes() for path in (run / name).rglob("*") if path.is_file()}
    return {str(path): data.replace(str(run).encode(), b"") for path, data in found.items()}


kills: list[str] = []


@pytest.mark.parametrize("name", RUNS)
def test_killed_again_and_again_and_resumed_is_undisturbed(name: str, warm: Warm, data: Path, tmp_path: Path) -> None:
    path, whole, out = recipe(data, name), tmp_path / "whole", tmp_path / "killed"
    undisturbed = warm(arguments(path, whole), whole)
    assert undisturbed.codes == (0,), undisturbed.line
    rng = random.Random(name)
    for number in range(KILLS):
        at = rng.randint(1, 2 * undisturbed.touches // (KILLS + 1))
        after_s = None if number % 2 else rng.uniform(0, LATEST_S)
        ended = warm(arguments(path, out), out, at, after_s)
        if ended.codes != (-signal.SIGKILL,):
            assert ended.codes == (0,), ended.line
            break
        kills.append(f"{name}: {at} {after_s}")
    last = warm(arguments(path, out), out)
    assert last.codes == (0,), last.line
    alike(out, whole)
    steps = [(row["stage"], row["step"]) for row in logged(out)]
    assert len(set(steps)) == len(steps) == sum(stage["max_steps"] for stage in RUNS[name])
    assert list(out.rglob(".*")) == [], "what kills left behind is cleared away"


def alike(out: Path, whole: Path) -> None:
    """Two runs left the same weights, rows and samples."""
    for stage in sorted(whole.glob("stage-*")):
        assert files(out, f"{stage.name}/final") == files(whole, f"{stage.name}/final")
    assert files(out, "final") == files(whole, "final")
    assert logged(out) == logged(whole)
    if (whole / "rollouts.jsonl").exists():
        assert (out / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()


def test_enough_kills_came() -> None:
    """Of the tests above, when they ran."""
    if len({one.partition(":")[0] for one in kills}) == len(RUNS):
        assert len(kills) >= ENOUGH


def test_a_log_on_a_full_disk_goes_on_where_it_was(warm: Warm, data: Path, tmp_path: Path) -> None:
    """A file may not grow beyond some steps' rows: the row that does not fit is torn, nothing can be saved."""
    path, whole, out = recipe(data, "rare saves"), tmp_path / "whole", tmp_path / "full"
    assert warm(arguments(path, whole), whole).codes == (0,)
    out.mkdir()
    kept = (whole / "recipe.json").read_text().replace('"save_steps": 4', '"save_steps": 100')
    (out / "recipe.json").write_text(kept)
    full = warm(arguments(path, out), out, limit=(whole / "metrics.jsonl").stat().st_size * 2 // 3)
    assert full.codes == (2,)
    torn = [log.read_bytes() for log in out.glob("*.jsonl")]
    assert any(not log.endswith(b"\n") for log in torn) and all(log.count(b"\n") > 1 for log in torn)
    assert warm(arguments(path, out), out).codes == (0,)
    alike(out, whole)


DISK = """
import json, shutil, subprocess, sys
from earwise import cli
disk, recipe, size, kept = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
first = cli.run(["train", recipe, "--out", f"{disk}/run"])
shutil.copytree(f"{disk}/run", f"{kept}/full", symlinks=True)
subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
second = cli.run(["train", "--resume", f"{disk}/run"])
shutil.copytree(f"{disk}/run", f"{kept}/run", symlinks=True)
print(first, second)
"""


def test_a_full_disk_keeps_the_last_checkpoint(warm: Warm, data: Path, tmp_path: Path) -> None:
    """A file system of its own with room for one checkpoint and a half: the second one does not fit."""
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system of one's own here: unshare is missing or not allowed")
    path, whole = recipe(data, "grpo online"), tmp_path / "whole" / "run"  # as deep: clips are named from there
    assert warm(arguments(path, whole), whole).codes == (0,)
    (checkpoint,) = whole.glob("stage-*/checkpoint-*/state.pt")
    (tmp_path / "disk").mkdir()
    given = [str(tmp_path / "disk"), str(path), str(int(1.5 * checkpoint.stat().st_size)), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [*own, sys.executable, "-c", DISK, *given], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.splitlines()[-1] == "2 0", done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "checkpoint at step 2 cannot be written" in line and line.endswith("free some space, then --resume")
    assert [one.name for one in tmp_path.glob("full/stage-0-grpo/*")] == ["checkpoint-1"]
    assert list((tmp_path / "full").rglob(".*")) == []
    alike(tmp_path / "run", whole)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_worker_stops_the_others_and_nothing_is_lost(
    victim: int, warm: Warm, data: Path, tmp_path: Path
) -> None:
    path, whole, out = recipe(data, "grpo online"), tmp_path / "whole", tmp_path / "lost"
    undisturbed = warm(arguments(path, whole), whole, processes=2)
    assert undisturbed.codes == (0, 0), undisturbed.line
    lost = warm(arguments(path, out), out, undisturbed.touches // 2, 0.01, processes=2, victim=victim)
    assert lost.codes[victim] == -signal.SIGKILL and lost.codes[1 - victim] == 2
    assert "lost the others" in lost.line and lost.line.endswith("start all of them again with --resume")
    resumed = warm(arguments(path, out), out, processes=2)
    assert resumed.codes == (0, 0), resumed.line
    alike(out, whole)
