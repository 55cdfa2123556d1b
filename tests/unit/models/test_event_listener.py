"""Events are found where the scores of the windows say so, and those that sound alike are named alike."""

import pytest
import torch

from earwise.models.embedded.labels.event_init import WindowTargets, fit_listener
from earwise.models.embedded.labels.event_listener import (
    Event,
    ListenerSpec,
    WindowScores,
    find_events,
    name_alike,
    sounds_overlap,
)


def window_scores(heard: str, starts: str, levels: list[float]) -> WindowScores:
    """Scores that are sure of a letter per window (`.` is silence, a is label 1), and of starts marked by `x`."""
    labels = torch.full((len(heard), 4), -8.0)
    for window, letter in enumerate(heard):
        labels[window, 0 if letter == "." else ord(letter) - ord("a") + 1] = 8.0
    onset = torch.tensor([4.0 if mark == "x" else -4.0 for mark in starts])
    return WindowScores(labels, onset, torch.full((len(heard),), -4.0), torch.tensor(levels))


def named(events: list[Event]) -> list[tuple[str, int, int]]:
    """Likeliest letter, first window and the window behind the last of each event."""
    return [(chr(ord("a") + int(event.label_scores.argmax()) - 1), event.start, event.end) for event in events]


def test_events_start_at_peaks_and_end_before_silence() -> None:
    scores = window_scores(".aaa..bbaa", ".x....x.x.", [0, -1, -0.5, -2, 0, 0, -3, -1.5, -0.2, -0.1])
    events = find_events(scores)
    assert named(events) == [("a", 1, 4), ("b", 6, 8), ("a", 8, 10)]
    assert [round(event.level, 2) for event in events] == [-0.5, -1.5, -0.1]
    assert [event.num_windows for event in events] == [3, 2, 2]


@pytest.mark.parametrize(
    ("heard", "starts", "expected"),
    [
        ("aab", "...", [("a", 0, 3)]),
        ("...", "...", []),
        ("...", "x..", []),
        ("ab", "xx", [("a", 0, 2)]),
    ],
    ids=["without a peak it is one", "silence", "start in silence", "equal neighbours are one peak"],
)
def test_ends_of_the_rule(heard: str, starts: str, expected: list[tuple[str, int, int]]) -> None:
    assert named(find_events(window_scores(heard, starts, [0.0] * len(heard)))) == expected


def test_alike_events_are_named_alike_and_others_are_not() -> None:
    sure, unsure, other = (torch.tensor(p).log() for p in ([0.9, 0.1, 1e-9], [0.45, 0.55, 1e-9], [1e-9, 0.05, 0.95]))
    events = name_alike([Event(sure, 0, 1, 0.0), Event(other, 1, 2, 0.0), Event(unsure, 2, 3, 0.0)])
    assert [int(event.label_scores.argmax()) for event in events] == [0, 2, 0]
    torch.testing.assert_close(events[0].label_scores, (sure + unsure) / 2)
    # 1 - (sqrt(.9 * .45) + sqrt(.1 * .55)) = .129 is below the limit; .05 of overlap is far above it
    torch.testing.assert_close(events[1].label_scores, other)


def test_overlap_is_heard_in_any_window() -> None:
    scores = window_scores("aa", "x.", [0.0, 0.0])
    assert not sounds_overlap(scores)
    scores.overlap_logits[1] = 0.1
    assert sounds_overlap(scores)


def test_it_learns_where_events_start_and_what_they_are() -> None:
    """Two kinds of event with noise, of random length and order, in 12 windows of 6 features."""
    generator = torch.Generator().manual_seed(0)
    means = torch.eye(3, 6) * 3
    clips, truths = [], []
    for _ in range(160):
        heard = []
        while len(heard) < 12:
            length = int(torch.randint(2, 5, (), generator=generator))
            label = int(torch.randint(1, 3, (), generator=generator))
            heard += [0, *[label] * length]
        heard = heard[:12]
        labels = torch.nn.functional.one_hot(torch.tensor(heard), 3).float()
        onset = torch.tensor([float(b != 0 and a == 0) for a, b in zip([0, *heard], heard, strict=False)])
        features = labels @ means + torch.randn(12, 6, generator=generator)
        clips.append(WindowTargets(features.half(), labels, onset, torch.zeros(12), -labels[:, 1]))
        truths.append([heard[n] for n in range(12) if onset[n]])
    spec = ListenerSpec(3, components=6, width=32)
    listener = fit_listener(clips[:120], spec, epochs=60, seed=0)
    found = [find_events(listener(clip.features.float())) for clip in clips[120:]]
    right = [[int(event.label_scores.argmax()) for event in events] for events in found]
    assert sum(a == b for a, b in zip(right, truths[120:], strict=True)) >= 28, "of 40 that it has not met"
