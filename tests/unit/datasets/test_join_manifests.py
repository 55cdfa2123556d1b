"""`build join`: what is drawn follows from seed and rows alone, groups stay in one split, and bad input is refused."""

import json
from collections import Counter
from pathlib import Path

import pytest

from earwise import cli
from earwise.data import manifest
from earwise.datasets.published.join_manifests import JoinOptions, ManifestPart, join_manifests
from earwise.errors import ConfigError, DataError
from earwise.types import Audio, Example, Text, Turn


def write(path: Path, name: str, count: int, *, rows_per_clip: int = 1, **fields: str) -> Path:
    """A manifest of `count` rows; neighbours share a clip and a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        clip = f"{name}{number // rows_per_clip}.wav"
        turns = (Turn("user", (Audio(clip), Text("What is it?"))),)
        values = {"source": name, "licence": "CC0", "group": clip, "split": "train", "task": "open"} | fields
        rows.append(Example(f"{name}-{number}", turns, ("dog",), root=path.parent, **values))
    manifest.write(path, rows)
    return path


def ids(path: Path) -> list[str]:
    return [row.id for row in manifest.read(path, check_files=False)]


def test_rows_are_drawn_from_each_manifest_and_keep_their_order_and_clips(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a" / "a.jsonl", "a", 50), write(tmp_path / "b" / "b.jsonl", "b", 30)
    out = tmp_path / "joined" / "all.jsonl"
    joined = join_manifests([ManifestPart(first, 20), ManifestPart(second)], out)
    assert joined.num_rows == 50 and list(joined.rows_of_parts.values()) == [20, 30]
    drawn = ids(out)
    assert drawn[20:] == ids(second) and drawn[:20] == [name for name in ids(first) if name in set(drawn)]
    row = manifest.read(out, check_files=False)[-1]
    assert row.audio_paths[0].resolve() == (tmp_path / "b" / "b29.wav").resolve()


def test_what_is_drawn_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", "a", 60), write(tmp_path / "b.jsonl", "b", 5)
    moved = write(tmp_path / "other" / "renamed.jsonl", "a", 60)
    alone, beside, elsewhere = (tmp_path / f"{name}.jsonl" for name in ("alone", "beside", "elsewhere"))
    join_manifests([ManifestPart(first, 15)], alone)
    join_manifests([ManifestPart(second), ManifestPart(first, 15)], beside)
    join_manifests([ManifestPart(moved, 15)], elsewhere)
    assert ids(beside)[5:] == ids(alone) == ids(elsewhere)
    join_manifests([ManifestPart(first, 15)], elsewhere, JoinOptions(seed=1))
    assert set(ids(elsewhere)) != set(ids(alone))
    join_manifests([ManifestPart(first, 30)], elsewhere)
    assert set(ids(alone)) < set(ids(elsewhere)), "a larger draw holds the smaller one"


def test_clips_are_drawn_with_all_their_rows(tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.jsonl", "a", 30, rows_per_clip=3), tmp_path / "out.jsonl"
    join_manifests([ManifestPart(path, 4)], out, JoinOptions(count_clips=True))
    counts = Counter(row.group for row in manifest.read(out, check_files=False))
    assert sorted(counts.values()) == [3, 3, 3, 3]


def test_held_out_groups_never_cross_and_other_splits_stay(tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.jsonl", "a", 600, rows_per_clip=3), tmp_path / "out.jsonl"
    tested = write(tmp_path / "t.jsonl", "t", 9, split="test")
    joined = join_manifests([ManifestPart(path), ManifestPart(tested)], out, JoinOptions(val_share=0.2))
    splits: dict[str, set[str]] = {}
    for row in manifest.read(out, check_files=False):
        splits.setdefault(row.group, set()).add(row.split)
    assert all(len(values) == 1 for values in splits.values())
    assert joined.splits["test"] == 9 and 0.12 < joined.splits["val"] / 600 < 0.28


def test_conditions_choose_rows_before_the_draw(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", "a", 10, task="caption")
    second, third = write(tmp_path / "b.jsonl", "b", 10), write(tmp_path / "c.jsonl", "c", 10, task="yes_no")
    joined_first = tmp_path / "joined.jsonl"
    join_manifests([ManifestPart(path) for path in (first, second, third)], joined_first)
    out = tmp_path / "out.jsonl"
    options = JoinOptions({"task": ["caption", "yes_no"]})
    joined = join_manifests([ManifestPart(joined_first, 12)], out, options)
    assert set(joined.tasks) == {"caption", "yes_no"} and joined.num_rows == 12


def test_the_command_with_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.jsonl", "a", 10)
    monkeypatch.chdir(tmp_path)
    command = ["build", "join", "in/a.jsonl=4", "--val-share", "0.5", "--no-check", "--json", "--out", "out/b.jsonl"]
    assert cli.run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 4 and report["rows_of_manifests"] == {"in/a.jsonl": 4}
    assert (
        json.loads(Path("out/b.jsonl").read_text().splitlines()[0])["messages"][0]["content"][0]["audio"][:6]
        == "../in/"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl=11"], "11 rows are to be drawn, and there are 10; ask for fewer"),
        (["a.jsonl=many"], "'many' is not a number of rows"),
        (["a.jsonl", "a.jsonl"], "a-0"),
        (["a.jsonl", "--where", "task=caption"], "holds no row with task caption; correct --where"),
        (["a.jsonl", "--where", "length=3"], "rows can be chosen by task, category"),
        (["a.jsonl", "--val-share", "1"], "is not a share"),
        (["missing.jsonl"], "missing.jsonl"),
    ],
    ids=["too many", "no number", "twice", "no row", "unknown field", "no share", "no file"],
)
def test_bad_input_is_refused_in_a_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write(tmp_path / "a.jsonl", "a", 10)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["build", "join", *arguments, "--out", "out.jsonl"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and not Path("out.jsonl").exists()


def test_the_output_is_none_of_the_inputs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "a", 3)
    with pytest.raises(ConfigError, match="read at once"):
        join_manifests([ManifestPart(path)], path)
    with pytest.raises(DataError):
        join_manifests([ManifestPart(tmp_path / "b.jsonl")], tmp_path / "c.jsonl")
