"""Puzzles from unlabelled recordings: what is composed is what the answer says, and nothing but the sound tells it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwise import cli
from earwise.data import manifest
from earwise.datasets.puzzles.build import SAMPLE_RATE, compose
from earwise.datasets.puzzles.puzzle_tasks import LEVEL_DB, ORDERS, TASKS, Piece, Puzzle, Recording, plan_puzzles
from earwise.errors import ConfigError, DataError

RECORDINGS = [Recording(f"{number:02d}.wav", 0.2, 3.0 + 0.1 * number, "train") for number in range(24)]


def by_task(puzzles: list[Puzzle]) -> dict[str, list[Puzzle]]:
    return {task: [puzzle for puzzle in puzzles if puzzle.task == task] for task in TASKS}


def test_answers_and_their_positions_are_balanced() -> None:
    for task, puzzles in by_task(plan_puzzles(RECORDINGS, seed=3)).items():
        assert len(puzzles) == 24, task
        answers = Counter(puzzle.answer for puzzle in puzzles)
        assert max(answers.values()) - min(answers.values()) <= 1, (task, answers)
        assert all(puzzle.choices.count(puzzle.answer) == 1 for puzzle in puzzles)
        if task != "count":  # its options are consecutive numbers in ascending order
            places = Counter(puzzle.choices.index(puzzle.answer) for puzzle in puzzles)
            assert max(places.values()) <= 0.6 * len(puzzles), (task, places)


def test_pieces_are_as_the_answer_says() -> None:
    tasks = by_task(plan_puzzles(RECORDINGS, seed=1))
    for puzzle in tasks["reversed"]:
        assert [piece.is_reversed for piece in puzzle.pieces] == [puzzle.answer == half for half in
                                                                  ("the first half", "the second half")]  # fmt: skip
        first, second = puzzle.pieces
        assert second.start_s == pytest.approx(first.start_s + first.length_s, abs=2e-4), "halves of one stretch"
    for puzzle in tasks["louder"]:
        levels = [piece.level_db for piece in puzzle.pieces]
        assert (levels[0] > levels[1]) == (puzzle.answer == "the first half") and 8 <= max(levels) - min(levels) <= 14
    for puzzle in tasks["longer"]:
        lengths = [piece.length_s for piece in puzzle.pieces]
        assert (lengths[0] > lengths[1]) == (puzzle.answer == "the first sound") and max(lengths) / min(lengths) > 1.7
    for puzzle in tasks["count"]:
        assert len(puzzle.pieces) == ("one", "two", "three", "four", "five").index(puzzle.answer) + 1
        assert len(set(puzzle.pieces)) == 1
    for puzzle in tasks["same"]:
        first, second = puzzle.pieces
        assert (first == second) == (puzzle.answer == "yes") and first.length_s == second.length_s
        assert first == second or first.path != second.path
    for puzzle in tasks["match"]:
        place = ("the first sound", "the second sound").index(puzzle.answer)
        assert puzzle.pieces[place] == puzzle.pieces[2] != puzzle.pieces[1 - place]
    for puzzle in tasks["jigsaw"]:
        starts = [piece.start_s for piece in puzzle.pieces]
        assert "-".join(str(sorted(starts).index(start) + 1) for start in starts) == puzzle.answer
        assert set(puzzle.choices) <= set(ORDERS) and len(set(puzzle.choices)) == 4


def test_plan_depends_on_seed_and_recordings_alone() -> None:
    assert plan_puzzles(RECORDINGS, seed=1) == plan_puzzles(RECORDINGS[::-1], seed=1)
    assert plan_puzzles(RECORDINGS, seed=1) != plan_puzzles(RECORDINGS, seed=2)
    limited = plan_puzzles(RECORDINGS, tasks=("jigsaw",), limit=5)
    assert [puzzle.task for puzzle in limited] == ["jigsaw"] * 5
    with pytest.raises(ConfigError, match="task 'puzle' is none of reversed"):
        plan_puzzles(RECORDINGS, tasks=("puzle",))


def test_recordings_that_are_too_short_are_not_used() -> None:
    short = [Recording("a.wav", 0.0, 0.5, "train"), Recording("b.wav", 0.0, 0.2, "train")]
    assert {puzzle.task for puzzle in plan_puzzles(short)} <= {"count", "longer"}


def test_composed_sound_has_the_planned_levels_order_and_direction() -> None:
    ramp = np.linspace(0.01, 0.9, SAMPLE_RATE, dtype=np.float32) * np.where(np.arange(SAMPLE_RATE) % 2, 1, -1)
    pieces = (Piece("a", 0.1, 0.4, -30.0, gap_s=0.1), Piece("a", 0.1, 0.4, -20.0, is_reversed=True, gap_s=0.0))
    sound = compose(pieces, lambda name: ramp)
    assert sound is not None and len(sound) == round(1.1 * SAMPLE_RATE)
    first, second = sound[1600 : 1600 + 6400], sound[1600 + 6400 + 1600 :][:6400]
    levels = [10 * np.log10(np.mean(np.square(part))) for part in (first, second)]
    assert levels == pytest.approx([-30, -20], abs=0.3)  # the fades take a little
    scaled = second[::-1] / np.abs(second).max() * np.abs(first).max()
    assert np.allclose(np.abs(scaled[400:-400]), np.abs(first[400:-400]), atol=2e-3)
    assert not sound[:1600].any() and not sound[8000:9600].any()
    assert compose((Piece("a", 0.0, 0.5, LEVEL_DB),), lambda name: np.zeros(SAMPLE_RATE, np.float32)) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight recordings of noise bursts, one of silence, one that is no sound; in subfolders."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "field" / f"site {number % 2}" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        times = np.arange(round((2.2 + 0.2 * number) * SAMPLE_RATE)) / SAMPLE_RATE
        soundfile.write(path, 0.2 * rng.normal(size=len(times)) * (1.2 + np.sin(9 * times)) / 2, SAMPLE_RATE)
    soundfile.write(tmp_path / "field" / "silence.flac", np.zeros(3 * SAMPLE_RATE), SAMPLE_RATE)
    return tmp_path / "field"


def test_command_builds_a_manifest_that_can_be_built_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["build", "puzzles", "field", "--out", "out/p.jsonl", "--val-share", "0.3", "--json", "--no-check",
                 "--licence", "CC0", "--workers", "1"]  # fmt: skip
    assert cli.run(arguments) == 0
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert summary["recordings"] == 9 and set(summary["tasks"]) == set(TASKS)
    rows = manifest.read(Path("out/p.jsonl"))
    assert len(rows) == summary["questions"] and {row.split for row in rows} == {"train", "val"}
    groups = {split: {clip for row in rows if row.split == split for clip in row.meta["clip_groups"]}
              for split in ("train", "val")}  # fmt: skip
    assert groups["train"].isdisjoint(groups["val"]), "no recording is in both splits"
    assert all(row.licence == "CC0" and row.audio_paths[0].is_file() for row in rows)
    content, written = (
        Path("out/p.jsonl").read_bytes(),
        {p: p.stat().st_mtime_ns for p in Path("out/p-clips").iterdir()},
    )
    assert cli.run(arguments) == 0
    assert Path("out/p.jsonl").read_bytes() == content, "another build writes the same manifest"
    assert {p: p.stat().st_mtime_ns for p in Path("out/p-clips").iterdir()} == written, "and composes nothing again"


def test_bad_input_is_refused_in_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.wav").write_bytes(b"RIFF....")
    command = ["build", "puzzles", str(folder), "--out", str(folder.parent / "p.jsonl"), "--no-check", "--workers", "1"]
    assert cli.run(command) == 2
    assert "broken.wav" in capfd.readouterr().err
    assert not (folder.parent / "p.jsonl").exists()
    assert cli.run([*command, "--skip-bad", "--tasks", "jigsaw", "--limit", "2"]) == 0
    assert cli.run([*command[:2], str(folder / "nowhere"), *command[3:]]) == 2
    assert cli.run([*command, "--skip-bad", "--val-share", "1.5"]) == 2
    with pytest.raises(DataError, match="no recording is long enough"):
        from earwise.datasets.puzzles.build import PuzzleOptions, build_puzzles

        short = folder.parent / "short"
        short.mkdir()
        soundfile.write(short / "a.wav", 0.1 * np.ones(1600), SAMPLE_RATE)
        build_puzzles(short, folder.parent / "s.jsonl", PuzzleOptions(workers=1))
