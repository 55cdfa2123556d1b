"""Options of all commands: each has help, old names still work and warn, and one name means one thing."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from earwise.cli import app, run
from earwise.commands.options import OLD_NAME_PREFIX


def commands(command: click.Command = app, name: str = "earwise") -> Iterator[tuple[str, click.Command]]:
    """All commands with their full names."""
    yield name, command
    if isinstance(command, click.Group):
        for child_name, child in command.commands.items():
            yield from commands(child, f"{name} {child_name}")


def options() -> Iterator[tuple[str, click.Option]]:
    """All options, each with the name of its command."""
    for name, command in commands():
        yield from ((name, parameter) for parameter in command.params if isinstance(parameter, click.Option))


def test_every_option_and_every_command_has_help() -> None:
    assert [f"{name} {option.opts[0]}" for name, option in options() if not option.help] == []
    assert [name for name, command in commands() if not command.help] == []


def test_a_name_takes_values_of_one_kind() -> None:
    """For example, `--choices` is a text everywhere, and numbers are `--n-choices`."""
    kinds: dict[str, dict[str, str]] = {}
    for name, option in options():
        if not (option.name or "").startswith(OLD_NAME_PREFIX):
            for spelling in option.opts:
                kind = option.type.name.removesuffix(" range")
                kind = "flag" if option.is_flag else "text" if kind in ("choice", "path", "file") else kind
                kinds.setdefault(spelling, {})[kind] = name
    uneven = {spelling: of_kind for spelling, of_kind in kinds.items() if len(of_kind) > 1}
    assert uneven == {}


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        (
            ["build", "source", "own", "captions.csv", "--choices", "4", "--missing", "keep", "--no-check"],
            "--choices is now called --n-choices",
        ),
        (
            ["build", "labels", "labels.csv", "--without", "source=x", "--no-check"],
            "--without is now called --where-not",
        ),
    ],
)
def test_old_names_work_and_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: list[str], warning: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("captions.csv").write_text("path,caption\na.wav,A dog barks.\n")
    Path("labels.csv").write_text("path,label,source\na.wav,dog,x\n")
    code = run([*line, "--out", "out.jsonl"])
    err = capsys.readouterr().err
    assert f"warning: command line: {warning}; the old name works for one more release" in err
    if "own" in line:
        assert code == 0
    else:
        assert code == 2 and "source=x: 1 clips left out" in err, "the condition was applied"


def test_the_old_name_of_a_scans_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "scan", "starter:val", "--engine", "processes", "--workers", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert "--engine is now called --backend" in captured.err and '"broken": 0' in captured.out
