"""SALMONN at test size, and its parts as they are released.

The reference is put together from transformers' own Whisper encoder, BERT-like Q-Former and LlamaForCausalLM (eager
attention), with a plain loop over BEATs' formulas between them; the clip is padded to the window as officially.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earwise.files import write_json
from earwise.models.base import AudioLM
from earwise.models.convert.salmonn import BEATS_REQUIRED, BEATS_SIZES, LORA_ALPHA, LORA_RANK, SHARED_TABLE
from earwise.models.families.salmonn import Salmonn, SalmonnConfig, SalmonnModule, from_parts, load
from earwise.models.parts.beats import BeatsConfig, fbank
from earwise.types import Waveform
from families.tiny import Tiny

WINDOW_S = 2
TINY = SalmonnConfig(
    whisper={
        "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "d_model": 16,
        "max_source_positions": 50 * WINDOW_S,
    },
    llama={
        "vocab_size": 208, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    },
    beats=BeatsConfig(patch_dim=12, layers=2, dim=24, ffn_dim=32, heads=2, conv_kernel=16, conv_groups=4),
    qformer={"dim": 24, "heads": 2, "ffn_dim": 32},
)  # fmt: skip


def letter_tokenizer(size: int = 200) -> Tokenizer:
    """One token a letter: 3 + code point mod 190, as in the golden file; `<unk>`, `<s>` and `</s>` in front."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(code): 3 + code % 190 for code in range(min(190, size - 3))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def tiny(seed: int = 0) -> Tiny:
    """Two layers in every part, hears 2 s, 5 tokens a clip."""
    torch.manual_seed(seed)
    module = SalmonnModule(TINY)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 and "gate_scale" not in name:
                fan = 1 if "embed" in name or name[-5:] == "query" or "distance" in name else parameter[0].numel()
                parameter.normal_(0, fan**-0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                parameter.normal_(1, 0.1)
            else:
                parameter.normal_(0, 0.1)
    model = from_parts(module, letter_tokenizer(), name="tiny")

    def reload(changed: AudioLM, folder: Path) -> AudioLM:
        changed.save(folder)
        return load(folder)

    return Tiny(model, lambda ids, waveforms: reference(model, ids, waveforms), reload, max_s=float(WINDOW_S))


@torch.no_grad()
def reference(model: Salmonn, ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
    """Logits `(seq, vocab)` of one sequence, by other code than the model's own."""
    module = model.module
    plain = LlamaForCausalLM(LlamaConfig(**module.config.llama, attn_implementation="eager")).eval()
    plain.load_state_dict(module.llama.state_dict())
    embedded = plain.model.embed_tokens(torch.tensor(ids)).clone()
    if waveforms:
        clips = torch.cat([_clip(module, wave) for wave in waveforms])
        embedded[torch.tensor(ids) == model.placeholder_id] = clips
    logits: Tensor = plain(inputs_embeds=embedded[None]).logits[0]
    return logits


def _clip(module: SalmonnModule, wave: Waveform) -> Tensor:
    sizes, window = module.config.whisper, module.config.window
    encoder = WhisperEncoder(WhisperConfig(**sizes, attn_implementation="eager")).eval()
    encoder.load_state_dict(module.speech_encoder.state_dict())
    padded = np.pad(wave, (0, max(0, 16000 - len(wave))))
    features = WhisperFeatureExtractor(feature_size=sizes["num_mel_bins"], chunk_length=WINDOW_S)
    mels = features(padded, sampling_rate=16000, return_tensors="pt").input_features
    speech = module.ln_speech(encoder(mels).last_hidden_state[0])
    audio = module.ln_audio(_beats(module.beats, fbank(padded)))
    joined = torch.zeros(len(speech), speech.shape[1] + audio.shape[1])
    joined[:, : speech.shape[1]] = speech
    joined[: len(audio), speech.shape[1] :] = audio
    rows = [_qformer(module.qformer, joined[at : at + window]) for at in range(0, len(joined) - window + 1, window)]
    return module.proj(torch.stack(rows))  # type: ignore[no-any-return]


def _qformer(former: nn.Module, states: Tensor) -> Tensor:
    """One query over one window. Self-attention of a single token is its value."""
    hidden = former.former.layernorm(former.query[0, 0])
    for layer in former.former.encoder.layer:
        own = layer.attention
        hidden = own.output.LayerNorm(own.output.dense(own.attention.value(hidden)) + hidden)
        other, heads = layer.crossattention, layer.crossattention.attention.num_attention_heads
        query = other.attention.query(hidden).view(heads, -1)
        key, value = (
            part(states).view(len(states), heads, -1) for part in (other.attention.key, other.attention.value)
        )
        weights = torch.einsum("hd,shd->hs", query, key).div(query.shape[1] ** 0.5).softmax(-1)
        read = torch.einsum("hs,shd->hd", weights, value).flatten()
        hidden = other.output.LayerNorm(other.output.dense(read) + hidden)
        middle = nn.functional.gelu(layer.intermediate_query.dense(hidden))
        hidden = layer.output_query.LayerNorm(layer.output_query.dense(middle) + hidden)
    return hidden


def _beats(ear: nn.Module, picture: Tensor) -> Tensor:
    """BEATs' formulas, position by position where that is slow but plain."""
    patches = [
        ear.patches.weight.flatten(1) @ picture[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].flatten()
        for row in range(len(picture) // 16)
        for column in range(8)
    ]
    hidden = ear.widen(ear.patch_norm(torch.stack(patches)))
    taps = ear.place.kernel_size[0]
    padded = nn.functional.pad(hidden.T[None], (taps // 2, taps - taps // 2 - 1))
    placed = nn.functional.conv1d(padded, ear.place.weight, ear.place.bias, groups=ear.place.groups)[0].T
    hidden = ear.norm(hidden + nn.functional.gelu(placed))
    length, table = len(hidden), ear.distance.table.weight
    bias = torch.stack([table[[_bucket(k - q, ear.distance) for k in range(length)]] for q in range(length)])
    for layer in ear.layers:
        own = layer.attention
        heads, mixed = own.heads, []
        query, key, value = (part(hidden).view(length, heads, -1) for part in (own.query, own.key, own.value))
        for head in range(heads):
            eight = own.gates(query[:, head])
            update, reset = eight[:, :4].sum(1).sigmoid(), eight[:, 4:].sum(1).sigmoid()
            gate = update * (reset * own.gate_scale[0, head, 0, 0] - 1) + 2
            scores = query[:, head] @ key[:, head].T / query.shape[2] ** 0.5 + gate[:, None] * bias[:, :, head]
            mixed.append(scores.softmax(-1) @ value[:, head])
        alpha = (2 * len(ear.layers)) ** 0.25
        hidden = layer.attention_norm(alpha * hidden + own.out(torch.cat(mixed, 1)))
        hidden = layer.norm(alpha * hidden + layer.fc2(nn.functional.gelu(layer.fc1(hidden))))
    return hidden


def _bucket(distance: int, of: nn.Module) -> int:
    """T5's bucket of a signed distance (both directions)."""
    half = of.table.num_embeddings // 2
    exact, size = half // 2, abs(distance)
    if size >= exact:
        ratio = np.log(np.float32(size / exact)) / np.log(of.max_distance / exact)
        size = min(half - 1, exact + int(ratio * (half - exact)))
    return size + (half if distance > 0 else 0)


def write_released(
    folder: Path, config: SalmonnConfig, weights: Mapping[str, Tensor], *, whisper_config: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> dict[str, Path]:  # fmt: skip
    """Write a model's released parts from the official state dict, as their publishers do.

    Args:
        folder: Where to write.
        config: Sizes.
        weights: The official model's whole state dict, by its own names.
        whisper_config: What stands in Whisper's config.json.
        tokenizer: Vicuna's.
    Returns:
        The arguments of `convert_salmonn.convert`, without `out`.
    """

    def under(prefix: str, keep: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
        found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return {name: value.clone() for name, value in found.items() if keep(name)}

    paths = {name: folder / name for name in ("whisper", "vicuna")}
    for name, path in paths.items():
        path.mkdir(parents=True)
        described = whisper_config if name == "whisper" else config.llama
        write_json(path / "config.json", {**described, "model_type": "whisper" if name == "whisper" else "llama"})
    encoder = {f"model.encoder.{name}": value for name, value in under("speech_encoder.").items()}
    save_file(encoder | {"proj_out.weight": torch.ones(2, 2)}, paths["whisper"] / "model.safetensors")
    words = under("llama_model.base_model.model.", lambda name: ".lora_" not in name)
    torch.save(words, paths["vicuna"] / "pytorch_model-00001-of-00001.bin")
    tokenizer.save(str(paths["vicuna"] / "tokenizer.json"))
    sizes = {theirs: asdict(config.beats)[ours] for ours, theirs in BEATS_SIZES.items()}
    torch.save({"cfg": BEATS_REQUIRED | sizes, "model": under("beats.")}, folder / "beats.pt")
    frozen = ("speech_encoder.", "beats.", "llama_model.")
    trained = {
        name: value.clone()
        for name, value in weights.items()
        if not name.startswith(frozen) or ".lora_" in name or name.endswith(("inv_freq", SHARED_TABLE))
    }
    settings = {"model": {"lora_rank": LORA_RANK, "lora_alpha": LORA_ALPHA, "second_per_window": 0.333333}}
    torch.save({"model": trained, "config": settings, "epoch": 0}, folder / "salmonn.pth")
    return paths | {"beats": folder / "beats.pt", "pth": folder / "salmonn.pth"}
