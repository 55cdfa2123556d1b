"""A file is whole or not there, and what stands in the way is said in one line."""

from pathlib import Path

import pytest

from earwise.errors import DataError
from earwise.files import replacing, write_json, write_jsonl


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    assert write_jsonl(path, [{"a": 1}]) == 1
    with pytest.raises(RuntimeError), replacing(path) as handle:
        handle.write("half")
        raise RuntimeError
    assert path.read_text() == '{"a": 1}\n' and [one.name for one in path.parent.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("below", ["a.json", "deeper/a.json"])
def test_a_file_in_place_of_a_folder_is_one_clear_line(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(DataError, match=r"its folder is a file, or in one .*taken.*; choose another name"):
        write_json(tmp_path / "taken" / below, {})
    assert (tmp_path / "taken").read_text() == "x"
