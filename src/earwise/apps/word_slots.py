"""Gives the embedded model slots for the words that are spoken: `earwise build words`.

Its weights stay as they are, so the result is a start for training, or a model that has not learnt to look there yet.
The speech gate is taken from the connector `labels`, whose classifier tells speech from music and other sounds; with
another connector there is none, and every clip is transcribed.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from earwise.apps.label_features import FACETS
from earwise.errors import ConfigError
from earwise.models.base import AudioLM
from earwise.models.embedded.labels.label_words import LabelWords
from earwise.models.embedded.model import Embedded
from earwise.models.embedded.spoken_words import WordSlots

KIND = [facet.field for facet in FACETS].index("kind")
"""Number of the facet that tells speech from other sounds; of its labels, in alphabetical order, speech is the last."""


def add_word_slots(model: AudioLM, out: Path, slots: WordSlots) -> WordSlots:
    """Add slots to a model, in place, and write it.

    Args:
        model: The embedded model, without slots.
        out: Folder to write the model to; must not exist.
        slots: How many slots; the number of outputs of the gate is filled in.
    Returns:
        The slots with the gate's outputs.
    Raises:
        ConfigError: if the model is another one or has slots, or `out` exists.
    """
    if not isinstance(model, Embedded) or model.connector_spec.words is not None:
        raise ConfigError(f"{model.name} is not the embedded model without word slots; start from such a one")
    if out.exists():
        raise ConfigError(f"{out}: exists already; choose another folder")
    connector = model.module.connector
    gate = speech_gate(connector) if isinstance(connector, LabelWords) else None
    model.module.speech_gate = gate
    slots = replace(slots, gate=gate.out_features if gate is not None else 0)
    model.set_connector_spec(replace(model.connector_spec, words=slots))
    model.save(out)
    return slots


@torch.no_grad()
def speech_gate(connector: LabelWords) -> nn.Linear:
    """The classifier of the facet `kind`, speech first, for the features of `spoken_words.speech_features`."""
    sizes = [len(words) for words in connector.words]
    gates = connector.mix.gates
    weight = connector.classify.weight.split(sizes)[KIND].roll(1, 0)
    # The connector weights every layer before it classifies; the gate reads layers of equal weight.
    dim = weight.shape[1] // (2 * len(gates))
    layer_weights = (torch.softmax(gates, 0) * len(gates)).repeat_interleave(dim).repeat(2)
    gate = nn.Linear(weight.shape[1], len(weight))
    gate.weight.copy_(weight * layer_weights)
    gate.bias.copy_(connector.classify.bias.split(sizes)[KIND].roll(1))
    return gate.requires_grad_(False)
