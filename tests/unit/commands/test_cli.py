"""The command line without a model: exit codes, errors of one line, help with examples, no large imports for help."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from earwise import cli
from earwise.commands.ask import split_choices
from earwise.commands.loading import STYLES
from earwise.config.recipe_files import PACKAGED_RECIPES, packaged_recipes
from earwise.errors import ConfigError, EarwiseError
from earwise.prompts import INSTRUCTIONS


def commands() -> list[list[str]]:
    """The words of every command, `build`'s subcommands included."""
    paths = []
    for name, command in sorted(cli.app.commands.items()):
        subcommands = getattr(command, "commands", {})
        paths += [[name, subcommand] for subcommand in sorted(subcommands)] if subcommands else [[name]]
    return paths


def test_commands_are_those_of_the_design() -> None:
    expected = {"ask", "chat", "build", "train", "evaluate", "compare", "report", "doctor", "export", "models"}
    expected |= {"recipe", "demo", "completion", "serve", "ablate"}
    assert expected <= set(cli.app.commands)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_of_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: earwise " + " ".join(command) in text
    if command != ["models"]:
        assert f"  earwise {' '.join(command)}" in text or f"$ earwise {' '.join(command)}" in text, "no example"


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys; from earwise import cli; cli.run(['--help']); heavy = {'torch', 'numpy', 'pydantic', 'yaml'}; "
    code += "imported = heavy & set(sys.modules); sys.exit(f'imported {imported}' if imported else 0)"
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
    ("error", "code", "message"),
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
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.app.commands["models"], "callback", fails)
    assert cli.run(["models"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
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
    ("text", "message"),
    [
        ("", "is one option"),
        ("yes", "is one option; give two or more different options separated by ','"),
        ("yes,", "option 2 of 2 is empty"),
        ("a,b,a", "'a' occurs twice"),
        ("a, b||c", "option 2 of 3 is empty; give two or more different options separated by '|'"),
    ],
)
def test_bad_choices_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="--choices") as caught:
        split_choices(text)
    assert message in str(caught.value)


def test_choices_are_separated_by_commas_or_by_bars() -> None:
    assert split_choices("yes, no") == ("yes", "no")
    assert split_choices("a dog, barking|a cat") == ("a dog, barking", "a cat")
    assert split_choices(None) == ()


@pytest.mark.parametrize("arguments", [[], ["build"]])
def test_a_group_without_a_command_prints_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    captured = capsys.readouterr()
    assert "Usage: earwise" in captured.out and "Commands:" in captured.out and len(captured.out.splitlines()) > 10
    assert captured.err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    assert "_EARWISE_COMPLETE" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_options_and_recipes(tmp_path: Path) -> None:
    """The script is sourced in bash, with an `earwise` on the path, and asked to complete three command lines."""
    program = tmp_path / "earwise"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m earwise "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = """
eval "$(earwise completion bash)"
complete_line() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _earwise_completion earwise; echo "${COMPREPLY[*]}"
}
complete_line earwise tr
complete_line earwise ask --max
complete_line earwise train r1
"""
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["train", "--max-new-tokens", "r1-aqa"], done.stderr


def test_recipe_lists_the_recipes_and_prints_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipe"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in packaged_recipes()) and "profiles: " in listing
    assert cli.run(["recipe", "r1-aqa"]) == 0
    assert capsys.readouterr().out == (PACKAGED_RECIPES / "r1-aqa.yaml").read_text(encoding="utf-8")
    assert cli.run(["recipe", "r1-aq"]) == 2
    assert "did you mean 'r1-aqa'" in capsys.readouterr().err
