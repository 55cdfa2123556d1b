"""Memory of a frozen teacher beside the policy, for the plan of a distillation stage. No torch, unless the teacher's
sizes have to be measured."""

from dataclasses import replace
from typing import TYPE_CHECKING

from earwise.config.kinds.gkd import TeacherConfig
from earwise.models.memory.estimate import BYTES, weight_bytes
from earwise.models.memory.lookup import starting_sizes

if TYPE_CHECKING:
    from earwise.models.base import AudioLM


def teacher_bytes(config: TeacherConfig, pack_tokens: int) -> float:
    """Bytes of a teacher's weights, and of the largest moment of its pass over a tree.

    Args:
        config: Which model, and how it is loaded.
        pack_tokens: Tokens of one forward pass.
    Raises:
        ModelError: if the model is unknown.
    """
    sizes = replace(starting_sizes(config.name, config.weights, None, _load), quantization=config.quantization)
    number_bytes = BYTES[config.dtype or sizes.dtype]
    shape = sizes.decoder_shape
    in_flight = pack_tokens * number_bytes * (2 * shape.ffn + 4 * shape.width)
    return weight_bytes(sizes, number_bytes) + float(in_flight)


def _load(name: str) -> "AudioLM":
    """A user's own model, which can only be measured when it is loaded."""
    from earwise.models.base import load

    return load(name)
