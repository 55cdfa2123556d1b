"""A file is complete or absent, and an error names in one line what prevented the write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from earwise import files
from earwise.cli import run as cli
from earwise.errors import ConfigError, DataError
from earwise.files import atomic_write, lock_folder, write_json, write_jsonl


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    assert write_jsonl(path, [{"a": 1}]) == 1
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write("half")
        raise RuntimeError
    assert path.read_text() == '{"a": 1}\n' and [file.name for file in path.parent.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("below", ["a.json", "deeper/a.json"])
def test_a_file_in_place_of_a_folder_is_one_clear_line(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(DataError, match=r"its folder is a file, or lies in one .*taken.*; choose another name"):
        write_json(tmp_path / "taken" / below, {})
    assert (tmp_path / "taken").read_text() == "x"


def test_one_process_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process cannot lock the folder or train in it; when the holder is killed, the folder is free."""
    run = tmp_path / "run"
    code = "import pathlib, sys, time, earwise.files as files\n"
    code += "with files.lock_folder(pathlib.Path(sys.argv[1])): print(1, flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        with pytest.raises(ConfigError, match="another process is at work in this folder"), lock_folder(run):
            pass
        assert cli(["train", "r1-aqa", "--profile", "cpu", "--out", str(run)]) == 2
        assert f"{run}: another process is at work" in capsys.readouterr().err
        assert cli(["train", "--resume", str(run)]) == 2, "its recipe is not written yet"
        assert f"{run}: another process is at work" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.communicate()
    with lock_folder(run), lock_folder(run):
        assert list(run.iterdir()) == [run / ".lock"]
    with lock_folder(run):
        pass
    assert list(run.iterdir()) == []
    assert cli(["train", "--resume", str(run)]) == 2
    assert "the command that it was begun with" in capsys.readouterr().err


def test_temporary_names_are_unique_and_those_of_killed_processes_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "export"
    assert len({files.temporary_path(target) for _ in range(100)}) == 100
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    own, dead = files.temporary_path(target), files.temporary_path(target)
    dead = dead.with_name(dead.name.replace(f".{os.getpid()}.", f".{int(ended.stdout)}."))
    elsewhere = tmp_path / ".export.another-machine.1.0123abcd.part"
    for folder in (own, dead, elsewhere):
        folder.mkdir()
    with files.atomic_folder(target) as unfinished:
        (unfinished / "a").write_text("x")
    assert sorted(tmp_path.iterdir()) == sorted([own, elsewhere, target])


def test_two_exports_to_one_name_do_not_share_a_temporary_folder(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "a") as first, files.atomic_folder(tmp_path / "b") as second:
        (first / "x").write_text("1")
        (second / "x").write_text("2")
        with pytest.raises(DataError), files.atomic_folder(tmp_path / "a") as third:
            (third / "y").write_text("3")
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "z").write_text("another writer was faster")
        assert (first / "x").read_text() == "1"
        (tmp_path / "a" / "z").unlink()
        (tmp_path / "a").rmdir()
    assert (tmp_path / "a" / "x").read_text() == "1" and (tmp_path / "b" / "x").read_text() == "2"
