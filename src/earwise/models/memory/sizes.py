"""What memory depends on: parameter counts and layer shapes of one model, as plain numbers. No torch.

Declared for the published models in `models/registry.py`, counted for any other model in `measured_sizes.py`, and used
by `estimate.py` and `plan.py`.
"""

from dataclasses import dataclass
from math import ceil

LARGEST_PREPACKED_BYTES = 2 * 2**30
"""Largest float32 decoder that is packed for decoding on a CPU (`cpu_decode/prepacked.py`), in bytes. The packed copy
of a larger one would not fit beside it on a small machine."""

SEPARATE_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder layer in most families."""
FUSED_PROJECTIONS = ("qkv_proj", "gate_up_proj", "o_proj", "down_proj")
"""The same where query, key and value are one layer, and so are gate and up (Phi)."""
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The same for a mixture of experts, whose feed-forward part gets no LoRA."""

LinearShape = tuple[int, int]
"""Input and output features of a linear layer."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Shape of a decoder, as far as memory depends on it.

    Attributes:
        layers: Number of decoder layers.
        width: Size of the hidden state.
        heads: Number of query heads.
        kv_heads: Number of key-value heads.
        head_dim: Size of one head.
        ffn: Width of the feed-forward part that one token passes through; for a mixture of experts that of all its
            active experts together.
        vocabulary: Number of tokens.
        lora_target_modules: Names of the linear layers in a decoder layer that LoRA can be added to.
        experts: True if the feed-forward part is a mixture of experts.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    lora_target_modules: tuple[str, ...] = SEPARATE_PROJECTIONS
    experts: bool = False

    @property
    def parameters_in_layers(self) -> int:
        """Number of weights in the linear layers of all decoder layers."""
        return self.layers * sum(rows * columns for rows, columns in self.linear_layers.values())

    @property
    def linear_layers(self) -> dict[str, LinearShape]:
        """Name -> shape of the linear layers of one decoder layer that LoRA can be added to."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "q_proj": (self.width, query),
            "k_proj": (self.width, key_value),
            "v_proj": (self.width, key_value),
            "qkv_proj": (self.width, query + 2 * key_value),
            "o_proj": (query, self.width),
            "gate_proj": (self.width, self.ffn),
            "up_proj": (self.width, self.ffn),
            "gate_up_proj": (self.width, 2 * self.ffn),
            "down_proj": (self.ffn, self.width),
        }
        return {name: shapes[name] for name in self.lora_target_modules}


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Shape of an audio encoder; for two encoders side by side, that of the larger one.

    Attributes:
        layers: Number of encoder layers.
        width: Size of the hidden state.
        ffn: Width of the feed-forward part.
        states_per_s: Hidden states that the layers compute per second of audio.
    """

    layers: int
    width: int
    ffn: int
    states_per_s: float


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Size and limits of one model.

    Attributes:
        weights: Name of the published checkpoint, or the folder or loader of another model.
        encoder: Number of encoder parameters.
        connector: Number of connector parameters.
        decoder: Number of decoder parameters, embeddings and output head included.
        encoder_shape: Shape of the encoder.
        decoder_shape: Shape of the decoder.
        sample_rate: Sample rate of the input, Hz.
        max_audio_s: Longest clip that the model takes whole, seconds.
        audio_tokens_per_s: Audio tokens per second of audio.
        window_s: Length in seconds to whose multiples clips are padded: a clip costs the tokens and the encoder time of
            whole windows, however short it is. None if a clip costs only its own length.
        dtype: Dtype of the published weights.
        quantization: `nf4` if the linear layers of the decoder are held in 4 bits; None if they have the dtype.
        same_sizes: Further published checkpoints of these sizes.
    """

    weights: str
    encoder: int
    connector: int
    decoder: int
    encoder_shape: EncoderShape
    decoder_shape: DecoderShape
    sample_rate: int
    max_audio_s: float
    audio_tokens_per_s: float
    window_s: float | None = None
    dtype: str = "bfloat16"
    quantization: str | None = None
    same_sizes: tuple[str, ...] = ()

    def is_of(self, repository: str) -> bool:
        """Whether these are the sizes of a published checkpoint.

        Args:
            repository: Name on a hub, without a revision.
        """
        return repository == self.weights or repository in self.same_sizes

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.encoder + self.connector + self.decoder

    def encoded_s(self, clip_s: float) -> float:
        """Seconds of audio that the encoder computes for a clip of `clip_s` seconds."""
        if self.window_s is None:
            return min(clip_s, self.max_audio_s)
        return self.window_s * max(1, ceil(min(clip_s, self.max_audio_s) / self.window_s))
