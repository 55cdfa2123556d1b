"""How large the published models are: a small declared table, so that `earwise models` and plans need no weights.

Read by `models/memory.py` (what fits where) and `earwise models`. Every figure is recomputed by
`tests/unit/test_sizes.py` from transformers' classes on the meta device (`models/shapes.py`, which also measures a
checkpoint that is not in the table). Parameter counts leave out what is never computed here (vision, talker, vocoder)
and adapters that are merged when a checkpoint is read. No torch.
"""

from dataclasses import dataclass, replace
from math import ceil

LARGEST_PACKED_BYTES = 2 * 2**30
"""A float32 decoder of up to so much is packed for decoding on a CPU (`parts/packed.py`): the copy of a larger one
would not fit beside it on a small machine."""

Group = tuple[int, int]  # features in, features out, of one linear layer


@dataclass(frozen=True, slots=True)
class Decoder:
    """Shape of a decoder, as far as memory depends on it."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Width of the feed-forward part that a token goes through; of all its experts together."""
    vocab: int
    fused: bool = False
    """Queries, keys and values are one linear layer, gate and up another (Phi)."""
    experts: bool = False
    """The feed-forward part is a mixture of experts, which LoRA leaves alone."""

    @property
    def linears(self) -> dict[str, Group]:
        """The linear layers of one decoder layer that LoRA can go into, by name."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            inner = {"qkv_proj": (self.width, q + 2 * kv), "gate_up_proj": (self.width, 2 * self.ffn)}
        else:
            inner = {name: (self.width, size) for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv))}
            inner |= {} if self.experts else {"gate_proj": (self.width, self.ffn), "up_proj": (self.width, self.ffn)}
        return inner | {"o_proj": (q, self.width)} | ({} if self.experts else {"down_proj": (self.ffn, self.width)})


@dataclass(frozen=True, slots=True)
class Encoder:
    """Shape of an encoder; of two side by side, the larger one's."""

    layers: int
    width: int
    ffn: int
    states_per_s: float
    """States that its layers compute for a second of sound."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """One model."""

    family: str
    """Key of `models.base.MODELS`."""
    weights: str
    """The published checkpoint."""
    encoder: int
    """Parameters."""
    connector: int
    decoder: int
    """With embeddings and head."""
    hears: Encoder
    says: Decoder
    sample_rate: int
    max_s: float
    """Longest clip heard whole, seconds."""
    tokens_per_s: float
    """Audio tokens a second of sound."""
    window_s: float | None = None
    """A clip takes the tokens (and the encoder the time) of whole windows of so many seconds, however short it is;
    None: of its own length."""
    dtype: str = "bfloat16"
    """As published."""

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.encoder + self.connector + self.decoder

    def heard_s(self, clip_s: float) -> float:
        """Seconds that the encoder computes for a clip of so many."""
        if self.window_s is None:
            return min(clip_s, self.max_s)
        return self.window_s * max(1, ceil(min(clip_s, self.max_s) / self.window_s))


_WHISPER_LARGE = Encoder(32, 1280, 5120, 50.0)
_HTSAT = Encoder(12, 768, 3072, 409.6)
_QWEN3_EARS = Encoder(32, 1280, 5120, 13.0)
_GRANITE_EARS = Encoder(16, 1024, 4096, 50.0)
_PHI_EARS = Encoder(24, 1024, 1536, 12.5)
_USM = Encoder(12, 1536, 6144, 25.0)
_SMOLLM = Decoder(30, 576, 9, 3, 64, 1536, 49152)
_QWEN_7B = Decoder(28, 3584, 28, 4, 128, 18944, 152064)

PUBLISHED = (
    Sizes(
        "embedded", "in this package", 20_590_592, 4_055_495, 134_515_008, Encoder(6, 512, 2048, 50.0), _SMOLLM,
        16000, 30.0, 3.125, dtype="float32",
    ),
    Sizes(
        "qwen2_audio", "Qwen/Qwen2-Audio-7B-Instruct", 636_968_960, 5_246_976, 7_754_878_976, _WHISPER_LARGE,
        Decoder(32, 4096, 32, 32, 128, 11008, 156032), 16000, 30.0, 25.0,
    ),
    Sizes(
        "qwen25_omni", "Qwen/Qwen2.5-Omni-3B", 635_048_960, 2_623_488, 3_397_103_616, _WHISPER_LARGE,
        Decoder(36, 2048, 16, 2, 128, 11008, 151936), 16000, 300.0, 25.0,
    ),
    Sizes(
        "qwen25_omni", "Qwen/Qwen2.5-Omni-7B", 635_048_960, 4_591_104, 7_615_616_512, _WHISPER_LARGE,
        _QWEN_7B, 16000, 300.0, 25.0,
    ),
    Sizes(
        "salmonn", "tsinghua-ee/SALMONN-7B", 727_096_304, 25_991_936, 6_738_415_616, _WHISPER_LARGE,
        Decoder(32, 4096, 32, 32, 128, 11008, 32000), 16000, 30.0, 2.93, window_s=30.0, dtype="float16",
    ),
    Sizes(
        "salmonn", "tsinghua-ee/SALMONN", 727_096_304, 26_779_392, 13_015_864_320, _WHISPER_LARGE,
        Decoder(40, 5120, 40, 40, 128, 13824, 32000), 16000, 30.0, 2.93, window_s=30.0, dtype="float16",
    ),
    Sizes(
        "mellow", "soham97/mellow v0", 29_963_431, 1_180_800, 134_515_008, _HTSAT, _SMOLLM, 32000, 10.0, 3.2,
        window_s=10.0, dtype="float32",
    ),
    Sizes(
        "qwen3_omni", "Qwen/Qwen3-Omni-30B-A3B-Instruct", 643_664_000, 4_263_168, 30_532_646_912, _QWEN3_EARS,
        Decoder(48, 2048, 32, 4, 128, 6144, 152064, experts=True), 16000, 300.0, 13.0,
    ),
    Sizes(
        "audio_flamingo3", "nvidia/audio-flamingo-3-hf", 636_968_960, 17_439_744, 7_612_806_656, _WHISPER_LARGE,
        replace(_QWEN_7B, vocab=151672), 16000, 600.0, 25.0,
    ),
    Sizes(
        "voxtral", "mistralai/Voxtral-Mini-3B-2507", 636_968_960, 25_165_824, 4_014_136_320, _WHISPER_LARGE,
        Decoder(30, 3072, 32, 8, 128, 8192, 131072), 16000, 2400.0, 12.5, window_s=30.0,
    ),
    Sizes(
        "voxtral", "mistralai/Voxtral-Small-24B-2507", 636_968_960, 52_428_800, 23_572_403_200, _WHISPER_LARGE,
        Decoder(40, 5120, 32, 8, 128, 32768, 131072), 16000, 2400.0, 12.5, window_s=30.0,
    ),
    Sizes(
        "granite_speech", "ibm-granite/granite-speech-3.3-2b", 439_980_288, 35_697_664, 2_533_541_888, _GRANITE_EARS,
        Decoder(40, 2048, 32, 8, 64, 8192, 49160), 16000, 13107.2, 10.0,
    ),
    Sizes(
        "granite_speech", "ibm-granite/granite-speech-3.3-8b", 439_980_288, 37_796_864, 8_170_868_736, _GRANITE_EARS,
        Decoder(40, 4096, 32, 8, 128, 12800, 49160), 16000, 13107.2, 10.0,
    ),
    Sizes(
        "phi4_multimodal", "microsoft/Phi-4-multimodal-instruct", 441_254_144, 12_589_056, 3_836_021_760, _PHI_EARS,
        Decoder(32, 3072, 24, 8, 128, 8192, 200064, fused=True), 16000, 327.68, 12.5,
    ),
    Sizes(
        "gemma3n", "google/gemma-3n-E2B-it", 681_348_640, 3_345_408, 4_435_182_688, _USM,
        Decoder(30, 2048, 8, 2, 256, 8192, 262400), 16000, 30.0, 6.25, window_s=30.0,
    ),
    Sizes(
        "gemma3n", "google/gemma-3n-E4B-it", 681_348_640, 3_345_408, 6_835_235_568, _USM,
        Decoder(35, 2048, 8, 2, 256, 16384, 262400), 16000, 30.0, 6.25, window_s=30.0,
    ),
)  # fmt: skip
FAMILIES = {
    "embedded": "Whisper base and SmolLM2-135M, trained here; runs on a laptop",
    "embedded-aligned": "the same before it saw a question with options",
    "embedded-blank": "the same before any training",
    "qwen2_audio": "Qwen2-Audio; R1-AQA and SARI start here",
    "qwen25_omni": "Qwen2.5-Omni's thinker: sound in, text out",
    "salmonn": "Whisper, BEATs and Vicuna with LoRA",
    "mellow": "HTSAT and SmolLM2-135M; two sounds at once",
    "qwen3_omni": "Qwen3-Omni's thinker, a mixture of experts",
    "audio_flamingo3": "Audio Flamingo 3",
    "voxtral": "Voxtral",
    "granite_speech": "Granite Speech",
    "phi4_multimodal": "Phi-4-multimodal with its speech adapter",
    "gemma3n": "Gemma 3n without its image tower",
}
"""Keys of `models.base.MODELS` in its order, in a few words each."""
ALIASES = {"embedded-aligned": "embedded", "embedded-blank": "embedded"}
"""Families of another's shape."""
DEFAULTS = {"qwen25_omni": "Qwen/Qwen2.5-Omni-7B"}
"""What a family takes where no weights are given, if that is not the smallest."""


def of_family(name: str) -> tuple[Sizes, ...]:
    """The published models of a family, smallest first; empty for an unknown one."""
    return tuple(sizes for sizes in PUBLISHED if sizes.family == ALIASES.get(name, name))


def default(name: str) -> Sizes | None:
    """The published model that a family takes where no weights are given; None for an unknown one."""
    found = of_family(name)
    return next((sizes for sizes in found if sizes.weights == DEFAULTS.get(name, found[0].weights)), None)
