"""Finds the events of a clip in its encoder states: which sounds follow one another, which is the loudest, the longest.

A small convolutional network reads the windows of a clip (a third of a second each) and says of every window what
sounds in it, whether an event starts in it, whether two sounds overlap in it, and how loud it is. `find_events` makes a
list of events of that. Neighbouring events that sound alike are named alike, because "a dog, then a bell, then a dog"
is decided by comparing the events, not by naming each of them alone.

Ours; sound event detection with onset labels is common practice (for example DCASE's task 4). `event_init`
beside this file fits the network, `label_words` shows its events to the decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SILENCE = 0
"""Number of the label of a silent window."""
ONSET_THRESHOLD = 0.5
SILENCE_THRESHOLD = 0.5
OVERLAP_THRESHOLD = 0.5
ALIKE_DISTANCE = 0.4
"""Events whose label probabilities are closer than this (1 minus the Bhattacharyya coefficient) have the same name."""


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """Sizes of an `EventListener`, and how many events the decoder sees.

    Attributes:
        labels: Number of labels of a window; label 0 is silence.
        slots: Largest number of events that are shown.
        shown: Labels that are shown of each event, the likeliest first.
        components: Principal components of a window's features that the network reads.
        width: Width of the network.
    """

    labels: int
    slots: int = 6
    shown: int = 2
    components: int = 1024
    width: int = 256


@dataclass(frozen=True, slots=True)
class WindowScores:
    """What the network says of each window.

    Attributes:
        label_logits: `(..., windows, labels)`.
        onset_logits: Whether an event starts in the window, `(..., windows)`.
        overlap_logits: Whether two different sounds are heard in it, `(..., windows)`.
        level: Level of the window in units of 10 dB, relative to the loudest window of the clip, `(..., windows)`.
    """

    label_logits: Tensor
    onset_logits: Tensor
    overlap_logits: Tensor
    level: Tensor


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        label_scores: Log-probability of each label, `(labels,)`; events that sound alike have the same.
        start: First window.
        end: Window behind the last one.
        level: Level of its loudest window, as in `WindowScores`.
    """

    label_scores: Tensor
    start: int
    end: int
    level: float

    @property
    def num_windows(self) -> int:
        """Length of the event in windows."""
        return self.end - self.start


class EventListener(nn.Module):
    """Features of windows -> `WindowScores`.

    Args:
        features: Number of features of a window.
        spec: Sizes.
    """

    def __init__(self, features: int, spec: ListenerSpec) -> None:
        super().__init__()
        width = spec.width
        self.components = nn.Linear(features, spec.components)
        self.inner = nn.Linear(spec.components, width)
        self.norm = nn.LayerNorm(width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, size, padding=size // 2) for size in (3, 5))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.convolutions)
        self.labels = nn.Linear(width, spec.labels)
        self.labels_alone = nn.Linear(spec.components, spec.labels, bias=False)
        self.states = nn.Linear(width, 3)

    def forward(self, windows: Float[Tensor, "windows features"]) -> WindowScores:
        """Scores of the windows of one clip."""
        return self.score(self.components(windows))

    def score(
        self, components: Float[Tensor, "*batch windows components"], is_window: Tensor | None = None,
        dropout: float = 0.0,
    ) -> WindowScores:  # fmt: skip
        """Scores from the principal components of the windows.

        Args:
            components: Principal components, with or without a batch dimension.
            is_window: 1 for windows, 0 for padding, `(batch, windows)`; None if there is no padding.
            dropout: Share of the components that is dropped, while the network is fitted.
        """
        dropped = functional.dropout(components, dropout)
        hidden = self.norm(functional.gelu(self.inner(dropped)))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            known = hidden if is_window is None else hidden * is_window[..., None]
            near = functional.gelu(convolution(known.transpose(-1, -2)).transpose(-1, -2))
            hidden = norm(hidden + functional.dropout(near, dropout))
        alone = self.labels_alone(functional.dropout(components, dropout))
        onset, overlap, level = self.states(hidden).unbind(-1)
        return WindowScores(self.labels(hidden) + alone, onset, overlap, level)


@torch.no_grad()
def find_events(scores: WindowScores) -> list[Event]:
    """The events of one clip, in the order in which they start.

    An event starts at a window whose onset probability is a peak above `ONSET_THRESHOLD`, and lasts until the next one
    starts, without the silent windows at its end. A clip without a peak is one event, unless it is silent.

    Args:
        scores: Scores of the windows of one clip.
    """
    onset = torch.sigmoid(scores.onset_logits)
    log_probabilities = torch.log_softmax(scores.label_logits, -1)
    is_silent = (log_probabilities[:, SILENCE].exp() > SILENCE_THRESHOLD).tolist()
    starts = _peaks(onset.tolist()) or [0]
    events = []
    for start, end in zip(starts, [*starts[1:], len(onset)], strict=True):
        sounding = [window for window in range(start, end) if not is_silent[window]]
        if not sounding:
            continue
        label_scores = log_probabilities[sounding].mean(0)
        label_scores[SILENCE] = -torch.inf
        level = float(scores.level[sounding].max())
        events.append(Event(label_scores, start, sounding[-1] + 1, level))
    return name_alike(events)


def _peaks(onset: Sequence[float]) -> list[int]:
    """Windows whose onset probability is above the threshold and not below that of their neighbours."""
    peaks = []
    for window, value in enumerate(onset):
        before = onset[window - 1] if window else 0.0
        behind = onset[window + 1] if window + 1 < len(onset) else 0.0
        if value > ONSET_THRESHOLD and value > before and value >= behind:
            peaks.append(window)
    return peaks


def name_alike(events: Sequence[Event]) -> list[Event]:
    """The events, in which those that sound alike have the mean of their label scores.

    Groups are joined by their smallest distance first (average linkage) until all are `ALIKE_DISTANCE` apart.
    """
    groups = [[number] for number in range(len(events))]
    roots = [torch.softmax(event.label_scores, 0).sqrt() for event in events]

    def distance(first: list[int], second: list[int]) -> float:
        means = [torch.stack([roots[number].square() for number in group]).mean(0).sqrt() for group in (first, second)]
        return float(1 - means[0] @ means[1])

    while len(groups) > 1:
        pairs = [(first, second) for second in range(len(groups)) for first in range(second)]
        nearest, first, second = min((distance(groups[a], groups[b]), a, b) for a, b in pairs)
        if nearest > ALIKE_DISTANCE:
            break
        groups[first] += groups.pop(second)
    named: dict[int, Event] = {}
    for group in groups:
        mean = torch.stack([events[number].label_scores for number in group]).mean(0)
        named |= {n: Event(mean, events[n].start, events[n].end, events[n].level) for n in group}
    return [named[number] for number in range(len(events))]


def sounds_overlap(scores: WindowScores) -> bool:
    """Whether two sounds are heard at once somewhere in the clip."""
    return bool((torch.sigmoid(scores.overlap_logits) > OVERLAP_THRESHOLD).any())
