"""Builds a manifest of puzzles from a folder of unlabelled recordings: the whole of `earwise build puzzles`.

Every file is decoded once to find where its sound begins and ends, puzzles are planned (`puzzle_tasks.py`), and the
composed sounds are written as FLAC beside the manifest. The name of a file is a hash of its plan, so a build that was
stopped and is started again composes only what is missing.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from earwise import progress
from earwise.audio import AUDIO_SUFFIXES, decode, num_samples, seconds
from earwise.data import manifest
from earwise.datasets.labels import acoustics
from earwise.datasets.puzzles.puzzle_tasks import TASKS, Piece, Puzzle, Recording, plan_puzzles
from earwise.datasets.scan.clip_stats import scan_clips
from earwise.errors import AudioError, ConfigError, DataError
from earwise.files import atomic_write
from earwise.types import Audio, Example, Text, Turn, Waveform

SAMPLE_RATE = 16000
FADE_S = 0.01
MARGIN_S = 0.1  # silence at both ends
MAX_PEAK = 0.95
MAX_GAIN_DB = 40.0
"""A piece that would have to be amplified by more is nearly silent, and its puzzle is left out."""
VAL_SHARE = 0.2
CACHED_FILES = 64


@dataclass(frozen=True, slots=True)
class PuzzleOptions:
    """Which puzzles are built.

    Attributes:
        tasks: Tasks of `plan.TASKS`.
        limit: Largest number of puzzles of each task and split; None for no limit.
        val_share: Share of the recordings, by a hash of their names, whose puzzles get the split `val`.
        licence: Licence of the recordings.
        seed: Seed of all random choices.
        skip_unreadable: Whether to leave out files that cannot be read; otherwise they are an error.
        workers: Number of processes that decode; None for one per core.
    """

    tasks: tuple[str, ...] = TASKS
    limit: int | None = None
    val_share: float = VAL_SHARE
    licence: str = ""
    seed: int = 0
    skip_unreadable: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"--val-share {self.val_share} is not a share from 0 to below 1")


@dataclass(frozen=True, slots=True)
class BuiltPuzzles:
    """What was written.

    Attributes:
        questions: Number of rows.
        recordings: Number of recordings that could be used.
        skipped: Number of files that cannot be read.
        tasks: Task -> number of rows.
    """

    questions: int
    recordings: int
    skipped: int
    tasks: dict[str, int]


def build_puzzles(
    folder: Path, out: Path, options: PuzzleOptions | None = None, notify: Callable[[str], None] = lambda line: None
) -> BuiltPuzzles:
    """Build puzzles from all recordings in a folder and its subfolders.

    Args:
        folder: The folder.
        out: Manifest to write; the composed sounds are written to the folder `NAME-clips` beside it.
        options: Which puzzles; None for the defaults.
        notify: Receives lines for a person to read.
    Raises:
        ConfigError: for an unknown task.
        AudioError: if a file cannot be read and such files are not left out.
        DataError: if there are no recordings, or none is long enough.
    """
    options = options or PuzzleOptions()
    recordings, num_skipped = _find_recordings(folder, out, options, notify)
    puzzles = plan_puzzles(recordings, seed=options.seed, tasks=options.tasks, limit=options.limit)
    counts: Counter[str] = Counter()
    examples = _write_puzzles(puzzles, folder, out.parent / f"{out.stem}-clips", options.licence, notify)
    num_rows = manifest.write(out, _counted(examples, counts, folder, options.tasks))
    return BuiltPuzzles(num_rows, len(recordings), num_skipped, dict(counts))


def _find_recordings(
    folder: Path, out: Path, options: PuzzleOptions, notify: Callable[[str], None]
) -> tuple[list[Recording], int]:
    """The recordings in a folder, and the number of files that cannot be read."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one with recordings")
    composed = out.parent / f"{out.stem}-clips"
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and composed not in path.parents
    )
    if not paths:
        raise DataError(f"{folder}: holds no recordings ({', '.join(sorted(AUDIO_SUFFIXES)[:5])} ...)")
    notify(f"{len(paths)} recordings in {folder}")
    recordings: list[Recording] = []
    num_skipped = 0
    for path, stats in zip(paths, scan_clips(paths, options.workers, analysis=sounding_part), strict=True):
        name = path.relative_to(folder).as_posix()
        if stats.error:
            if not options.skip_unreadable:
                raise AudioError(f"{folder}: {stats.error}, or use --skip-bad")
            notify(f"left out: {stats.error}")
            num_skipped += 1
            continue
        share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
        start_s, end_s = stats.analysis
        recordings.append(Recording(name, start_s, end_s, "val" if share < options.val_share else "train"))
    return recordings, num_skipped


def sounding_part(waveform: Waveform, sample_rate: int) -> tuple[float, float]:
    """Where the sound of a recording begins and ends, in seconds."""
    start, end = acoustics.sounding(acoustics.frame_levels_db(waveform, sample_rate), sample_rate, len(waveform))
    return round(seconds(start, sample_rate), 4), round(seconds(end, sample_rate), 4)


def compose(pieces: Sequence[Piece], load: Callable[[str], Waveform]) -> Waveform | None:
    """The sound of a puzzle, mono 16 kHz; None if a piece is nearly silent.

    Args:
        pieces: What is played.
        load: Returns a recording, mono 16 kHz.
    """
    margin = np.zeros(num_samples(MARGIN_S, SAMPLE_RATE), np.float32)
    parts = [margin]
    for piece in pieces:
        start = num_samples(piece.start_s, SAMPLE_RATE)
        sound = load(piece.path)[start : start + num_samples(piece.length_s, SAMPLE_RATE)].astype(np.float32)
        power = float(np.mean(np.square(sound, dtype=np.float64))) if len(sound) else 0.0
        gain_db = piece.level_db - 10 * np.log10(max(power, 1e-12))
        if gain_db > MAX_GAIN_DB:
            return None
        sound = sound[::-1] if piece.is_reversed else sound
        sound = sound * np.float32(10 ** (gain_db / 20))
        fade = np.linspace(0, 1, min(num_samples(FADE_S, SAMPLE_RATE), len(sound) // 2), dtype=np.float32)
        sound[: len(fade)] *= fade
        sound[len(sound) - len(fade) :] *= fade[::-1]
        parts += [sound, np.zeros(num_samples(piece.gap_s, SAMPLE_RATE), np.float32)]
    waveform = np.concatenate([*parts, margin])
    peak = float(np.abs(waveform).max())
    # the whole sound is attenuated, so that the pieces keep their planned differences of level
    return waveform * np.float32(MAX_PEAK / peak) if peak > MAX_PEAK else waveform


def _write_puzzles(
    puzzles: Sequence[Puzzle], root: Path, folder: Path, licence: str, notify: Callable[[str], None]
) -> Iterator[Example]:
    """Compose the sounds that are not there yet, and yield the rows."""
    cache: dict[str, Waveform] = {}

    def load(name: str) -> Waveform:
        if name not in cache:
            if len(cache) >= CACHED_FILES:
                cache.pop(next(iter(cache)))
            cache[name] = decode(root / name, SAMPLE_RATE)
        return cache[name]

    num_silent = 0
    for puzzle in progress.track(puzzles, "puzzles composed", len(puzzles)):
        target = folder / f"{puzzle.name}.flac"
        if not target.is_file():
            waveform = compose(puzzle.pieces, load)
            if waveform is None:
                num_silent += 1
                continue
            _save(target, waveform)
        yield _example(puzzle, root, folder, licence)
    if num_silent:
        notify(f"{num_silent} puzzles are left out: a piece is nearly silent")


def _save(target: Path, waveform: Waveform) -> None:
    import soundfile

    with (
        atomic_write(target, "wb") as handle,
        soundfile.SoundFile(handle, "w", SAMPLE_RATE, 1, format="FLAC", subtype="PCM_16") as file,
    ):
        file.write(waveform)


def _example(puzzle: Puzzle, root: Path, folder: Path, licence: str) -> Example:
    """The row of a puzzle; `meta.pieces` says how its sound was made."""
    content = "\x1f".join((puzzle.question, puzzle.answer, *puzzle.choices))
    return Example(
        id=f"{puzzle.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}",
        turns=(Turn("user", (Audio(f"{puzzle.name}.flac"), Text(puzzle.question))),),
        answer=(puzzle.answer,),
        choices=puzzle.choices,
        task=puzzle.task,
        category="sound",
        source=root.name or "recordings",
        licence=licence,
        group=puzzle.pieces[0].path,
        split=puzzle.split,
        root=folder,
        meta={
            "clip_groups": sorted({piece.path for piece in puzzle.pieces}),
            "pieces": [
                {
                    "clip": piece.path, "start_s": piece.start_s, "length_s": piece.length_s,
                    "level_db": piece.level_db, "reversed": piece.is_reversed,
                }
                for piece in puzzle.pieces
            ],
        },
    )  # fmt: skip


def _counted(
    examples: Iterator[Example], counts: Counter[str], folder: Path, tasks: Sequence[str]
) -> Iterator[Example]:
    """Pass the rows on and count their tasks; raise DataError if there are none, so that no manifest is written."""
    for example in examples:
        counts[example.task] += 1
        yield example
    if not counts:
        raise DataError(
            f"{folder}: no recording is long enough for tasks {', '.join(tasks)}; halves need 1.6 s of sound, jigsaws "
            "1.5 s, the others 0.3 s and two recordings"
        )
