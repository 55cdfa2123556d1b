"""`accelerate launch` and `torchrun` in a process that has imported torch already; their processes are forks of it.

The launcher's own code reads the command line and its configuration file, sets the environment and waits, as always;
only the processes for `-m earwise` are not started from nothing, which would cost each of them the seconds of its
imports. `running.STARTED_BY_A_SHELL` names the pages whose launchers start as a user starts them.
"""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

from torch.distributed import run as torchrun

from earwise import cli

LAUNCHERS = ("accelerate", "torchrun")
"""First words of the commands that start several processes."""
_OUTPUT_OF = re.compile(r"\$\(earwise (.+)\)")


def launch(words: Sequence[str]) -> int:
    """Run a launcher's command in this process, which must be used for nothing else.

    Args:
        words: `accelerate launch ... -m earwise ...`, or `torchrun ... -m earwise ...`; a word may be
            `$(earwise ...)`.
    Returns:
        The exit code.
    """
    from accelerate.commands.launch import main as accelerate_launch

    words = [_expanded(word) for word in words]
    config_from_args = torchrun.config_from_args

    def config_with_forks(arguments: Any) -> tuple[Any, Any, list[str]]:
        config, _, command = config_from_args(arguments)
        config.start_method = "fork"
        module = command.index("-m")
        assert command[module + 1] == "earwise", command
        return config, run_earwise, command[module + 2 :]

    torchrun.config_from_args = config_with_forks
    sys.argv = list(words[1:] if words[0] == "accelerate" else words)
    (accelerate_launch if words[0] == "accelerate" else torchrun.main)()
    return 0


def run_earwise(*arguments: str) -> None:
    """Run a command line in one of the launched processes; a failure ends that process."""
    if code := cli.run(list(arguments)):
        raise SystemExit(code)


def _expanded(word: str) -> str:
    """A word of a shell command; `$(earwise ...)` stands for what that command prints."""
    command = _OUTPUT_OF.fullmatch(word)
    if command is None:
        return word
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = cli.run(command[1].split())
    assert code == 0, word
    return output.getvalue().strip()
