"""The connector `labels`: `LayerMix`, and in words of the decoder what a linear classifier hears in the clip.

A frozen speech encoder holds more about sounds, instruments and moods than a linear map onto word embeddings gets out
of it: a linear classifier of the same states names more of them rightly than the nearest word embedding does
(`docs/results/findings.md`). So this connector also classifies. For each *facet* of a clip (its sound, its instrument,
the language, the mood ...) it scores the facet's labels from the mean and the standard deviation of all encoder layers
over time, and shows the decoder the embeddings of the likeliest ones, the likeliest first, behind a lead of words ("
Sound:"). What stands there is text that the decoder can read. The events that `EventListener` finds follow in the same
way, in their order, with the loudest, the longest, and whether two sounds overlap; and to each window's token the
embedding of what is heard in that window is added. `LayerMix` carries what no label names.

Ours. `label_init` and `event_init` beside this file fit the classifiers before the decoder is trained. The choice of
the likeliest labels passes no gradient to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earwise.models.embedded.labels import event_listener
from earwise.models.embedded.labels.event_listener import Event, EventListener, ListenerSpec, WindowScores
from earwise.models.parts.projector import LayerMix

LEAD = 2
"""Tokens of each lead: a word and a colon."""
LABEL_TOKENS = 2
"""Tokens of each label of an event."""
WINDOWS_PER_SLOT = 3
"""A clip has a slot for an event per this many windows, so that a short clip does not cost as much as a long one."""
EVENT_LEADS = ("Order", "Loudest", "Longest", "Together")
"""What is said of the events, in this order."""


@dataclass(frozen=True, slots=True)
class Facet:
    """One question that the classifier answers about each clip.

    Attributes:
        labels: Number of labels to choose from.
        shown: Number of labels that the decoder sees, the likeliest first.
        tokens: Number of tokens of each label.
    """

    labels: int
    shown: int = 1
    tokens: int = 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the decoder sees, without the lead."""
        return self.shown * self.tokens


class LabelWords(nn.Module):
    """Pooled states of all encoder layers -> words of the facets and events, then the tokens of `LayerMix`.

    Args:
        mix: Connector of the rest.
        features: Number of features of one row of the mixed layers (layers times width of the encoder).
        out: Width of the decoder.
        facets: What the classifier answers.
        listener: Sizes of the network that finds events.
    """

    def __init__(
        self, mix: LayerMix, features: int, out: int, *, facets: Sequence[Facet], listener: ListenerSpec
    ) -> None:
        super().__init__()
        self.mix = mix
        self._facets = tuple(facets)
        self._listener_spec = listener
        self.classify = nn.Linear(2 * features, sum(facet.labels for facet in facets))
        self.words = nn.ParameterList(torch.randn(facet.labels, facet.tokens, out) * 0.1 for facet in facets)
        self.facet_leads = nn.Parameter(torch.randn(len(facets), LEAD, out) * 0.1)
        self.listener = EventListener(features, listener)
        self.event_words = nn.Parameter(torch.randn(listener.labels, LABEL_TOKENS, out) * 0.1)
        self.event_leads = nn.Parameter(torch.randn(len(EVENT_LEADS), LEAD, out) * 0.1)
        self.no_event = nn.Parameter(torch.zeros(LABEL_TOKENS, out))
        """What stands in a slot without an event."""
        self.together_words = nn.Parameter(torch.randn(2, out) * 0.1)
        """Words for: no sounds overlap; two sounds overlap."""
        self.window_words = nn.Parameter(torch.zeros(listener.labels, out))

    def reduce_states(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read rows dim"]:
        """The part of a clip's encoder states that `forward` needs; see `LayerMix.reduce_states`."""
        return self.mix.reduce_states(layers)

    def token_count(self, states: int) -> int:
        """Number of tokens of a clip with this many encoder states."""
        mixed = self.mix.token_count(states)
        return self._num_word_tokens(mixed - self.mix.num_fixed_tokens) + mixed

    def _num_word_tokens(self, windows: int) -> int:
        """Number of tokens of facets and events."""
        facets = sum(LEAD + facet.num_tokens for facet in self._facets)
        named = self._num_slots(windows) * self._listener_spec.shown + 2
        return facets + len(EVENT_LEADS) * LEAD + named * LABEL_TOKENS + 1

    def _num_slots(self, windows: int) -> int:
        """Number of events that a clip of this many windows can show."""
        return min(self._listener_spec.slots, 1 + windows // WINDOWS_PER_SLOT)

    def forward(self, clips: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Audio embeddings of some clips.

        Args:
            clips: `reduce_states` of each clip.
        Returns:
            For each clip the words of the facets and events, each behind its lead, and the tokens of `LayerMix`, with
            the words of the windows added to those of the windows.
        """
        return [
            self._with_words(mixed, self.mix.mix_layers(clip))
            for mixed, clip in zip(self.mix(clips), clips, strict=True)
        ]

    def _with_words(self, mixed: Tensor, rows: Float[Tensor, "rows features"]) -> Tensor:
        """The tokens of one clip, from those of `LayerMix` and the mixed layers."""
        scores = self.listener(rows[2:])
        fixed, windows = mixed.split([len(mixed) - len(rows) + 2, len(rows) - 2])
        heard = torch.softmax(scores.label_logits, 1) @ self.window_words
        return torch.cat([*self._facet_words(rows[:2].flatten()), *self._event_words(scores), fixed, windows + heard])

    def _facet_words(self, features: Tensor) -> list[Tensor]:
        """Lead and likeliest labels of each facet."""
        scores = self.classify(features).split([facet.labels for facet in self._facets])
        parts = []
        for facet, lead, words, label_scores in zip(self._facets, self.facet_leads, self.words, scores, strict=True):
            parts += [lead, words[label_scores.topk(facet.shown).indices].flatten(0, 1)]
        return parts

    def _event_words(self, scores: WindowScores) -> list[Tensor]:
        """Labels of the events in their order, then of the loudest and the longest, and whether sounds overlap."""
        events = event_listener.find_events(scores)
        shown, slots = self._listener_spec.shown, self._num_slots(len(scores.level))
        named = [self._named(event, shown) for event in events[:slots]]
        blank = self.no_event.repeat(shown, 1)
        order = torch.cat(named + [blank] * (slots - len(named)))
        together = self.together_words[int(event_listener.sounds_overlap(scores))][None]
        return [
            torch.cat([lead, words])
            for lead, words in zip(
                self.event_leads,
                (order, self._most(events, _level), self._most(events, _length), together),
                strict=True,
            )
        ]

    def _named(self, event: Event, shown: int) -> Tensor:
        """Words of an event's likeliest labels."""
        return self.event_words[event.label_scores.topk(shown).indices].flatten(0, 1)

    def _most(self, events: Sequence[Event], measure: Callable[[Event], float]) -> Tensor:
        """Words of the event with the largest value of a measure."""
        return self._named(max(events, key=measure), 1) if events else self.no_event


def _level(event: Event) -> float:
    """Level of an event."""
    return event.level


def _length(event: Event) -> float:
    """Length of an event in windows."""
    return event.num_windows
