"""Fits the network that finds events (`models.embedded.labels.event_listener`) on encoder states, before training.

The features of a window are standardised and reduced to their principal components once; the network is then fitted on
those of whole clips and scenes, some minutes for ten thousand clips. `apps.label_connector` collects states and labels.
Ours.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from earwise import progress
from earwise.models.embedded.labels.event_listener import EventListener, ListenerSpec, WindowScores
from earwise.models.embedded.labels.label_init import moments

BATCH_SIZE = 24
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
WARMUP_SHARE = 0.1
"""Share of the steps in which the learning rate rises."""
DROPOUT = 0.3
ONSET_WEIGHT = 3.0
"""Weight of windows in which an event starts, which are few."""
OVERLAP_SHARE, LEVEL_SHARE = 0.5, 0.3
"""Weights of two losses beside those of labels and onsets."""
VARIANCE_FLOOR = 0.05
"""Added to the variance of a principal component before it is scaled, so that noise is not blown up."""
MAX_COMPONENT_WINDOWS = 30_000
"""Number of windows from which the principal components are computed."""


@dataclass(frozen=True, slots=True)
class WindowTargets:
    """The windows of one clip, and what the network should say of them.

    Attributes:
        features: `(windows, features)`, in any dtype.
        labels: Probability of each label, `(windows, labels)`; a row of zeros is a window whose label is not known.
        onset: 1 where an event starts, `(windows,)`.
        overlap: 1 where two different sounds are heard, `(windows,)`.
        level: Level in units of 10 dB, relative to the loudest window, `(windows,)`.
    """

    features: Tensor
    labels: Tensor
    onset: Tensor
    overlap: Tensor
    level: Tensor


def fit_listener(clips: Sequence[WindowTargets], spec: ListenerSpec, *, epochs: int, seed: int) -> EventListener:
    """Fit an `EventListener`.

    Args:
        clips: Clips and scenes.
        spec: Sizes; there are at most as many components as features.
        epochs: Passes over the clips.
        seed: Seed of initial weights, order and dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        listener = EventListener(clips[0].features.shape[1], spec)
        nn.init.zeros_(listener.labels_alone.weight)
        set_components(listener, clips)
        with torch.no_grad():
            components = [listener.components(clip.features.float()) for clip in clips]
        fitted = [parameter for name, parameter in listener.named_parameters() if not name.startswith("components.")]
        optimizer = torch.optim.AdamW(fitted, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        steps = epochs * -(-len(clips) // BATCH_SIZE)
        warmup = max(WARMUP_SHARE, 2 / steps)  # the schedule divides by the steps of its warm-up but one
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=warmup)
        rng = random.Random(seed)
        with torch.enable_grad():
            for _ in progress.track(range(epochs), "passes of the event listener", epochs):
                order = rng.sample(range(len(clips)), len(clips))
                for start in range(0, len(order), BATCH_SIZE):
                    rows = order[start : start + BATCH_SIZE]
                    loss = _loss(listener, [components[row] for row in rows], [clips[row] for row in rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
    return listener.requires_grad_(False)


@torch.no_grad()
def set_components(listener: EventListener, clips: Sequence[WindowTargets]) -> None:
    """Set the principal components, in place: a linear map of features that are not standardised."""
    windows = torch.cat([clip.features for clip in clips])
    mean, deviation = moments(windows)
    sample = windows[:: -(-len(windows) // MAX_COMPONENT_WINDOWS)].float()
    sample = (sample - mean) / deviation
    variances, directions = torch.linalg.eigh(sample.T @ sample / len(sample))
    count = listener.components.out_features
    scale = (variances.flip(0)[:count].clamp_min(0) + VARIANCE_FLOOR).sqrt()
    weight = (directions.flip(1)[:, :count] / scale).T / deviation
    listener.components.weight.copy_(weight)
    listener.components.bias.copy_(-weight @ mean)


def _loss(listener: EventListener, components: Sequence[Tensor], clips: Sequence[WindowTargets]) -> Tensor:
    """The sum of the losses of labels, onsets, overlaps and levels, each the mean over the windows of a batch."""
    padded = nn.utils.rnn.pad_sequence(list(components), batch_first=True)
    is_window = nn.utils.rnn.pad_sequence([torch.ones(len(part)) for part in components], batch_first=True)
    scores: WindowScores = listener.score(padded, is_window, DROPOUT)

    def target(name: str) -> Tensor:
        return nn.utils.rnn.pad_sequence([getattr(clip, name).float() for clip in clips], batch_first=True)

    def mean(losses: Float[Tensor, "clips windows"]) -> Tensor:
        return (losses * is_window).sum() / is_window.sum()

    onset_weight = torch.tensor(ONSET_WEIGHT)
    labels = -(target("labels") * torch.log_softmax(scores.label_logits, -1)).sum(-1)
    onset = functional.binary_cross_entropy_with_logits(
        scores.onset_logits, target("onset"), pos_weight=onset_weight, reduction="none"
    )
    overlap = functional.binary_cross_entropy_with_logits(scores.overlap_logits, target("overlap"), reduction="none")
    level = (scores.level - target("level")).abs()
    return mean(labels) + mean(onset) + OVERLAP_SHARE * mean(overlap) + LEVEL_SHARE * mean(level)
