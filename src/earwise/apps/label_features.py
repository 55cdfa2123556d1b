"""Features and labels of clips and scenes, on which the connector `labels` is fitted (`apps.label_connector`).

A clip of a labelled collection has one label per facet; a scene is composed of clips, so it is known what sounds when.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earwise.audio import decode, num_samples
from earwise.data import manifest
from earwise.datasets.labels.collection import LabelRow
from earwise.datasets.labels.varied.clip_questions import varied_facts
from earwise.models.embedded.labels.event_init import WindowTargets
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.projector import LayerMix
from earwise.types import Example, Waveform

NONE = "none"
"""Label of a facet that does not apply to a clip: the language of a bark."""
SILENCE, SPEECH = "silence", "speech"
SILENCE_DB = -38.0
"""A window this far below the loudest one of its clip is silent."""
MIN_EVENT_S = 0.12
"""A window of a scene is labelled by the events that sound for at least this long in it."""
MIN_LEVEL_DB = -50.0
"""Levels below this one count as this one."""
LISTENED_SHARE = {"sound": 1.0, "music": 0.6, "speech": 0.25}
"""Share of the clips of each category on which the network that finds events is fitted, beside all scenes."""


@dataclass(frozen=True, slots=True)
class FacetField:
    """A facet: the field of `datasets.labels.varied` that it answers, and how the decoder sees the answer.

    Attributes:
        field: Name of the field.
        lead: Word in front of the answer.
        shown: Number of labels that are shown, the likeliest first.
        tokens: Tokens of each label.
        applies_to: Categories of clips that have such a label; `none` is right for clips of the others.
    """

    field: str
    lead: str
    shown: int = 1
    tokens: int = 1
    applies_to: tuple[str, ...] = ("music",)


FACETS = (
    FacetField("sound", "Sound", 4, 2, ("sound",)),
    FacetField("instrument", "Instrument", 3, 2),
    FacetField("kind", "Type", applies_to=("sound", "music", "speech")),
    FacetField("language", "Language", applies_to=("speech",)),
    FacetField("emotion", "Mood", 2, applies_to=("speech",)),
    FacetField("gender", "Speaker", applies_to=("speech",)),
    FacetField("digit", "Number", 2, applies_to=("speech",)),
    FacetField("register", "Pitch"),
    FacetField("dynamic", "Volume"),
    FacetField("pace", "Speed"),
    FacetField("mode", "Mode"),
    FacetField("contour", "Direction"),
)


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a clip or scene.

    Attributes:
        features: `(windows, features)`.
        names: Names of what sounds in each window; `(SILENCE,)` where nothing does.
        starts: Windows in which an event starts.
        levels: Level of each window in dB, relative to the loudest.
        events: Names of the events in their order; empty where they overlap, or for a clip.
    """

    features: Tensor
    names: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...]
    levels: tuple[float, ...]
    events: tuple[str, ...] = ()


@dataclass(slots=True)
class ClipData:
    """Features and labels of one split."""

    features: list[Tensor] = field(default_factory=list)
    labels: list[dict[str, tuple[str, ...]]] = field(default_factory=list)
    """Facet -> labels of a clip, all equally likely; absent where they are not known."""
    windows: list[Windows] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Hearing:
    """How the features of a waveform are computed.

    Attributes:
        cache: Encoder states of clips.
        mix: The connector that mixes the encoder's layers.
        sample_rate: Sample rate of the waveforms, Hz.
        window_s: Length of a window, seconds.
        rng: Source of randomness of the windows that are used.
    """

    cache: EncoderCache
    mix: LayerMix
    sample_rate: int
    window_s: float
    rng: np.random.Generator

    @property
    def window_samples(self) -> int:
        """Length of a window in samples."""
        return num_samples(self.window_s, self.sample_rate)


def scenes_of(manifests: Iterable[Path]) -> Iterator[Example]:
    """One question about each scene of some manifests."""
    seen = set[Path]()
    for path in manifests:
        for example in manifest.read(path):
            if "events" in example.meta and example.audio_paths[0] not in seen:
                seen.add(example.audio_paths[0])
                yield example


def add_clip(data: ClipData, row: LabelRow, waveform: Waveform, hearing: Hearing) -> None:
    """Add a clip and its windows."""
    facts = {fact.field: fact.name for fact in varied_facts(row)}
    labels = {facet.field: (facts[facet.field],) for facet in FACETS if facet.field in facts}
    labels |= {facet.field: (NONE,) for facet in FACETS if row["category"] not in facet.applies_to}
    rows = _add(data, waveform, labels, hearing)
    spoken = SPEECH if row["category"] == "speech" else None
    name = facts.get("sound") or facts.get("instrument") or spoken
    if name is None:
        return
    is_drawn = hearing.rng.random() < LISTENED_SHARE.get(row["category"], 0.0)
    if not is_drawn and data.windows:  # a small collection has at least one
        return
    levels = _window_levels(waveform, hearing.window_samples, len(rows))
    names = tuple((SILENCE,) if level < SILENCE_DB else (name,) for level in levels)
    data.windows.append(Windows(rows, names, (0,), levels))


def add_scene(data: ClipData, example: Example, hearing: Hearing) -> None:
    """Add a scene and its windows, which are labelled by the events that sound in them."""
    waveform = decode(example.audio_paths[0], hearing.sample_rate)
    events = sorted(example.meta["events"], key=lambda event: event["at_s"])
    labels = {facet.field: (NONE,) for facet in FACETS if facet.applies_to == ("speech",)}
    labels["heard"] = tuple(sorted({event["label"] for event in events}))
    rows = _add(data, waveform, labels, hearing)
    levels = _window_levels(waveform, hearing.window_samples, len(rows))
    names = tuple(
        (SILENCE,) if level < SILENCE_DB else _sounding(events, number * hearing.window_s, hearing.window_s)
        for number, level in enumerate(levels)
    )
    starts = tuple(min(len(rows) - 1, int(event["at_s"] / hearing.window_s)) for event in events)
    overlaps = any(len(heard) > 1 for heard in names)
    named = () if overlaps else tuple(event["label"] for event in events)
    data.windows.append(Windows(rows, names, starts, levels, named))


def _sounding(events: Sequence[Mapping[str, Any]], start_s: float, window_s: float) -> tuple[str, ...]:
    """Names of the events that sound in a window; `(SILENCE,)` if none does."""
    end_s = start_s + window_s
    heard = {
        event["label"]
        for event in events
        if min(end_s, event["at_s"] + event["for_s"]) - max(start_s, event["at_s"]) >= MIN_EVENT_S
    }
    return tuple(sorted(heard)) or (SILENCE,)


def _window_levels(waveform: Waveform, size: int, windows: int) -> tuple[float, ...]:
    """Level of each window of `size` samples in dB, relative to the loudest window of the clip."""
    padded = np.pad(waveform, (0, max(0, windows * size - len(waveform))))[: windows * size].reshape(windows, size)
    levels = np.sqrt(np.square(padded).mean(1)) + 1e-7
    return tuple(float(level) for level in (20 * np.log10(levels / levels.max())).clip(MIN_LEVEL_DB))


def _add(data: ClipData, waveform: Waveform, labels: Mapping[str, tuple[str, ...]], hearing: Hearing) -> Tensor:
    """Add the features and labels of a clip, and give the features of its windows, `(windows, features)`."""
    (states,) = hearing.cache.encoder_states([waveform])
    with torch.no_grad():
        rows = hearing.mix.mix_layers(states).half()
    data.features.append(rows[:2].flatten())
    data.labels.append(dict(labels))
    return rows[2:]


def window_targets(windows: Sequence[Windows], names: Sequence[str]) -> list[WindowTargets]:
    """What the network that finds events should say of each clip. Names that are not in `names` are not known."""
    number = {name: index for index, name in enumerate(names)}
    targets = []
    for clip in windows:
        labels = torch.zeros(len(clip.names), len(names))
        for window, heard in enumerate(clip.names):
            for name in heard:
                if name in number:
                    labels[window, number[name]] = 1 / len(heard)
        onset = torch.zeros(len(clip.names))
        onset[list(clip.starts)] = 1
        overlap = torch.tensor([float(len(heard) > 1) for heard in clip.names])
        targets.append(WindowTargets(clip.features, labels, onset, overlap, torch.tensor(clip.levels) / 10))
    return targets
