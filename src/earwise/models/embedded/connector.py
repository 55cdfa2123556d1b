"""The connectors that the embedded model can have, and the description of one that recipes and checkpoints store.

`mix` is what ships (`models.parts.projector.LayerMix`). The others are those that Mellow's ablation compares
(arXiv:2503.08540), on our encoder: a linear layer (as in Qwen2-Audio), Mellow's residual projection, and a window-level
Q-Former (as in SALMONN). `models.embedded.model` builds a connector, and the memory planner counts its parameters.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from earwise.errors import ModelError
from earwise.models.embedded.labels.event_listener import ListenerSpec
from earwise.models.embedded.labels.label_words import Facet, LabelWords
from earwise.models.embedded.spoken_words import WordSlots
from earwise.models.parts.projector import LayerMix, Projector

STATE_MS = 20
"""Milliseconds of audio per state of Whisper's encoder."""
SUMMARY = 4
"""Summary tokens of the `mix` connector."""
KINDS = ("mix", "linear", "residual", "qformer", "labels")


class Connector(Protocol):
    """A connector module. Its forward maps the reduced states of some clips to audio embeddings of each."""

    def reduce_states(self, layers: Float[Tensor, "layers states dim"]) -> Tensor:
        """The part of a clip's encoder states that forward needs. It is cached, once per clip."""
        ...

    def token_count(self, states: int) -> int:
        """Number of audio tokens of a clip with this many encoder states."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """The choice of a connector.

    Attributes:
        kind: One of `KINDS`.
        layers: `all` reads all encoder layers, weighted by learned gates and concatenated; `last` only the last one.
        token_ms: Milliseconds of audio per token, a multiple of `STATE_MS`.
        facets: What the classifier answers; for `labels` alone, as `connector_init: labels` finds it in the data.
        listener: What finds the events of a clip; for `labels` alone.
        words: Slots for the words that are spoken; None shows none (`models.embedded.spoken_words`).
    """

    kind: str = "mix"
    layers: str = "all"
    token_ms: int = STATE_MS * 16
    facets: tuple[Facet, ...] = ()
    listener: ListenerSpec | None = None
    words: WordSlots | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.layers not in ("all", "last"):
            raise ModelError(
                f"connector {self.kind!r} of {self.layers!r} layers: kind is {' | '.join(KINDS)}, layers is all | last"
            )
        if self.token_ms < STATE_MS or self.token_ms % STATE_MS:
            raise ModelError(f"connector with token_ms {self.token_ms}: give a multiple of {STATE_MS}")

    def __str__(self) -> str:
        return f"{self.kind}-{self.layers}-{self.token_ms}ms{'-words' if self.words else ''}"

    def stored_fields(self) -> dict[str, Any]:
        """The fields as checkpoints store them, which `parse_connector_spec` reads."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def parse_connector_spec(fields: Mapping[str, Any] | None) -> ConnectorSpec:
    """The connector that a recipe or checkpoint describes; without a description, the one that ships.

    Args:
        fields: Fields of a `ConnectorSpec`, or None.
    Raises:
        ModelError: if a field is unknown or has a bad value.
    """
    try:
        values = dict(fields or {})
        if "facets" in values:
            values["facets"] = tuple(Facet(**facet) for facet in values["facets"])
        if values.get("listener"):
            values["listener"] = ListenerSpec(**values["listener"])
        if values.get("words") is not None:
            values["words"] = WordSlots(**values["words"])
        return ConnectorSpec(**values)
    except TypeError as error:
        raise ModelError(f"connector {fields!r} is not known to this version; train the model again") from error


def build_connector(spec: ConnectorSpec, layers: int, dim: int, out: int) -> Any:
    """An untrained connector, with random weights from torch's global generator.

    Args:
        spec: Which connector to build.
        layers: Number of encoder layers (the convolutions' output counts as a layer).
        dim: Width of the encoder.
        out: Width of the decoder.
    Returns:
        A module that implements `Connector`.
    """
    num_layers, pool = layers if spec.layers == "all" else 1, spec.token_ms // STATE_MS
    if spec.kind == "mix":
        return LayerMix(num_layers, dim, out, SUMMARY, pool=pool)
    if spec.kind == "labels":
        mix = LayerMix(num_layers, dim, out, SUMMARY, pool=pool)
        return LabelWords(mix, num_layers * dim, out, facets=spec.facets, listener=spec.listener or ListenerSpec(1))
    if spec.kind == "qformer":
        from earwise.models.parts.qformer import QFormer  # imports take a second, and nothing else here needs it

        return QFormer(num_layers, dim, out, pool)
    return Projector(num_layers, dim, out, pool, residual=spec.kind == "residual")
