"""Phi-4-multimodal: a conformer over 80 mel bands (one state per 80 ms), a two-layer projector, and Phi-4-mini (fused
query-key-value, rotary positions on three quarters of a head, LongRoPE) with a LoRA adapter for speech.

1. The adapter (`speech-lora` of the checkpoint) is merged into the decoder when a checkpoint is read, and stays on for
   conversations without sound.
2. Clips are encoded one at a time: in a batch the class adds its padding mask to the attention scores as 0 and 1
   instead of masking with it, so a clip would hear its neighbour's padding.
3. LongRoPE turns every position of a sequence by other angles once the sequence is longer than the 4096 tokens it was
   first trained on. In a forest that would let one tree's length change another's numbers: longer sequences are
   refused.
4. The image tower and the projector for sound beside images are not computed; `save` writes them back.

Source: arXiv:2503.01743; transformers 5 `models/phi4_multimodal`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu
from transformers import Phi4MultimodalFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models import lora_checkpoint
from earwise.models.families.native import Row, forest_attention
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

TEMPLATE = ChatTemplate("phi4-multimodal", "<|{role}|>", "<|end|>", "", "", turn_separator="")
SPEECH_LORA = "speech-lora"
AUDIO = "model.embed_tokens_extend.audio_embed."


def _extractor(folder: Path | None, config: Any) -> Phi4MultimodalFeatureExtractor:
    if folder is not None and (folder / "preprocessor_config.json").exists():
        return Phi4MultimodalFeatureExtractor.from_pretrained(str(folder))
    return Phi4MultimodalFeatureExtractor(feature_size=config.audio_config.input_size)


def _longest(config: Any) -> int | None:
    limits = [config.sliding_window]
    if config.rope_parameters["rope_type"] == "longrope":
        limits.append(config.rope_parameters["original_max_position_embeddings"])
    return min((limit for limit in limits if limit is not None), default=None)


def _spec(config: Any, extractor: Phi4MultimodalFeatureExtractor) -> AudioSpec:
    per_s = extractor.sampling_rate / (extractor.hop_length * config.audio_config.time_reduction)
    longest = _longest(config) or config.max_position_embeddings
    return AudioSpec(extractor.sampling_rate, longest / per_s, per_s)


def _tokens(config: Any, extractor: Phi4MultimodalFeatureExtractor, samples: int) -> int:
    frames = (samples - extractor.win_length) // extractor.hop_length + 1
    return max(0, -(-frames // config.audio_config.time_reduction))


def _listen(module: Any, extractor: Phi4MultimodalFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    encoder = module.model.embed_tokens_extend.audio_embed.encoder.eval()
    weight = encoder.embed.out.weight
    heard = []
    for wave in waveforms:
        mel = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt").audio_input_features
        heard.append(encoder(mel.to(weight), None)[0])
    return heard


def _connect(module: Any, heard: Sequence[Tensor]) -> list[Tensor]:
    up = module.model.embed_tokens_extend.audio_embed.up_proj_for_speech
    down = module.model.embed_tokens_extend.audio_embed.down_proj_for_speech
    return [down(gelu(up(clip.to(up.weight)))) for clip in heard]


def _attend(module: Any, language: str) -> None:
    """The text model's config is the whole model's, and what it is told it tells the encoder's too."""
    own = module.config.audio_config._attn_implementation
    forest_attention(module, language)
    module.config.audio_config._attn_implementation = own


def _finish(module: Any, folder: Path) -> None:
    """Merge the speech adapter; a folder that `save` wrote has it in its weights already."""
    if not (folder / "earwise.json").exists():
        lora_checkpoint.merge(module, lora_checkpoint.read(folder / SPEECH_LORA), (), folder / SPEECH_LORA)


ROW = Row(
    family="phi4_multimodal",
    what="a Phi-4-multimodal model of transformers' own format",
    hub="microsoft/Phi-4-multimodal-instruct@refs/pr/70",
    model_class="Phi4MultimodalForCausalLM",
    types={"phi4_multimodal": ""},
    mark="<|audio|>",
    end_marks=("<|end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=(f"{AUDIO}encoder.",),
    connector=(f"{AUDIO}up_proj_for_speech.", f"{AUDIO}down_proj_for_speech."),
    decoder=("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head."),
    language="model",
    placeholder_id=lambda config: config.audio_config.audio_token_id,
    extractor=_extractor,
    spec=_spec,
    tokens=_tokens,
    encode_audio=_listen,
    project_audio=_connect,
    trims=True,
    masks=False,
    left_out=(
        "model.embed_tokens_extend.image_embed.",
        f"{AUDIO}up_proj_for_vision_speech.",
        f"{AUDIO}down_proj_for_vision_speech.",
    ),
    attend=_attend,
    longest=_longest,
    finish=_finish,
)
