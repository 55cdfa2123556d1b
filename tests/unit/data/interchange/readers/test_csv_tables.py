"""Tables as spreadsheets write them, read wherever a manifest is taken."""

import gzip
from pathlib import Path

import pytest
import soundfile

from earwise import progress
from earwise.data import manifest
from earwise.data.interchange.detection import find_dataset
from earwise.data.interchange.importing import ImportOptions, import_dataset
from earwise.data.interchange.writers.speech_toolkits import write_lhotse, write_nemo
from earwise.data.interchange.writers.tables import write_table
from earwise.data.manifest_path import manifest_path
from earwise.errors import ConfigError, DataError
from earwise.types import Example

pytestmark = pytest.mark.usefixtures("own_home")
HEADER = "path,question,options,answer"


def clip(folder: Path, name: str = "a.wav") -> Path:
    """A second of a quiet ramp."""
    soundfile.write(folder / name, [number / 20000 for number in range(16000)], 16000)
    return folder / name


def rows_of(folder: Path, name: str, content: str | bytes, query: str = "") -> list[Example]:
    """The rows of a table that lies beside the clip `a.wav`."""
    clip(folder)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return manifest.read(manifest_path(name + query, folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'path,question,options,answer\na.wav,"Which,\nanimal?",dog|cat,B\n'),
        ("t.csv", '\ufeffpath;question;options;answer\r\na.wav;"Which,\nanimal?";"dog|cat";cat\r\n'),
        ("t.csv", 'sep=;\r\nPath;Question;A;B;Answer\r\na.wav;"Which,\nanimal?";dog;cat;b\r\n;;;;\r\n'),
        (
            "t.tsv",
            'File Name\tQuestion Text\tOption A\tOption B\tCorrect Answer\na.wav\t"Which,\nanimal?"\tdog\tcat\tCat\n',
        ),
        ("t.csv", 'audio|question|choice_1|choice_2|label\na.wav|"Which,\nanimal?"|dog|cat|cat\n'),
    ],
)
def test_forms_of_spreadsheets(tmp_path: Path, name: str, content: str) -> None:
    (row,) = rows_of(tmp_path, name, content)
    assert row.question == "Which,\nanimal?"
    assert (row.choices, row.answer, row.task) == (("dog", "cat"), ("cat",), "multiple_choice")
    assert row.audio_paths == (tmp_path / "a.wav",)


def test_utf16_windows_and_gzip(tmp_path: Path) -> None:
    table = "path\tquestion\tanswer\na.wav\tWelches Geräusch?\tMöwe\n"
    for content in (table.encode("utf-16"), table.encode("cp1252"), table.encode("utf-8-sig")):
        (row,) = rows_of(tmp_path, "t.tsv", content)
        assert (row.question, row.answer) == ("Welches Geräusch?", ("Möwe",))
    (row,) = rows_of(tmp_path, "t.tsv.gz", gzip.compress(table.encode()))
    assert row.answer == ("Möwe",)


def test_columns_are_named_by_the_caller(tmp_path: Path) -> None:
    table = "Datei,Frage,Lösung,Notiz\na.wav,Was?,Hund,leise\n"
    with pytest.raises(
        DataError, match=r"row 2: no column holds audio, there are Datei, Frage, Lösung, Notiz; name it"
    ):
        rows_of(tmp_path, "t.csv", table)
    (row,) = rows_of(tmp_path, "t.csv", table, "?audio=Datei&question=Frage&answer=Lösung")
    assert (row.question, row.answer, row.meta) == ("Was?", ("Hund",), {"Notiz": "leise"})
    with pytest.raises(ConfigError, match="'frage' is none of split, config, prompt, id, audio"):
        rows_of(tmp_path, "t.csv", table, "?frage=Frage")


def test_a_prompt_stands_in_for_a_missing_question(tmp_path: Path) -> None:
    table = "path,label\na.wav,dog\n"
    with pytest.raises(DataError, match="no column holds the question"):
        rows_of(tmp_path, "t.csv", table)
    (row,) = rows_of(tmp_path, "t.csv", table, "?prompt=Which+sound%3F")
    assert (row.question, row.answer, row.task) == ("Which sound?", ("dog",), "open")


def test_segments(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path, "t.csv", 'path,start,end,question,answer\na.wav,"0,25",0.5,Q?,x\na.wav,,,Q?,y\na.wav,0,0.5,Q?,z\n'
    )
    assert [(part.start, part.end) for row in rows for part in row.audio_parts] == [
        (0.25, 0.5), (None, None), (None, 0.5)
    ]  # fmt: skip
    with pytest.raises(DataError, match="row 2: start is 'soon'"):
        rows_of(tmp_path, "u.csv", "path,start,question,answer\na.wav,soon,Q?,x\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER}\na.wav,Q?,dog|cat,cow\n", "row 2: answer 'cow' is none of the choices 'dog', 'cat'"),
        (f"{HEADER}\na.wav,Q?,dog|cat,1\n", "write the option's text or letter"),
        (f"{HEADER}\nb.wav,Q?,dog|cat,A\n", r"row 2: audio file .*b\.wav is missing"),
        (f"{HEADER}\na.wav,Which, now?,dog|cat,A\n", "row 2: 5 cells where the header has 4; quote cells"),
        (f"{HEADER}\n", "no row can be used"),
        ("path,path\na,b\n", "column 'path' stands twice"),
        ("", "is empty; write a header"),
        ("x\na.wav\n", "the first line does not name columns"),
        ("path,question,split\na.wav,Q?,held-out\n", "row 2: split is 'held-out'"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, "t.csv", content)


def test_bad_rows_may_be_left_out_and_are_listed(tmp_path: Path) -> None:
    clip(tmp_path)
    (tmp_path / "t.csv").write_text(f"{HEADER}\na.wav,Q?,dog|cat,cow\na.wav,Q?,dog|cat,A\nb.wav,Q?,dog|cat,A\n")
    location = find_dataset("t.csv", tmp_path)
    assert location is not None
    skipped: list[str] = []
    assert import_dataset(location, tmp_path / "out" / "m.jsonl", ImportOptions(on_skip=skipped.append)) == 1
    assert [line.partition(": ")[0].rpartition(":")[2] for line in skipped] == ["row 2", "row 4"]
    (row,) = manifest.read(tmp_path / "out" / "m.jsonl")
    assert row.turns[0].parts[0].path == "../a.wav"  # type: ignore[union-attr]


def test_a_changed_table_is_converted_again(tmp_path: Path) -> None:
    rows_of(tmp_path, "t.csv", "path,question,answer\na.wav,Q?,x\n")
    first = manifest_path("t.csv", tmp_path)
    assert manifest_path("t.csv", tmp_path) == first
    (row,) = rows_of(tmp_path, "t.csv", "path,question,answer\na.wav,Q?,other\n")
    assert row.answer == ("other",)


def test_a_file_whose_name_has_a_question_mark_is_a_file(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "what?.csv", "path,question,answer\na.wav,Q?,x\n")
    assert row.answer == ("x",)


def test_time_left_is_known_for_a_table_and_for_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells with line breaks and blank lines count as what they are; every writer shows its rows, too."""

    class Recorded:
        """Keeps the total of every task, and how much of it was done."""

        def __init__(self) -> None:
            self.tasks: list[progress.Task] = []

        def start(self, task: progress.Task) -> None:
            self.tasks.append(task)

        def update(self, task: progress.Task) -> None: ...
        def finish(self, task: progress.Task) -> None: ...
        def write(self, line: str) -> None: ...

    clip(tmp_path)
    (tmp_path / "t.csv").write_text(f'{HEADER}\na.wav,"Which,\nanimal?",dog|cat,B\n\na.wav,Which?,dog|cat,A\n')
    display = Recorded()
    monkeypatch.setattr(progress, "_display", display)
    location = find_dataset("t.csv", tmp_path)
    assert location is not None
    assert import_dataset(location, tmp_path / "m.jsonl") == 2
    assert [(task.total, task.done) for task in display.tasks] == [(2, 2)]
    for write, out in ((write_table, "o.csv"), (write_nemo, "o.jsonl"), (write_lhotse, "lhotse")):
        display.tasks.clear()
        write(tmp_path / "m.jsonl", tmp_path / out)
        assert display.tasks and {(task.total, task.done) for task in display.tasks} == {(2, 2)}, out
