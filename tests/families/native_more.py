"""Voxtral, Granite Speech, Phi-4-multimodal and Gemma 3n at test size; each reference is transformers' own class.

Where the class lets one clip of a batch hear another's padding, it is handed clips of different length one at a time.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path as Folder
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModel,
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.gemma3n import modeling_gemma3n

from earwise.models.base import AudioLM
from earwise.models.families import gemma3n as gemma3n_row
from earwise.models.families import granite_speech as granite_row
from earwise.models.families import native
from earwise.models.families import phi4_multimodal as phi4_row
from earwise.models.families import voxtral as voxtral_row
from earwise.models.families.native import Native, Row
from earwise.types import Waveform
from families.tiny import Tiny

RATE = 16000
MELS = 16
VOCAB = 272
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
Inputs = Callable[[Sequence[Waveform]], dict[str, Any]]


def tokenizer(marks: Sequence[str], placed: Mapping[str, int]) -> Tokenizer:
    """One token per byte behind the marks; some marks at ids of their own."""
    vocab = {mark: number for number, mark in enumerate(marks)}
    vocab |= {symbol: len(vocab) + number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocab | dict(placed), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([*marks, *placed])
    return made


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Random weights and statistics of a size at which every token matters, by the kind of layer they are in."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        for name, value in layer.named_parameters(recurse=False):
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() > 1:
                value.copy_(noise if isinstance(layer, nn.Embedding) else noise * value[0].numel() ** -0.5)
            else:
                value.copy_((1.0 if name == "weight" else 0.0) + 0.1 * noise)
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(1 + 0.1 * torch.rand(layer.running_var.shape, generator=generator))


def behind(row: Row, module: Any, marks: Tokenizer, extractor: Any) -> Native:
    """The same weights behind the contract, with the encoder's attention that `load` gives it; `module` stays as it
    is."""
    copied = copy.deepcopy(module)
    copied.config._attn_implementation = "sdpa"
    return native.from_parts(row, copied, marks, extractor, name="tiny")


def tiny(
    row: Row, module: Any, marks: Tokenizer, extractor: Any, inputs: Inputs, *, max_s: float,
    alone: Callable[[Any, Sequence[Waveform]], AbstractContextManager[Any]] = lambda *_: nullcontext(),
    scale: float = 1.0, ours: Any = None,
) -> Tiny:  # fmt: skip
    """Both sides of a family; `inputs` makes what the class takes of the clips, `alone` sees to it that it hears them
    one at a time, `scale` divides its logits, `ours` is the row's class where that is not `module`'s."""

    @torch.no_grad()
    def reference(ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
        with alone(module, waveforms) if len({len(wave) for wave in waveforms}) > 1 else nullcontext():
            logits: Tensor = module(input_ids=torch.tensor([list(ids)]), **(inputs(waveforms) if waveforms else {})).logits[0]
        return logits / scale

    def reload(changed: AudioLM, folder: Folder) -> AudioLM:
        changed.save(folder)
        return native.load(row.family, folder)

    return Tiny(behind(row, ours or module, marks, extractor), reference, reload, max_s=max_s)


# Voxtral: windows of 0.96 s, four states to a token.
VOXTRAL_AUDIO = {
    "num_mel_bins": MELS,
    "hidden_size": 24,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_source_positions": 48,
}
VOXTRAL_MARKS = ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[BEGIN_AUDIO]", "[AUDIO]")


def plain_voxtral(seed: int = 0) -> VoxtralForConditionalGeneration:
    """transformers' class with an attention of its own."""
    text = TEXT | {"model_type": "llama", "head_dim": 8, "rope_theta": 1e4}
    config = VoxtralConfig(audio_config=VOXTRAL_AUDIO, text_config=text, audio_token_id=VOXTRAL_MARKS.index("[AUDIO]"))
    config._attn_implementation = "eager"
    module = VoxtralForConditionalGeneration(config).eval()
    fill(module, seed)
    return module


def voxtral(seed: int = 0) -> Tiny:
    """Two layers on each side; clips of the suite take one window and two."""
    extractor = WhisperFeatureExtractor(feature_size=MELS)

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        clips = []
        for wave in waveforms:
            mel = extractor(
                wave, sampling_rate=RATE, padding=True, truncation=False, pad_to_multiple_of=96 * 160,
                return_tensors="pt",
            ).input_features  # fmt: skip
            clips.append(mel.reshape(MELS, -1, 96).transpose(0, 1))
        return {"input_features": torch.cat(clips)}

    return tiny(voxtral_row.ROW, plain_voxtral(seed), tokenizer(VOXTRAL_MARKS, {}), extractor, inputs, max_s=5.0)


# Granite Speech: attention blocks of 160 ms; the placeholder lies beyond the table.
GRANITE_AUDIO = {
    "input_dim": 2 * MELS,
    "num_layers": 2,
    "hidden_dim": 24,
    "feedforward_mult": 2,
    "num_heads": 2,
    "dim_head": 12,
    "output_dim": 10,
    "context_size": 8,
    "max_pos_emb": 16,
    "conv_kernel_size": 5,
}
GRANITE_QFORMER = {
    "model_type": "blip_2_qformer",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_hidden_size": 24,
    "cross_attention_frequency": 1,
}
GRANITE_TEXT = TEXT | {
    "model_type": "granite",
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
GRANITE_MARKS = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")


def plain_granite(seed: int = 0) -> GraniteSpeechForConditionalGeneration:
    """transformers' class with an attention of its own."""
    config = GraniteSpeechConfig(
        encoder_config=GRANITE_AUDIO, projector_config=GRANITE_QFORMER, text_config=GRANITE_TEXT,
        audio_token_index=VOCAB, has_lora_adapter=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = GraniteSpeechForConditionalGeneration(config).eval()
    fill(module, seed)
    return module


def granite_tokenizer() -> Tokenizer:
    """With the placeholder behind everything."""
    return tokenizer(GRANITE_MARKS, {"<|audio|>": VOCAB})


def granite_speech(seed: int = 0) -> Tiny:
    """Two layers in each part."""
    extractor = granite_row.LogMel(n_mels=MELS)

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        return {"input_features": nn.utils.rnn.pad_sequence([extractor(wave) for wave in waveforms], batch_first=True)}

    def alone(module: Any, waveforms: Sequence[Waveform]) -> AbstractContextManager[Any]:
        hear = module.model.get_audio_features

        def one_by_one(features: Tensor, **_: Any) -> SimpleNamespace:
            clips = [
                hear(clip[None, : len(extractor(wave))], return_dict=True).pooler_output[0]
                for clip, wave in zip(features, waveforms, strict=True)
            ]
            return SimpleNamespace(pooler_output=torch.cat(clips))

        return patch.object(module.model, "get_audio_features", one_by_one)

    return tiny(
        granite_row.ROW, plain_granite(seed), granite_tokenizer(), extractor, inputs, max_s=4.0, alone=alone,
        scale=GRANITE_TEXT["logits_scaling"],
    )  # fmt: skip


# Phi-4-multimodal: rotary positions on three quarters of a head of 8, LongRoPE up to 700 tokens.
PHI4_AUDIO = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_blocks": 2,
    "num_attention_heads": 2,
    "ext_pw_out_channel": 24,
    "depthwise_separable_out_channel": 24,
    "input_size": MELS,
    "nemo_conv_channels": 8,
    "bias_max_distance": 50,
}
PHI4_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "crop_size": 28,
}
PHI4_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "original_max_position_embeddings": 700,
}
PHI4_MARKS = ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|audio|>", "<|image|>")


def plain_phi4(seed: int = 0) -> Phi4MultimodalForCausalLM:
    """transformers' class, image tower included, with an attention of its own."""
    config = Phi4MultimodalConfig(
        audio_config=PHI4_AUDIO | {"audio_token_id": PHI4_MARKS.index("<|audio|>")},
        vision_config=PHI4_VISION | {"image_token_id": PHI4_MARKS.index("<|image|>")},
        rope_parameters=dict(PHI4_ROPE), original_max_position_embeddings=700, **TEXT,
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = Phi4MultimodalForCausalLM(config).eval()
    fill(module, seed)
    return module


def phi4_multimodal(seed: int = 0) -> Tiny:
    """Two layers on each side."""
    extractor = Phi4MultimodalFeatureExtractor(feature_size=MELS)

    def heard(wave: Waveform) -> Any:
        return extractor(wave, sampling_rate=RATE, return_tensors="pt")

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        clips = [heard(wave) for wave in waveforms]
        mels = [clip.audio_input_features[0] for clip in clips]
        return {
            "audio_input_features": nn.utils.rnn.pad_sequence(mels, batch_first=True),
            "audio_embed_sizes": torch.cat([clip.audio_embed_sizes for clip in clips]),
        }

    def alone(module: Any, waveforms: Sequence[Waveform]) -> AbstractContextManager[Any]:
        encoder = module.model.embed_tokens_extend.audio_embed.encoder
        hear = encoder.forward

        def one_by_one(features: Tensor, mask: Tensor | None) -> Tensor:
            lengths = [heard(wave).audio_input_features.shape[1] for wave in waveforms]
            clips = [hear(clip[None, :length], None)[0] for clip, length in zip(features, lengths, strict=True)]
            return nn.utils.rnn.pad_sequence(clips, batch_first=True)

        return patch.object(encoder, "forward", one_by_one)

    marks = tokenizer(PHI4_MARKS, {})
    return tiny(phi4_row.ROW, plain_phi4(seed), marks, extractor, inputs, max_s=4.0, alone=alone)


# Gemma 3n: two layers with keys and values of their own, two that share them; marks for sound above the text's.
GEMMA_AUDIO = {
    "vocab_size": 20,
    "vocab_offset": 280,
    "input_feat_size": MELS,
    "hidden_size": 32,
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 5,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "conf_conv_kernel_size": 3,
    "sscp_conv_channel_size": (4, 2),
}
GEMMA_TEXT = TEXT | {
    "vocab_size": 300,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "head_dim": 8,
    "sliding_window": 700,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "final_logit_softcapping": 5.0,
}
GEMMA_MARKS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_audio>")
GEMMA_PLACED = {"<end_of_audio>": 280, "<audio_soft_token>": 281}
GEMMA_TOKENS = 13


def without_images() -> AbstractContextManager[Any]:
    """Inside, transformers' class has an empty module for an image tower: the tower's own needs timm."""

    def build(config: Any) -> nn.Module:
        return nn.Module() if config.model_type == "gemma3n_vision" else AutoModel.from_config(config)

    return patch.object(modeling_gemma3n, "AutoModel", SimpleNamespace(from_config=build))


def plain_gemma3n(seed: int = 0, **text: Any) -> Gemma3nForConditionalGeneration:
    """transformers' class with an attention of its own."""
    config = Gemma3nConfig(
        audio_config=dict(GEMMA_AUDIO), text_config=GEMMA_TEXT | text,
        vision_config={"hidden_size": 8, "vocab_size": 8, "vocab_offset": VOCAB},
        audio_soft_tokens_per_image=GEMMA_TOKENS, audio_token_id=281, boa_token_id=5, eoa_token_id=280,
        image_token_id=279,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with without_images():
        module = Gemma3nForConditionalGeneration(config).eval()
    fill(module, seed)
    return module


def gemma3n(seed: int = 0, **text: Any) -> Tiny:
    """Hears 2 s."""
    extractor = Gemma3nAudioFeatureExtractor(feature_size=MELS)
    heard = partial(extractor, padding="longest", return_tensors="pt")

    def inputs(waveforms: Sequence[Waveform]) -> dict[str, Any]:
        out = heard(list(waveforms))
        return {"input_features": out.input_features, "input_features_mask": out.input_features_mask}

    def alone(module: Any, waveforms: Sequence[Waveform]) -> AbstractContextManager[Any]:
        hear = module.model.get_audio_features

        def one_by_one(*_: Any, **__: Any) -> SimpleNamespace:
            embeddings, silent = [], []
            for wave in waveforms:
                one = heard([wave])
                out = hear(one.input_features, ~one.input_features_mask, return_dict=True)
                embeddings.append(out.pooler_output[0])
                silent.append(out.audio_mel_mask[0])
            return SimpleNamespace(
                pooler_output=nn.utils.rnn.pad_sequence(embeddings, batch_first=True),
                audio_mel_mask=nn.utils.rnn.pad_sequence(silent, batch_first=True, padding_value=True),
            )

        return patch.object(module.model, "get_audio_features", one_by_one)

    module = plain_gemma3n(seed, **text)
    ours = gemma3n_row.Gemma3nForConditionalGeneration(copy.deepcopy(module.config))
    ours.load_state_dict(module.state_dict(), strict=False)
    marks = tokenizer(GEMMA_MARKS, GEMMA_PLACED)
    return tiny(gemma3n_row.ROW, module, marks, extractor, inputs, max_s=2.0, alone=alone, ours=ours)
