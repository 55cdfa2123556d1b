"""The connector `labels`: `LayerMix`, and in words of the decoder what a linear classifier hears in the clip.

A frozen speech encoder holds more about sounds, instruments and moods than a linear map onto word embeddings gets out
of it: a linear classifier of the same states names more of them rightly than the nearest word embedding does
(`docs/results/findings.md`). So this connector also classifies. For each *facet* of a clip (its sound, its instrument,
the language, the mood ...) it scores the facet's labels from the mean and the standard deviation of all encoder layers
over time, and shows the decoder the embeddings of the likeliest ones, the likeliest first, behind a lead of words ("
Sound:"). What stands there is text that the decoder can read. To each window's token it adds the embedding of what a
second classifier hears in that window alone, so that the order of events can be read. `LayerMix` carries what no label
names.

Ours. `models.embedded.label_init` fits the classifiers before the decoder is trained. The choice of the likeliest
labels passes no gradient to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from earwise.models.parts.projector import LayerMix


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
    """Pooled states of all encoder layers -> words of the facets, then the tokens of `LayerMix`.

    Args:
        mix: Connector of the rest.
        features: Number of features of one row of the mixed layers (layers times width of the encoder).
        out: Width of the decoder.
        facets: What the classifier answers.
        window_labels: Number of labels of a window.
        lead: Number of tokens of each lead.
    """

    def __init__(
        self, mix: LayerMix, features: int, out: int, *, facets: Sequence[Facet], window_labels: int, lead: int = 2
    ) -> None:
        super().__init__()
        self.mix = mix
        self._facets = tuple(facets)
        self.classify = nn.Linear(2 * features, sum(facet.labels for facet in facets))
        self.words = nn.ParameterList(torch.randn(facet.labels, facet.tokens, out) * 0.1 for facet in facets)
        self.facet_leads = nn.Parameter(torch.randn(len(facets), lead, out) * 0.1)
        self.classify_window = nn.Linear(features, window_labels)
        self.window_words = nn.Parameter(torch.zeros(window_labels, out))

    @property
    def num_fixed_tokens(self) -> int:
        """Number of tokens before the window tokens, for clips of any length."""
        return self._num_facet_tokens + self.mix.num_fixed_tokens

    @property
    def _num_facet_tokens(self) -> int:
        lead = self.facet_leads.shape[1]
        return sum(lead + facet.num_tokens for facet in self._facets)

    def reduce_states(self, layers: Float[Tensor, "layers states dim"]) -> Float[Tensor, "read rows dim"]:
        """The part of a clip's encoder states that `forward` needs; see `LayerMix.reduce_states`."""
        return self.mix.reduce_states(layers)

    def token_count(self, states: int) -> int:
        """Number of tokens of a clip with this many encoder states."""
        return self._num_facet_tokens + self.mix.token_count(states)

    def forward(self, clips: Sequence[Float[Tensor, "layers _ dim"]]) -> list[Float[Tensor, "_ out"]]:
        """Audio embeddings of some clips.

        Args:
            clips: `reduce_states` of each clip.
        Returns:
            For each clip the words of the facets, each behind its lead, and the tokens of `LayerMix`, with the words of
            the windows added to those of the windows.
        """
        return [
            self._with_words(mixed, self.mix.mix_layers(clip))
            for mixed, clip in zip(self.mix(clips), clips, strict=True)
        ]

    def _with_words(self, mixed: Tensor, rows: Float[Tensor, "rows features"]) -> Tensor:
        """The tokens of one clip, from those of `LayerMix` and the mixed layers."""
        scores = self.classify(rows[:2].flatten()).split([facet.labels for facet in self._facets])
        parts = []
        for facet, lead, words, label_scores in zip(self._facets, self.facet_leads, self.words, scores, strict=True):
            parts += [lead, words[label_scores.topk(facet.shown).indices].flatten(0, 1)]
        probabilities = torch.softmax(self.classify_window(rows[2:]), 1)
        fixed, windows = mixed.split([len(mixed) - len(rows) + 2, len(rows) - 2])
        return torch.cat([*parts, fixed, windows + probabilities @ self.window_words])
