"""The command line without a model: exit codes, one line an error, help with examples, nothing heavy imported early."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from earwise import cli
from earwise.commands.ask import split_choices
from earwise.commands.loading import STYLES
from earwise.errors import ConfigError, EarwiseError
from earwise.prompts import INSTRUCTIONS


def commands() -> list[list[str]]:
    found = []
    for name, command in sorted(cli.app.commands.items()):
        inner = getattr(command, "commands", {})
        found += [[name, other] for other in sorted(inner)] if inner else [[name]]
    return found


def test_commands_are_those_of_the_design() -> None:
    wanted = {"ask", "chat", "build", "train", "evaluate", "compare", "report", "doctor", "export", "models"}
    assert wanted <= set(cli.app.commands)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_of_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: earwise " + " ".join(command) in text
    if command != ["models"]:
        assert f"  earwise {' '.join(command)}" in text or f"$ earwise {' '.join(command)}" in text, "no example"


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys; from earwise import cli; cli.run(['--help']); heavy = {'torch', 'numpy', 'pydantic', 'yaml'}; "
    code += "found = heavy & set(sys.modules); sys.exit(f'imported {found}' if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["nonsense"], "No such command"),
        (["ask"], "Missing argument"),
        (["ask", "a.wav", "Q", "--modle", "x"], "--model"),
        (["evaluate", "--data", "x"], "--out"),
        (["evaluate", "--data", "x", "--out", "y", "--style", "rhyme"], "answer"),
        (["evaluate", "--data", "starter:val", "--out", "y", "--split", "test"], "there are val"),
        (["evaluate", "--data", "starter:val", "--out", "y", "--where", "colour=red"], "task, category, source"),
        (["evaluate", "--data", "starter:val", "--out", "y", "--where", "task"], "not field=value"),
        (["evaluate", "--data", "starter:val", "--out", "y", "--where", "task=a", "--where", "task=b"], "already"),
        (["ask", "a.wav", "Q", "--choices", "yes"], "two or more"),
        (["train"], "give one recipe"),
        (["train", "no.yaml"], "no.yaml"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["compare", "nowhere", "nobody"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["build", "labels", "nowhere", "--out", "x.jsonl"], "nowhere"),
        (["build", "check", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert hint in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (EarwiseError("a.wav:\nis broken"), 2, "error: a.wav: is broken\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("interrupted; continue with --resume"), 130, "--resume"),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 2, "x.bin: cannot be written"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "cannot be written"),
        (KeyError("boom"), 1, "our fault: KeyError: 'boom'"),
    ],
)
def test_every_error_has_its_exit_code_and_its_line(
    error: BaseException, code: int, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.app.commands["models"], "callback", fails)
    assert cli.run(["models"]) == code
    captured = capsys.readouterr()
    assert shown in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "Traceback" not in captured.err


def test_traceback_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise KeyError("boom")

    monkeypatch.setattr(cli.app.commands["models"], "callback", fails)
    assert cli.run(["--traceback", "models"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_styles_of_the_help_are_those_of_the_prompts() -> None:
    assert set(STYLES) == set(INSTRUCTIONS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is one option"),
        ("yes", "is one option; give two or more different options parted by ','"),
        ("yes,", "option 2 of 2 is empty"),
        ("a,b,a", "'a' stands twice"),
        ("a, b||c", "option 2 of 3 is empty; give two or more different options parted by '|'"),
    ],
)
def test_choices_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="--choices") as caught:
        split_choices(text)
    assert said in str(caught.value)


def test_choices_are_parted_by_commas_or_by_bars() -> None:
    assert split_choices("yes, no") == ("yes", "no")
    assert split_choices("a dog, barking|a cat") == ("a dog, barking", "a cat")
    assert split_choices(None) == ()
