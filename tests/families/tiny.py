"""What a family provides for the shared suite: a tiny random model behind the contract, and the logits of a reference.

Each family has a file `tests/families/<family>.py` with `tiny(seed) -> Tiny`; `FAMILIES` names them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from earwise.models.base import AudioLM
from earwise.types import Waveform


@dataclass(frozen=True)
class Tiny:
    """One family at test size.

    Attributes:
        model: Our model, float32, on the CPU, not yet prepared for training.
        reference: The reference implementation (transformers' own class, or an independent composition of its parts)
            with the same weights, run on one sequence alone: ids with one run of `model.placeholder_id` per clip and
            the clips -> logits `(seq, vocab)`. It must not go through `model.decode` or our attention.
        reload: Saves `model` into the folder and loads it again through the family's `load`.
        max_s: Longest clip that the suite uses, seconds.
    """

    model: AudioLM
    reference: Callable[[Sequence[int], Sequence[Waveform]], Tensor]
    reload: Callable[..., AudioLM]
    max_s: float = 2.0


FAMILIES = {
    "embedded": "families.embedded:tiny",
    "qwen2_audio": "families.qwen2_audio:tiny",
    "qwen25_omni": "families.qwen25_omni:tiny",
    "salmonn": "families.salmonn:tiny",
    "mellow": "families.mellow:tiny",
    "qwen3_omni": "families.qwen3_omni:tiny",
    "audio_flamingo3": "families.audio_flamingo3:tiny",
    "audio_flamingo_next": "families.audio_flamingo_next:tiny",
    "voxtral": "families.voxtral:tiny",
    "granite_speech": "families.granite_speech:tiny",
    "phi4_multimodal": "families.phi4_multimodal:tiny",
    "gemma3n": "families.gemma3n:tiny",
    "gemma4": "families.gemma4:tiny",
}
