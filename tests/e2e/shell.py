"""The command line as tests use it: in this process, or as a process of its own that can be killed."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from child_process import python_path
from earwise import cli as commands
from earwise.data.manifest_path import STARTER as STARTER
from earwise.types import Example

# Two stages on a few clips. Every step is saved, so that a test may kill the run at any moment.
RECIPE = """
recipe: tiny
seed: 7
stages:
  - kind: sft
    name: sft
    data: {mixture: [{manifest: questions.jsonl}], styles: {answer: 0.5, plain: 0.5}}
    clips_per_step: 2
    questions_per_clip: 1
    max_steps: 2
    save_steps: 1
    pack_tokens: 256
    optimizer: {learning_rate: 1.0e-4}
    trainable: {connector: full, decoder: lora, lora: {r: 2, lora_alpha: 4, target_modules: [q_proj, v_proj]}}
  - kind: grpo
    name: grpo
    data: {mixture: [{manifest: questions.jsonl}]}
    prompts_per_step: 2
    group_size: 3
    max_new_tokens: 3
    temperature: 3.0
    rewards: {"e2e.shell:vowels": 1.0}
    max_steps: 4
    save_steps: 1
    pack_tokens: 256
    optimizer: {learning_rate: 1.0e-4}
    trainable: {connector: full, decoder: lora, lora: {r: 2, lora_alpha: 4, target_modules: [q_proj, v_proj]}}
eval:
  - {manifest: questions.jsonl, style: answer, max_new_tokens: 3, limit: 2}
on_overlap: warn
profiles:
  short: {"stages.*.max_steps": 1, eval: []}
"""


def vowels(example: Example, completion: str) -> float:
    """A reward that differs between the completions of an untrained model: the share of vowels."""
    return sum(letter in "aeiou" for letter in completion) / max(1, len(completion))


HERE = Path(__file__).parent


@dataclass(frozen=True)
class Done:
    """The result of a command: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


Cli = Callable[..., Done]


def in_process(*arguments: object) -> Done:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = commands.run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def started(arguments: Sequence[object], *, before: str = "") -> subprocess.Popen[str]:
    """Start a command line as a process of its own, with the number of threads of this one (for the same bits).

    Args:
        arguments: The command line.
        before: Python code to run first, for example to set limits.
    """
    # a shell starts background jobs with Ctrl-C ignored
    listen_to_sigint = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen_to_sigint}\n{before}\nfrom earwise.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": python_path()},
    )
