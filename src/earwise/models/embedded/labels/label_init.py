"""Fits the classifiers of the connector `labels` (`label_words` beside this file) on encoder states, before training.

The classifier is linear, on states that are standardised over the training clips, with dropout, weight decay and
label smoothing against their many features; a minute or two for some thousand clips. `apps.label_connector` collects
states and labels. Ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from earwise.models.embedded.labels.event_listener import EventListener
from earwise.models.embedded.labels.label_words import LabelWords

BATCH_SIZE = 128
LEARNING_RATE = 4e-4
WEIGHT_DECAY = 0.3
DROPOUT = 0.5
SMOOTHING = 0.05
TEMPERATURE = 2.0
"""Divides the scores in the loss, so that the many features do not drive the probabilities to 0 and 1 at once."""
MIN_LABELLED = 8
"""A facet that few clips of a batch are labelled for counts as if there were this many."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Scores `(batch, labels)` and the numbers of the batch's rows -> the loss, a scalar."""


@dataclass(frozen=True, slots=True)
class FittedClassifier:
    """A linear classifier of features that are not standardised.

    Attributes:
        weight: `(labels, features)`.
        bias: `(labels,)`.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows labels"]:
        """Scores of the labels."""
        return functional.linear(features, self.weight, self.bias)


def fit_facets(
    features: Float[Tensor, "clips features"],
    targets: Sequence[Float[Tensor, "clips labels"]],
    *,
    epochs: int,
    seed: int,
) -> FittedClassifier:
    """Fit one classifier for all facets.

    Args:
        features: Features of each clip, in any dtype.
        targets: For each facet the probability of every label for every clip; a row of zeros is a clip whose label is
            not known.
        epochs: Passes over the clips.
        seed: Seed of order and dropout.
    Returns:
        The classifier, whose rows are those of the facets one after the other.
    """
    sizes = [target.shape[1] for target in targets]

    def loss(scores: Tensor, rows: Tensor) -> Tensor:
        total = scores.new_zeros(())
        for facet_scores, target in zip(scores.split(sizes, 1), targets, strict=True):
            wanted = target[rows]
            labelled = wanted.sum(1, keepdim=True)
            smoothed = (1 - SMOOTHING) * wanted + SMOOTHING / wanted.shape[1] * labelled
            log_probabilities = torch.log_softmax(facet_scores / TEMPERATURE, 1)
            total = total - (smoothed * log_probabilities).sum() / labelled.sum().clamp_min(MIN_LABELLED)
        return total

    return _fit(features, sum(sizes), loss, torch.ones(len(features)), epochs=epochs, seed=seed)


def _fit(features: Tensor, num_labels: int, loss: Loss, weights: Tensor, *, epochs: int, seed: int) -> FittedClassifier:
    """Minimise a loss over batches of rows that are drawn with the given weights."""
    mean, deviation = moments(features)
    linear = nn.Linear(features.shape[1], num_labels)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(features) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.multinomial(weights, len(features), replacement=True, generator=generator)
            for rows in order.split(BATCH_SIZE):
                batch = (features[rows].float() - mean) / deviation
                kept = torch.rand(batch.shape, generator=generator) >= DROPOUT
                batch_loss = loss(linear(batch * kept / (1 - DROPOUT)), rows)
                optimizer.zero_grad()
                batch_loss.backward()
                optimizer.step()
                schedule.step()
    weight = linear.weight.detach() / deviation
    return FittedClassifier(weight, linear.bias.detach() - weight @ mean)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, computed in parts, since the features may be float16 and many."""
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in features.split(2048):
        total += part.double().sum(0)
        squares += part.double().square().sum(0)
    mean = total / len(features)
    deviation = (squares / len(features) - mean.square()).clamp_min(1e-8).sqrt() + 1e-3
    return mean.float(), deviation.float()


@dataclass(frozen=True, slots=True)
class ConnectorWords:
    """The embeddings that a connector `labels` shows to the decoder.

    Attributes:
        facets: For each facet the embeddings of its labels, `(labels, tokens, out)`.
        facet_leads: Embeddings of the lead of each facet, `(facets, lead, out)`.
        events: Embeddings of each label of an event, `(labels, tokens, out)`.
        event_leads: Embeddings of the leads of events, `(leads, lead, out)`.
        no_event: What stands where no event is, `(tokens, out)`.
        together: Words for sounds that do not overlap, and for those that do, `(2, out)`.
        windows: Embedding of each label of a window, `(labels, out)`.
    """

    facets: Sequence[Tensor]
    facet_leads: Tensor
    events: Tensor
    event_leads: Tensor
    no_event: Tensor
    together: Tensor
    windows: Tensor


@torch.no_grad()
def set_connector(
    connector: LabelWords, words: ConnectorWords, fitted: FittedClassifier, listener: EventListener
) -> None:
    """Write classifiers and words into a connector, in place.

    Args:
        connector: The connector; its features are those that the classifiers were fitted on.
        words: What the decoder will read.
        fitted: Classifier of clips.
        listener: Finds events; it becomes a part of the connector.
    """
    connector.classify.weight.copy_(fitted.weight)
    connector.classify.bias.copy_(fitted.bias)
    connector.listener = listener
    for parameter, vectors in zip(connector.words, words.facets, strict=True):
        parameter.copy_(vectors)
    connector.facet_leads.copy_(words.facet_leads)
    connector.event_words.copy_(words.events)
    connector.event_leads.copy_(words.event_leads)
    connector.no_event.copy_(words.no_event)
    connector.together_words.copy_(words.together)
    connector.window_words.copy_(words.windows)
