"""The rows of recipes that nothing else builds, and the `earwise` commands that `recipes.py` runs."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from earwise.data.manifest_path import STARTER

INTERRUPTED = 130
"""Exit code of an interrupted command."""
BUILDS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "audiomcq": (
        "runs/contribution/strong.jsonl",
        (
            ("build", "join", "starter:train=160", "--where", "task=recognition", "--seed", "42", "--no-check",
             "--out", "runs/contribution/rows.jsonl"),
            ("build", "contribution", "runs/contribution/rows.jsonl", "--model", "embedded-aligned", "--attempts", "4",
             "--max-new-tokens", "16", "--no-check", "--out", "runs/contribution"),
        ),
    ),
    "audio-r1": (
        "runs/puzzles/puzzles.jsonl",
        (
            ("build", "puzzles", str(STARTER / "clips"), "--limit", "40", "--workers", "1", "--no-check", "--out",
             "runs/puzzles/puzzles.jsonl"),
        ),
    ),
}  # fmt: skip
"""Recipe -> the file that its profile names and nothing else builds, and the `earwise` commands that build it."""


def build_rows(name: str) -> str | None:
    """Build the rows that a recipe needs, unless they exist; a stopped build continues.

    Args:
        name: Name of the recipe.
    Returns:
        The last line of the error output of the command that failed; None if the rows exist.
    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    file, commands = BUILDS.get(name, ("", ()))
    if not file or Path(file).exists():
        return None
    return next((reason for command in commands if (reason := run_command(command))), None)


def run_command(command: Sequence[str]) -> str | None:
    """Run an `earwise` command and show its error output.

    Args:
        command: The arguments.
    Returns:
        The last line of its error output if it failed; None if it succeeded.
    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    last_line = ""
    program = [sys.executable, "-c", "from earwise.cli import main; main()", *command]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                last_line = line.strip() or last_line
                print(f"  {line.rstrip()}", file=sys.stderr)
        except KeyboardInterrupt:  # the child receives it as well, ends its step and saves
            child.communicate()
            raise
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return None if child.returncode == 0 else last_line or f"exit code {child.returncode}"
