"""Random models of the real architectures in the layout of the released files, with small widths.

Each folder holds what its publisher's holds: config.json, generation_config.json, tokenizer and processor files, and
several safetensors shards with their index. Whatever a recipe loads by name lies in a cache of huggingface_hub, from
where it is read offline; the rest are folders, as the pages' commands name them. Sizes are small (`SIZES`), windows,
mel bins and numbers of special tokens are the released ones.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from earwise.models.convert import mellow as mellow_files
from earwise.models.families import mellow, qwen25_omni, transformers_audio
from earwise.prompts import CHOICES_PROMPT, INSTRUCTIONS
from rehearsal.random_text_model import REPLIES, prefer_replies, randomize, train_tokenizer

WIDTH, LAYERS, HEADS, FFN = 128, 2, 4, 192
AUDIO_WIDTH, AUDIO_HEADS, AUDIO_FFN = 64, 4, 128
VOCABULARY = 1024
SIZES = {
    "decoder": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": FFN, "vocab_size": VOCABULARY},
    "encoder": {"d_model": AUDIO_WIDTH, "encoder_layers": LAYERS, "encoder_ffn_dim": AUDIO_FFN},
}
"""The sizes that differ from the released models', for the summary."""
MELS, FRAMES = 128, 1500
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
OMNI_SPECIAL = (*SPECIAL, "<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>")
COMMIT = "0123456789abcdef" * 2 + "01234567"
START = "<|im_start|>assistant\n"
SHARDS = 3
OMNI_SHARD = "model-00004-of-00004.safetensors"
"""File of talker and vocoder, which is listed in the index and never opened."""


def tokenizer_texts() -> list[str]:
    """What the tokenizers are trained on: the prompts of all styles, replies, and the alphabet of transcripts."""
    chat = "system\nYou are a helpful assistant. user\nAudio 1: assistant\n"
    return [chat, CHOICES_PROMPT, *INSTRUCTIONS.values(), *REPLIES * 3, "What is in the video? Satz GO ON [de] [en]"]


def write_hub_cache(cache: Path) -> None:
    """The models that recipes load by name, as huggingface_hub keeps them.

    Args:
        cache: Folder for `HF_HOME`.
    """
    write_qwen2_audio(snapshot(cache, "Qwen/Qwen2-Audio-7B-Instruct"), "<|im_end|>")
    for seed, size in ((2, "7B"), (3, "3B")):
        write_qwen25_omni(snapshot(cache, f"Qwen/Qwen2.5-Omni-{size}"), seed)


def write_folders(root: Path) -> None:
    """The models that pages name as folders of the working folder."""
    write_whisper(root / "whisper-large-v3")
    write_qwen1(root / "Qwen-7B")
    layout = root / "Qwen2-Audio-7B"
    write_qwen2_audio(layout, "<|endoftext|>")
    for path in layout.glob("*.safetensors*"):
        path.unlink()
    write_mellow(root)


def snapshot(cache: Path, name: str) -> Path:
    """The folder of a model's one revision in a hub cache, which `refs/main` names."""
    folder = cache / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return folder / "snapshots" / COMMIT


def qwen_text_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Config of the language model inside Qwen2-Audio and Qwen2.5-Omni."""
    return {
        **SIZES["decoder"], "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"), "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }  # fmt: skip


def whisper_config() -> dict[str, Any]:
    """Config of Whisper's encoder: window and mel bins as released."""
    return {
        **SIZES["encoder"], "encoder_attention_heads": AUDIO_HEADS, "num_mel_bins": MELS,
        "max_source_positions": FRAMES,
    }  # fmt: skip


def write_qwen2_audio(folder: Path, end: str) -> None:
    """Write Qwen2-Audio.

    Args:
        folder: Folder to write.
        end: Token that ends its answers: `<|im_end|>` for the Instruct model, `<|endoftext|>` for the base model.
    """
    tokenizer = train_tokenizer(tokenizer_texts(), SPECIAL, VOCABULARY)
    config = Qwen2AudioConfig(
        audio_config=whisper_config(), text_config={"model_type": "qwen2"} | qwen_text_config(tokenizer),
        audio_token_index=tokenizer.token_to_id("<|AUDIO|>"),
    )  # fmt: skip
    module = Qwen2AudioForConditionalGeneration(config)
    randomize(module, seed=1)
    table = module.model.language_model.embed_tokens.weight
    prefer_replies(table, module.lm_head.weight, tokenizer, START, "<|im_end|>")
    module.to(torch.bfloat16).save_pretrained(folder)
    split_into_shards(folder, SHARDS)
    write_processor(folder, tokenizer, "Qwen2AudioProcessor", end)


def write_qwen25_omni(folder: Path, seed: int) -> None:
    """Write the whole Qwen2.5-Omni: thinker, and the entries of talker and vocoder in the index.

    Args:
        folder: Folder to write.
        seed: Seed of the weights.
    """
    tokenizer = train_tokenizer(tokenizer_texts(), OMNI_SPECIAL, VOCABULARY)
    ids = {token: tokenizer.token_to_id(token) for token in OMNI_SPECIAL}
    audio = {name: value for name, value in whisper_config().items() if name != "max_source_positions"}
    vision = {
        "depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=audio | {"output_dim": WIDTH, "n_window": 100}, vision_config=vision,
        text_config=qwen_text_config(tokenizer) | {"rope_parameters": rotary},
        audio_token_index=ids["<|AUDIO|>"], audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"], image_token_index=ids["<|IMAGE|>"],
        video_token_index=ids["<|VIDEO|>"], vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
    )  # fmt: skip
    module = Qwen2_5OmniThinkerForConditionalGeneration(config)
    randomize(module, seed=seed)
    prefer_replies(
        module.model.language_model.embed_tokens.weight, module.lm_head.weight, tokenizer, START, "<|im_end|>"
    )
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=qwen25_omni.WINDOW_S)
    module.to(torch.bfloat16)
    transformers_audio.from_parts(qwen25_omni.ARCHITECTURE, module, tokenizer, extractor).save(folder)
    (folder / "earwise.json").unlink()
    path = folder / "config.json"
    outer = json.loads(path.read_text(encoding="utf-8"))
    outer |= {"architectures": ["Qwen2_5OmniModel"], "enable_audio_output": True, "enable_talker": True}
    path.write_text(json.dumps(outer | {"talker_config": {}, "token2wav_config": {}}, indent=2), encoding="utf-8")
    split_into_shards(folder, SHARDS, {"talker.model.norm.weight": OMNI_SHARD, "token2wav.bigvgan.bias": OMNI_SHARD})
    write_processor(folder, tokenizer, "Qwen2_5OmniProcessor", "<|im_end|>", qwen25_omni.WINDOW_S)


def write_whisper(folder: Path) -> None:
    """Write Whisper-large-v3, encoder and decoder, in float16 as released."""
    config = WhisperConfig(
        **whisper_config(), decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64, vocab_size=96,
        bos_token_id=1, eos_token_id=1, pad_token_id=1, decoder_start_token_id=2, begin_suppress_tokens=None,
    )  # fmt: skip
    module = WhisperForConditionalGeneration(config)
    randomize(module, seed=3)
    module.to(torch.float16).save_pretrained(folder)
    split_into_shards(folder, 2)
    WhisperFeatureExtractor(feature_size=MELS).save_pretrained(folder)


def write_qwen1(folder: Path) -> None:
    """Write Qwen-7B under the names of its released files; it has fewer tokens than Qwen2-Audio."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(torch.bfloat16)

    ones, rows = torch.ones(WIDTH, dtype=torch.bfloat16), VOCABULARY - 40
    tensors = {"transformer.wte.weight": drawn(rows, WIDTH) * 8, "transformer.ln_f.weight": ones}
    tensors["lm_head.weight"] = drawn(rows, WIDTH)
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        tensors |= {
            f"{at}ln_1.weight": ones.clone(), f"{at}ln_2.weight": ones.clone(),
            f"{at}attn.c_attn.weight": drawn(3 * WIDTH, WIDTH), f"{at}attn.c_attn.bias": 0 * drawn(3 * WIDTH),
            f"{at}attn.c_proj.weight": drawn(WIDTH, WIDTH), f"{at}mlp.w1.weight": drawn(FFN, WIDTH),
            f"{at}mlp.w2.weight": drawn(FFN, WIDTH), f"{at}mlp.c_proj.weight": drawn(WIDTH, FFN),
        }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    split_into_shards(folder, SHARDS)
    config = {"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": WIDTH, "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}), encoding="utf-8")


def write_mellow(root: Path) -> None:
    """Write `v0.ckpt`, the state dict of the official code with HTSAT in its released size, and SmolLM2 beside it."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", mellow.RELEASED["placeholder"])
    tokenizer = train_tokenizer(tokenizer_texts(), special, VOCABULARY)
    sizes = SIZES["decoder"] | {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = mellow.RELEASED | {"decoder": mellow.RELEASED["decoder"] | sizes}
    decoder = LlamaForCausalLM(LlamaConfig(**config["decoder"], tie_word_embeddings=True))
    randomize(decoder, seed=5)
    folder = root / "SmolLM2-135M"
    decoder.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, tokenizer, "<|endoftext|>")
    torch.manual_seed(6)
    module = mellow.MellowModule(config)
    mellow_files.release(mellow.Mellow(module, config, tokenizer), root / "v0.ckpt")


def split_into_shards(folder: Path, count: int, elsewhere: Mapping[str, str] | None = None) -> None:
    """Divide a folder's one safetensors file into shards with an index, as large models are published.

    Args:
        folder: Folder with model.safetensors.
        count: Number of shards.
        elsewhere: Further tensors of the index, each with the file that holds it; that file is not written.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    files = [f"model-{number + 1:05}-of-{count + bool(elsewhere):05}.safetensors" for number in range(count)]
    weight_map = {name: files[place * count // len(names)] for place, name in enumerate(names)}
    for file in files:
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map | dict(elsewhere or {})}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    path.unlink()


def write_tokenizer(folder: Path, tokenizer: Tokenizer, end: str) -> None:
    """Write tokenizer.json, tokenizer_config.json, vocab.json and merges.txt."""
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token="<|endoftext|>")
    wrapped.save_pretrained(folder)
    tokenizer.model.save(str(folder))
    end_id = tokenizer.token_to_id(end)
    generation = {"eos_token_id": [end_id] if end == "<|im_end|>" else end_id, "pad_token_id": 0, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


def write_processor(folder: Path, tokenizer: Tokenizer, processor: str, end: str, window_s: int = 30) -> None:
    """Write tokenizer and feature extractor beside a model.

    Args:
        folder: Folder of the model.
        tokenizer: Its tokenizer.
        processor: Name of transformers' processor for the family.
        end: Token that ends its answers.
        window_s: Longest clip of the feature extractor, in seconds.
    """
    write_tokenizer(folder, tokenizer, end)
    WhisperFeatureExtractor(feature_size=MELS, chunk_length=window_s).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"processor_class": processor}
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
