"""Runs the commands of one page in a folder of their own, and checks what each training left behind.

Every command is a process: a fork of one that has imported torch and transformers already, which saves the seconds that
each would spend on importing them. The launchers (`accelerate launch`, `torchrun`) of two pages go through a shell as
the page has them; those of the other pages are forks too (`launchers.launch`).
"""

import contextlib
import fcntl
import json
import math
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from earwise import cli
from earwise.files import append_jsonl, read_log
from rehearsal.launchers import LAUNCHERS, launch
from rehearsal.page_commands import PageCommand, belongs_to_other, commands
from rehearsal.reductions import STEPS, other_differences, published, reduced

DONE = "commands.jsonl"
"""File of a page's folder with a row for every finished command."""
MAX_OUTPUT_CHARS = 1500
"""Part of a failed command's output that is kept."""
LAUNCH_LOCK = "launch.lock"
"""File beside the pages' folders, locked while a launcher runs: each takes the same port, and several processes."""
STARTED_BY_A_SHELL = ("r1-aqa", "mellow")
"""Pages whose launchers start as a user starts them; one has `accelerate launch`, the other `torchrun`."""
Row = dict[str, Any]


def run_page(page: str, recipes: Sequence[str], folder: Path, address: str) -> list[Row]:
    """Run the commands of a page in their order, up to the first that fails; finished ones are not run again.

    Args:
        page: Name of the page.
        recipes: Recipes whose commands are run; commands for no particular recipe always are.
        folder: Folder with the downloads, where the commands run.
        address: Address of the stand-in for language models.
    Returns:
        A row for each command: `line`, `ran`, `reductions`, `seconds`, `cpu_seconds` (of all its processes), `peak_mb`
        (of the largest of them), `ok`, what `check_training` says, and `earlier` if it was finished before.
    """
    finished = {row["ran"]: row for row in read_log(folder / DONE)} if (folder / DONE).exists() else {}
    rows: list[Row] = []
    for number, command in enumerate(commands(page)):
        if all(belongs_to_other(command, recipe, page) for recipe in recipes):
            continue
        line, names = reduced(command, address)
        key = line.replace(address, "ADDRESS")
        if key in finished:
            rows.append(finished[key] | {"earlier": True})
            continue
        print(f"{page}: {command.line}", file=sys.stderr, flush=True)
        row = {"page": page, "line": command.line, "ran": key, "reductions": names}
        log = folder / "logs" / f"{number:02}.txt"
        row |= run_command(command, line, folder, log, by_shell=command.is_launched and page in STARTED_BY_A_SHELL)
        rows.append(row)
        if not row["ok"]:
            print(f"{page}: FAILED {line}\n{row.get('problem', '')}\n{row.get('output', '')}", file=sys.stderr)
            break
        append_jsonl(folder / DONE, row)
    return rows


def run_command(command: PageCommand, line: str, folder: Path, log: Path, *, by_shell: bool) -> Row:
    """Run one command, and check what it left.

    Args:
        command: The command as the page has it.
        line: What to run.
        folder: Working folder.
        log: File for everything that it prints.
        by_shell: Whether a shell starts it, with all its imports, and not a fork of this process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    out = command.option("--out")
    if out and command.earwise[:1] in (("train",), ("evaluate",), ("table",)):
        shutil.rmtree(folder / out, ignore_errors=True)  # of a rehearsal that was interrupted here
    with launch_lock(folder) if command.is_launched else contextlib.nullcontext(), log.open("w") as output:
        started = time.perf_counter()
        if by_shell:
            arguments = ["bash", "-c", line]
            pid = subprocess.Popen(arguments, cwd=folder, stdout=output, stderr=subprocess.STDOUT).pid
        else:
            pid = fork(shlex.split(line), folder, output.fileno())
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - started
    code = os.waitstatus_to_exitcode(status)
    row: Row = {
        "seconds": round(seconds, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024), "ok": code == 0,
    }  # fmt: skip
    if code:
        return row | {"status": code, "output": log.read_text(errors="replace")[-MAX_OUTPUT_CHARS:]}
    return row | check_training(command, folder / str(out)) if command.is_training else row


@contextlib.contextmanager
def launch_lock(folder: Path) -> Iterator[None]:
    """Wait until no other page of the rehearsal launches processes."""
    with (folder.parent / LAUNCH_LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def fork(words: Sequence[str], folder: Path, output: int) -> int:
    """Start a command in a fork of this process.

    Args:
        words: `earwise ...`, `python -m MODULE ...`, or a launcher's command.
        folder: Working folder.
        output: File descriptor for everything that it prints.
    Returns:
        Process id.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.chdir(folder)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.append(str(folder))
        code = run_words(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_words(words: Sequence[str]) -> int:
    """Run a command in this process; returns its exit code."""
    if words[0] == "earwise":
        return cli.run(words[1:])
    if words[0] in LAUNCHERS:
        return launch(words)
    assert words[:2] == ["python", "-m"], words
    sys.argv = list(words[2:])
    sys.modules.pop(words[2], None)  # imported already; it has to run as a program
    try:
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def check_training(command: PageCommand, out: Path) -> Row:
    """What a run wrote, and what is wrong with it.

    Args:
        command: The command as the page has it.
        out: Folder of the run.
    Returns:
        `recipe`, `profile`, `arm`, `stages` (name, kind, steps, seconds, loss, gradient norm), `ok`, and `problem`.
    """
    recorded = json.loads((out / "recipe.json").read_text(encoding="utf-8"))["recipe"]
    recipe = published(command)
    log = [row for row in read_log(out / "metrics.jsonl") if "step" in row]
    stages = []
    problems = [f"setting {key} is not the published one" for key in other_differences(recorded, recipe)]
    for number, stage in enumerate(recipe.stages):
        steps = [row for row in log if row["stage"] == f"stage-{number}-{stage.label}"]
        losses = [row[f"{stage.kind}/loss"] for row in steps if f"{stage.kind}/loss" in row]
        norms = [row["grad_norm"] for row in steps if row.get("grad_norm") is not None]
        stages.append({
            "name": stage.label, "kind": stage.kind, "steps": len(steps),
            "seconds": round(sum(row["seconds"] for row in steps), 1), "loss": losses, "grad_norm": norms,
        })  # fmt: skip
        if len(steps) != STEPS:
            problems.append(f"stage {stage.label} took {len(steps)} steps, not {STEPS}")
        if not losses or not all(math.isfinite(value) for value in [*losses, *norms]):
            problems.append(f"stage {stage.label} has losses {losses} and gradient norms {norms}")
        elif not any(norms):
            problems.append(f"stage {stage.label} trained nothing: all gradients are zero")
    if not (out / "final").exists():
        problems.append("there is no folder final")
    row: Row = {
        "recipe": command.recipe, "profile": command.option("--profile"), "arm": command.option("--arm"),
        "processes": 2 if command.is_launched else 1, "stages": stages, "ok": not problems,
    }  # fmt: skip
    return row | ({"problem": "; ".join(problems)} if problems else {})


def short(line: str) -> str:
    """A command in a few words, for tables.

    >>> short("earwise build avqa AVQA/train_qa.json --audio-root AVQA/wav --out data/avqa/train.jsonl")
    'earwise build avqa'
    """
    words = shlex.split(line)
    if "earwise" in words:
        words = words[words.index("earwise") :]
    return " ".join(words[: 3 if words[1] == "build" else 2])


def import_all() -> None:
    """Import what the commands need, so that their processes start at once."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401

    from earwise.apps import recipe_run  # noqa: F401
    from earwise.apps.paper_tables import measure  # noqa: F401
    from earwise.models.convert import mellow, qwen2_audio  # noqa: F401
    from earwise.training import trainer  # noqa: F401
    from rehearsal import released_files  # noqa: F401
