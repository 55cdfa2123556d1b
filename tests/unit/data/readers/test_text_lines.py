"""The one reader of lines and of CSV tables: what ends a line, what does not, and what is refused in one line."""

import gzip
import json
from pathlib import Path

import pytest

from earwise.data.readers.text_lines import csv_rows, json_lines, numbered_lines, read_text
from earwise.errors import DataError

TEXT = "a\u2028b\u2029c\u0085d\x0b\x0c\x1ce"
"""Every character at which `str.splitlines` breaks a line, and a line of JSON or a CSV cell may hold."""


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"t": TEXT}, {"t": "ü"}, {"t": "last"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for ending in ("\n", "\r\n"):
        for mark in (b"", b"\xef\xbb\xbf"):
            data = mark + (ending + ending).join(lines).encode()
            for content in (data, gzip.compress(data)):
                path.write_bytes(content)
                assert list(json_lines(path)) == [(1, rows[0]), (3, rows[1]), (5, rows[2])]
                assert read_text(path) == data.removeprefix(mark).decode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"a": 1}\n'.encode("utf-16"), "x: is UTF-16 text; save it as UTF-8"),
        ('{"a": 1}\n'.encode("utf-16-le"), "x: is UTF-16 text"),
        (b'{"a": "\0"}\n', "x: is no text file"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', "x:row 2: is not UTF-8 text .*at byte 7 of the line"),
        (b'{"a": 1}\n\n{"a": 1},\n', "x:row 3: not JSON .*take off the comma at its end"),
        (gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-20], "x: cannot be read"),
        (b"[" * 100_000, "x:row 1: not JSON"),
    ],
    ids=["utf-16", "utf-16-without-mark", "null-byte", "latin-1", "comma-at-the-end", "cut-gzip", "deep-json"],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(json_lines(tmp_path / "x"))
    assert "\n" not in str(caught.value)


def test_lines_in_another_encoding_are_read_where_that_is_expected(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("ü\n".encode() + b"\xfc\n")
    assert [line for _, line in numbered_lines(tmp_path / "x", fallback="cp1252")] == ["ü\n", "ü\n"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_a_spreadsheet(tmp_path: Path, delimiter: str) -> None:
    quoted = f'"say ""hi""{delimiter}\nthen go"'
    lines = ["path" + delimiter + " text", f"a.wav{delimiter}{quoted}", "", f"b.wav{delimiter}{TEXT}", delimiter]
    for ending in ("\n", "\r\n"):
        data = b"\xef\xbb\xbf" + ending.join(lines).encode()
        for content in (data, gzip.compress(data)):
            (tmp_path / "t.csv").write_bytes(content)
            assert list(csv_rows(tmp_path / "t.csv", required=("path", "text"))) == [
                (3, {"path": "a.wav", "text": f'say "hi"{delimiter}\nthen go'}),
                (5, {"path": "b.wav", "text": TEXT}),
            ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: is empty"),
        ("a,b\n1,2\n", "t.csv: column 'path' is missing, found a, b"),
        ("path,a,a\n1,2,3\n", "t.csv: column 'a' stands twice"),
        ("path,a\n1,2\n1,2,3\n", "t.csv:row 3: 3 cells where the header has 2; quote cells that hold ','"),
        ('path,a\n1,"2\n', "t.csv:row 2: not CSV"),
    ],
)
def test_errors_of_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        list(csv_rows(tmp_path / "t.csv", required=("path",)))
