"""Which connector the embedded model has: its kind, what it reads of the encoder, how much sound a token stands for.

Asked by `embedded.py`, which builds one, and by the planner, which counts one; a checkpoint keeps the choice beside its
weights. `mix` is what ships; the others are the forms that Mellow's ablation compares (papers/mellow.md, section 6),
on our encoder: one linear layer (as Qwen2-Audio), Mellow's residual projector, a window-level Q-Former (as SALMONN).
Every connector has three methods: `kept`, what is kept of what the encoder said; `tokens`, how many tokens that makes;
`forward`, what is kept of some clips -> embeddings of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from earwise.errors import ModelError
from earwise.models.parts.projector import LayerMix, Projector

STATE_MS = 20  # of sound, one state of Whisper's encoder
SUMMARY = 4
KINDS = ("mix", "linear", "residual", "qformer")


class Connector(Protocol):
    """What the embedded model asks of its connector."""

    def kept(self, layers: Float[Tensor, "layers states dim"]) -> Tensor:
        """What is read of a clip, computed once per sound."""
        ...

    def tokens(self, states: int) -> int:
        """Tokens of a clip of so many encoder states."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """One connector.

    Attributes:
        kind: Out of `KINDS`.
        layers: `all` encoder layers, weighted by learned gates and laid side by side, or the `last`.
        token_ms: Sound that a token stands for, whole encoder states.
    """

    kind: str = "mix"
    layers: str = "all"
    token_ms: int = STATE_MS * 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.layers not in ("all", "last"):
            raise ModelError(
                f"connector {self.kind!r} of {self.layers!r} layers: it is {' | '.join(KINDS)}, all | last"
            )
        if self.token_ms < STATE_MS or self.token_ms % STATE_MS:
            raise ModelError(f"connector with token_ms {self.token_ms}: give a multiple of {STATE_MS}")

    def __str__(self) -> str:
        return f"{self.kind}-{self.layers}-{self.token_ms}ms"


def parse_connector_spec(marks: Mapping[str, Any] | None) -> ConnectorSpec:
    """The choice that a recipe or a checkpoint wrote down; of those that say nothing, what ships.

    Raises:
        ModelError: if it makes no sense to this version.
    """
    try:
        return ConnectorSpec(**(marks or {}))
    except TypeError as error:
        raise ModelError(f"connector {marks!r} is not known to this version; train the model again") from error


def build_connector(spec: ConnectorSpec, layers: int, dim: int, out: int) -> Any:
    """An untrained connector, drawn from torch's global generator.

    Args:
        choice: Which.
        layers: States per moment that the encoder offers: one per layer, and the stem's.
        dim: Width of the encoder.
        out: Width of the decoder.
    Returns:
        A module that is a `Connector`.
    """
    read, pool = layers if spec.layers == "all" else 1, spec.token_ms // STATE_MS
    if spec.kind == "mix":
        return LayerMix(read, dim, out, SUMMARY, pool=pool)
    if spec.kind == "qformer":
        from earwise.models.parts.qformer import QFormer  # brings a second of imports that nothing else here needs

        return QFormer(read, dim, out, pool)
    return Projector(read, dim, out, pool, residual=spec.kind == "residual")
