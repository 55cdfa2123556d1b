"""Renders planned scenes (`labels/scenes.py`) to audio files, and builds the Examples about them.

The name of a file is a hash of its plan, so that a second run renders only the files that are missing.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path

import numpy as np

from earwise import progress
from earwise.audio import decode, num_samples
from earwise.datasets.labels import acoustics
from earwise.datasets.labels.pair_questions import join_values
from earwise.datasets.labels.scenes import MARGIN_S, Scene
from earwise.errors import AudioError
from earwise.files import atomic_write
from earwise.types import Audio, Example, Text, Turn, Waveform

SAMPLE_RATE = 16000
FADE_S = 0.03
MAX_PEAK = 0.95
MAX_CACHED_CLIPS = 512


def render_scene(scene: Scene, load: Callable[[str], Waveform]) -> Waveform:
    """Waveform of a scene, mono 16 kHz `(samples,)`.

    Args:
        scene: Plan of the scene.
        load: Function that returns the clip at a path without silence at its ends, mono 16 kHz; the waveform is
            modified.
    """
    end_s = max(event.at_s + event.for_s for event in scene.events) + MARGIN_S
    waveform = np.zeros(num_samples(end_s, SAMPLE_RATE), np.float32)
    for event in scene.events:
        sound = load(event.path)[: num_samples(event.for_s, SAMPLE_RATE)] * np.float32(10 ** (event.gain_db / 20))
        fade = min(num_samples(FADE_S, SAMPLE_RATE), len(sound))
        sound[len(sound) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        start = num_samples(event.at_s, SAMPLE_RATE)
        waveform[start : start + len(sound)] += sound
    peak = float(np.abs(waveform).max())
    # the whole scene is attenuated, so that the levels of the clips keep their planned differences
    return waveform * np.float32(MAX_PEAK / peak) if peak > MAX_PEAK else waveform


def write_scenes(
    scenes: Iterable[Scene], root: Path, folder: Path, *, on_error: Callable[[AudioError], None] | None = None
) -> Iterator[Example]:
    """Render scenes to FLAC files, unless the files exist, and yield their Examples one by one.

    Args:
        scenes: Planned scenes.
        root: Folder that the paths of the scenes' clips start from.
        folder: Folder to write the files to; the Examples' paths start from it.
        on_error: Callback for clips that cannot be decoded, whose scenes are skipped; None raises the error.
    Raises:
        AudioError: if a clip cannot be decoded and there is no `on_error`.
        DataError: if a file cannot be written.
    """
    cache: dict[str, Waveform] = {}

    def load(path: str) -> Waveform:
        if path not in cache:
            if len(cache) >= MAX_CACHED_CLIPS:
                cache.pop(next(iter(cache)))
            waveform = decode(root / path, SAMPLE_RATE)
            levels = acoustics.frame_levels_db(waveform, SAMPLE_RATE)
            start, end = acoustics.sounding(levels, SAMPLE_RATE, len(waveform))
            cache[path] = waveform[start:end]
        return cache[path].copy()

    for scene in progress.track(scenes, "scenes composed", len(scenes) if isinstance(scenes, Sized) else None):
        target = folder / f"{scene.name}.flac"
        if not target.is_file():
            try:
                waveform = render_scene(scene, load)
            except AudioError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            _save(target, waveform)
        yield _example(scene, folder)


def _save(target: Path, waveform: Waveform) -> None:
    import soundfile

    with (
        atomic_write(target, "wb") as handle,
        soundfile.SoundFile(handle, "w", SAMPLE_RATE, 1, format="FLAC", subtype="PCM_16") as file,
    ):
        file.write(waveform)


def _example(scene: Scene, folder: Path) -> Example:
    """Example about a rendered scene; `meta.events` describes the scene."""
    rows = scene.rows
    categories = {row["category"] for row in rows}
    content = "\x1f".join((scene.question, scene.answer, *scene.choices))
    return Example(
        id=f"{scene.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}",
        turns=(Turn("user", (Audio(f"{scene.name}.flac"), Text(scene.question))),),
        answer=(scene.answer,),
        choices=scene.choices,
        task=scene.task,
        category=categories.pop() if len(categories) == 1 else "mixed",
        source=join_values(rows, "source"),
        licence=join_values(rows, "licence"),
        group=rows[0]["group"],
        split=rows[0]["split"],
        root=folder,
        meta={
            "field": scene.variant,
            "clip_groups": sorted({row["group"] for row in rows}),
            "events": [
                {
                    "clip": event.path,
                    "label": event.name,
                    "at_s": event.at_s,
                    "for_s": event.for_s,
                    "gain_db": event.gain_db,
                }
                for event in scene.events
            ],
        },
    )
