"""Phi-4-multimodal: a conformer over 80 mel bands (one state per 80 ms), a two-layer projector, and Phi-4-mini (fused
query-key-value, rotary positions on three quarters of a head, LongRoPE) with a LoRA adapter for speech.

1. The adapter (`speech-lora` of the checkpoint) is part of the decoder (merged into float32 weights, computed beside
   bfloat16 ones) and stays on for conversations without audio.
2. Clips are encoded one at a time: in a batch the class adds its padding mask to the attention scores as 0 and 1
   instead of masking with it, so the padding of a clip would change its states.
3. LongRoPE rotates every position of a sequence by other angles once the sequence is longer than the 4096 tokens it was
   first trained on. In a forest that would let the length of one tree change the numbers of another: longer sequences
   are refused.
4. The image tower and the projector for audio beside images are not computed; `save` writes them back.

Source: Phi-4-Mini (arXiv:2503.01743); transformers 5 `models/phi4_multimodal`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu
from transformers import Phi4MultimodalFeatureExtractor

from earwise.audio import AudioSpec
from earwise.models import lora_checkpoint, registry
from earwise.models.detect import MARKER
from earwise.models.families import transformers_audio
from earwise.models.families.transformers_audio import Architecture, use_forest_attention
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

TEMPLATE = ChatTemplate("phi4-multimodal", "<|{role}|>", "<|end|>", "", "", turn_separator="")
SPEECH_LORA = "speech-lora"
"""Folder of the speech adapter inside a published checkpoint."""
AUDIO_PREFIX = "model.embed_tokens_extend.audio_embed."


def feature_extractor(folder: Path | None, config: Any) -> Phi4MultimodalFeatureExtractor:
    """The checkpoint's feature extractor; one with the encoder's number of mel bands if the folder has none."""
    if folder is not None and (folder / "preprocessor_config.json").exists():
        return Phi4MultimodalFeatureExtractor.from_pretrained(str(folder))
    return Phi4MultimodalFeatureExtractor(feature_size=config.audio_config.input_size)


def max_sequence(config: Any) -> int | None:
    """LongRoPE's original length in tokens; None for a model without LongRoPE."""
    parameters: dict[str, Any] = config.rope_parameters
    is_longrope = parameters["rope_type"] == "longrope"
    return parameters["original_max_position_embeddings"] if is_longrope else None


def audio_spec(config: Any, extractor: Phi4MultimodalFeatureExtractor) -> AudioSpec:
    """12.5 tokens a second as released; clips whose tokens fit into the longest sequence."""
    tokens_per_s = extractor.sampling_rate / (extractor.hop_length * config.audio_config.time_reduction)
    longest = max_sequence(config) or config.max_position_embeddings
    return AudioSpec(extractor.sampling_rate, longest / tokens_per_s, tokens_per_s)


def audio_tokens(config: Any, extractor: Phi4MultimodalFeatureExtractor, samples: int) -> int:
    """Audio tokens (80 ms each) of a clip; 0 if it is shorter than one window."""
    frames = (samples - extractor.win_length) // extractor.hop_length + 1
    return max(0, -(-frames // config.audio_config.time_reduction))


def encode_audio(module: Any, extractor: Phi4MultimodalFeatureExtractor, waveforms: Sequence[Waveform]) -> list[Tensor]:
    """Encoder states of each clip, `(audio_seq, encoder dim)`."""
    encoder = module.model.embed_tokens_extend.audio_embed.encoder.eval()
    weight = encoder.embed.out.weight
    encoder_states = []
    for waveform in waveforms:
        out = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        encoder_states.append(encoder(out.audio_input_features.to(weight), None)[0])
    return encoder_states


def project_audio(module: Any, encoder_states: Sequence[Tensor]) -> list[Tensor]:
    """The projector for audio without images, `(audio_seq, dim)` per clip."""
    up = module.model.embed_tokens_extend.audio_embed.up_proj_for_speech
    down = module.model.embed_tokens_extend.audio_embed.down_proj_for_speech
    return [down(gelu(up(clip.to(up.weight)))) for clip in encoder_states]


def set_attention(module: Any, language_model: str) -> None:
    """The forest's attention for the text model. Its config is the whole model's, which passes the setting on to the
    encoder, so the encoder's is restored."""
    encoder_setting = module.config.audio_config._attn_implementation
    use_forest_attention(module, language_model)
    module.config.audio_config._attn_implementation = encoder_setting


def after_loading(module: Any, folder: Path) -> None:
    """Add the speech adapter to the decoder; in a folder that `save` wrote it is part of the weights already."""
    if not (folder / MARKER).exists():
        adapter_folder = folder / SPEECH_LORA
        lora_checkpoint.add_own(module, lora_checkpoint.read(adapter_folder), (), adapter_folder)


ARCHITECTURE = Architecture(
    family=registry.get("phi4_multimodal"),
    label="a Phi-4-multimodal model of transformers' own format",
    model_class="Phi4MultimodalForCausalLM",
    placeholder="<|audio|>",
    end_tokens=("<|end|>", "<|endoftext|>"),
    template=TEMPLATE,
    encoder=(f"{AUDIO_PREFIX}encoder.",),
    connector=(f"{AUDIO_PREFIX}up_proj_for_speech.", f"{AUDIO_PREFIX}down_proj_for_speech."),
    decoder=("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head."),
    language_model="model",
    placeholder_id=lambda config: config.audio_config.audio_token_id,
    feature_extractor=feature_extractor,
    audio_spec=audio_spec,
    audio_tokens=audio_tokens,
    encode_audio=encode_audio,
    project_audio=project_audio,
    trims_padding=True,
    masks_padding=False,
    removed_modules=(
        "model.embed_tokens_extend.image_embed.",
        f"{AUDIO_PREFIX}up_proj_for_vision_speech.",
        f"{AUDIO_PREFIX}down_proj_for_vision_speech.",
    ),
    set_attention=set_attention,
    max_sequence=max_sequence,
    after_loading=after_loading,
)

load = partial(transformers_audio.load, ARCHITECTURE)
build_empty = partial(transformers_audio.build_empty, ARCHITECTURE)
