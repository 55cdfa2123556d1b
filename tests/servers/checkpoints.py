"""Small random models in the layout of the released files, which servers of other makers can load.

Weights, config, tokenizer, processor and chat template are written as transformers writes them for the released models;
only the sizes are small. Attention heads are 32 wide, the smallest that vLLM's kernels for CPUs take, and clips may be
30 s long, since servers size their buffers by that. The tokenizer has one token per byte, so that every text has a
token form and a completion may end inside a character.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
)

from builders import SPECIAL, byte_tokenizer, feature_extractor, randomize_weights
from earwise.models.families.qwen25_omni import ARCHITECTURE
from earwise.models.families.transformers_audio import from_parts
from families.qwen3_omni import rename_special_tokens

MELS = 128
WINDOW_S = 30
AUDIO = {
    "num_mel_bins": MELS, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "d_model": 64,
    "max_source_positions": 50 * WINDOW_S,
}  # fmt: skip
TEXT = {
    "vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False, "bos_token_id": None,
    "eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": SPECIAL.index("<|endoftext|>"),
}  # fmt: skip
MORE_SPECIAL = ("<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>")
"""Further tokens that Qwen2.5-Omni's processor asks for."""
IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor", "merge_size": 2, "patch_size": 14, "temporal_patch_size": 2,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "min_pixels": 3136, "max_pixels": 12845056,
}  # fmt: skip
"""What the processor of Qwen2.5-Omni says about images, which are never sent here."""
NUMBERED = "Audio ' ~ count.clips ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\n"
PLAIN = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def chat_template(clip: str) -> str:
    """A chat template that writes what the released one of the family writes for text and sound.

    Args:
        clip: Text for one clip; `' ~ count.clips ~ '` becomes its number in the conversation.
    """
    return (
        "{%- set count = namespace(clips=0) -%}"
        "{%- if messages[0].role != 'system' -%}"
        "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' ~ message.role ~ '\n' -}}"
        "{%- if message.content is string -%}{{- message.content -}}"
        "{%- else -%}"
        "{%- for part in message.content -%}"
        "{%- if part.type == 'text' -%}{{- part.text -}}"
        "{%- else -%}{%- set count.clips = count.clips + 1 -%}{{- '" + clip + "' -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- endif -%}"
        "{{- '<|im_end|>\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )


def write_qwen2_audio(folder: Path, seed: int = 0, prefers: str = "") -> None:
    """Write a Qwen2-Audio with two layers on each side.

    Args:
        folder: Folder to write.
        seed: Seed of the weights.
        prefers: Character that the model mostly repeats; "" for none.
    """
    tokenizer = byte_tokenizer()
    config = Qwen2AudioConfig(
        audio_config=AUDIO, text_config={"model_type": "qwen2"} | TEXT, audio_token_index=SPECIAL.index("<|AUDIO|>")
    )
    module = Qwen2AudioForConditionalGeneration(config)
    randomize_weights(module, seed)
    if prefers:
        prefer_character(module.model.language_model.embed_tokens.weight, module.lm_head.weight, tokenizer, prefers)
    module.save_pretrained(folder, max_shard_size="100KB")
    _write_processor(folder, tokenizer, "Qwen2AudioProcessor", chat_template(NUMBERED))


def write_qwen25_omni(folder: Path, seed: int = 0) -> None:
    """Write the thinker of a Qwen2.5-Omni with two layers on each side, as the released full model without talker:
    transformers' class, put into the released layout by `save`, which the server then has to read."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(list(MORE_SPECIAL))
    ids = {token: tokenizer.token_to_id(token) for token in (*SPECIAL, *MORE_SPECIAL)}
    audio = {name: value for name, value in AUDIO.items() if name != "max_source_positions"}
    vision: dict[str, Any] = {
        "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=audio | {"output_dim": 64, "n_window": 100},
        vision_config=vision,
        text_config=TEXT | {"rope_parameters": rotary},
        audio_token_index=ids["<|AUDIO|>"], audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"], image_token_index=ids["<|IMAGE|>"],
        video_token_index=ids["<|VIDEO|>"], vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
    )  # fmt: skip
    module = Qwen2_5OmniThinkerForConditionalGeneration(config)
    randomize_weights(module, seed)
    extractor = feature_extractor(MELS, WINDOW_S)
    from_parts(ARCHITECTURE, module, tokenizer, extractor, name="tiny").save(folder)
    _write_processor(folder, tokenizer, "Qwen2_5OmniProcessor", chat_template(PLAIN), IMAGES)


def _write_processor(
    folder: Path, tokenizer: Tokenizer, processor_class: str, template: str, more: Mapping[str, Any] | None = None
) -> None:
    """Write tokenizer, feature extractor and chat template into the folder of a model.

    Args:
        folder: Folder of the model.
        tokenizer: Its tokenizer.
        processor_class: Name of transformers' processor for the family.
        template: Chat template.
        more: Further fields of the processor's config.
    """
    special = {
        token.strip("<|>").lower() + "_token": token
        for token in (*SPECIAL[3:], *MORE_SPECIAL)
        if tokenizer.token_to_id(token) is not None
    }
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=special
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    extractor = feature_extractor(MELS, WINDOW_S)
    extractor.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(dict(more or {}) | json.loads(path.read_text()) | {"processor_class": processor_class}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


@torch.no_grad()
def prefer_character(embeddings: torch.Tensor, head: torch.Tensor, tokenizer: Tokenizer, character: str) -> None:
    """Make a model's head prefer one character: after a line break its first byte, then the next byte each time.

    Args:
        embeddings: Token embeddings, `(vocabulary, dim)`.
        head: Output head, `(vocabulary, dim)`, changed in place.
        tokenizer: A tokenizer with one token per byte.
        character: The character; no two of its bytes may be equal.
    """
    ids = tokenizer.encode(character).ids
    newline = tokenizer.encode("\n").ids[-1]
    for before, after in zip((newline, *ids), (*ids, ids[0]), strict=True):
        direction = embeddings[before] / embeddings[before].norm()
        head[after] += 2.0 * direction  # the character in about four of five draws


def write_audio_flamingo3(folder: Path, seed: int = 0) -> None:
    """Write an Audio Flamingo 3 with two layers on each side."""
    tokenizer = rename_special_tokens(placeholder="<sound>")
    config = AudioFlamingo3Config(
        audio_config={
            "num_mel_bins": MELS, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "hidden_size": 64, "max_source_positions": 50 * WINDOW_S,
        },
        text_config=TEXT | {"model_type": "qwen2"},
        audio_token_id=tokenizer.token_to_id("<sound>"),
    )  # fmt: skip
    module = AudioFlamingo3ForConditionalGeneration(config)
    randomize_weights(module, seed)
    module.save_pretrained(folder)
    _write_processor(folder, tokenizer, "AudioFlamingo3Processor", chat_template("<sound>"))
