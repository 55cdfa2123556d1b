"""SALMONN at test size, and its parts as they are released.

The reference is composed of transformers' own Whisper encoder, BERT-like Q-Former and LlamaForCausalLM (eager
attention), and of a plain loop over BEATs' formulas; the clip is padded to the window as in the official code.
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
    """One token per letter: 3 + code point mod 190, as in the golden file; ids 0 to 2 are `<unk>`, `<s>` and `</s>`."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(code): 3 + code % 190 for code in range(min(190, size - 3))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def tiny(seed: int = 0) -> Tiny:
    """Two layers in every part, clips of up to 2 s, 5 tokens per clip."""
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

    def reload(model: AudioLM, folder: Path) -> AudioLM:
        model.save(folder)
        return load(folder)

    return Tiny(model, lambda ids, waveforms: reference(model, ids, waveforms), reload, max_s=float(WINDOW_S))


@torch.no_grad()
def reference(model: Salmonn, ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
    """Logits `(seq, vocab)` of one sequence, by other code than the model's own."""
    module = model.module
    decoder = LlamaForCausalLM(LlamaConfig(**module.config.llama, attn_implementation="eager")).eval()
    decoder.load_state_dict(module.llama.state_dict())
    embedded = decoder.model.embed_tokens(torch.tensor(ids)).clone()
    if waveforms:
        clips = torch.cat([_embed_clip(module, waveform) for waveform in waveforms])
        embedded[torch.tensor(ids) == model.placeholder_id] = clips
    logits: Tensor = decoder(inputs_embeds=embedded[None]).logits[0]
    return logits


def _embed_clip(module: SalmonnModule, waveform: Waveform) -> Tensor:
    sizes, window = module.config.whisper, module.config.window
    encoder = WhisperEncoder(WhisperConfig(**sizes, attn_implementation="eager")).eval()
    encoder.load_state_dict(module.speech_encoder.state_dict())
    padded = np.pad(waveform, (0, max(0, 16000 - len(waveform))))
    extractor = WhisperFeatureExtractor(feature_size=sizes["num_mel_bins"], chunk_length=WINDOW_S)
    mels = extractor(padded, sampling_rate=16000, return_tensors="pt").input_features
    speech = module.ln_speech(encoder(mels).last_hidden_state[0])
    audio = module.ln_audio(_beats(module.beats, fbank(padded)))
    joined = torch.zeros(len(speech), speech.shape[1] + audio.shape[1])
    joined[:, : speech.shape[1]] = speech
    joined[: len(audio), speech.shape[1] :] = audio
    starts = range(0, len(joined) - window + 1, window)
    rows = [_qformer(module.qformer, joined[start : start + window]) for start in starts]
    return module.proj(torch.stack(rows))  # type: ignore[no-any-return]


def _qformer(former: nn.Module, states: Tensor) -> Tensor:
    """One query over one window. Self-attention of a single token is its value."""
    hidden = former.former.layernorm(former.query[0, 0])
    for layer in former.former.encoder.layer:
        self_attention, cross = layer.attention, layer.crossattention
        value = self_attention.attention.value(hidden)
        hidden = self_attention.output.LayerNorm(self_attention.output.dense(value) + hidden)
        heads = cross.attention.num_attention_heads
        query = cross.attention.query(hidden).view(heads, -1)
        key, value = (
            part(states).view(len(states), heads, -1) for part in (cross.attention.key, cross.attention.value)
        )
        weights = torch.einsum("hd,shd->hs", query, key).div(query.shape[1] ** 0.5).softmax(-1)
        mixed = torch.einsum("hs,shd->hd", weights, value).flatten()
        hidden = cross.output.LayerNorm(cross.output.dense(mixed) + hidden)
        middle = nn.functional.gelu(layer.intermediate_query.dense(hidden))
        hidden = layer.output_query.LayerNorm(layer.output_query.dense(middle) + hidden)
    return hidden


def _beats(encoder: nn.Module, features: Tensor) -> Tensor:
    """BEATs' formulas, position by position: slow, but easy to compare with the paper."""
    patches = [
        encoder.patches.weight.flatten(1) @ features[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].flatten()
        for row in range(len(features) // 16)
        for column in range(8)
    ]
    hidden = encoder.widen(encoder.patch_norm(torch.stack(patches)))
    taps = encoder.place.kernel_size[0]
    padded = nn.functional.pad(hidden.T[None], (taps // 2, taps - taps // 2 - 1))
    placed = nn.functional.conv1d(padded, encoder.place.weight, encoder.place.bias, groups=encoder.place.groups)[0].T
    hidden = encoder.norm(hidden + nn.functional.gelu(placed))
    length, table = len(hidden), encoder.distance.table.weight
    bias = torch.stack([table[[_bucket(k - q, encoder.distance) for k in range(length)]] for q in range(length)])
    for layer in encoder.layers:
        attention = layer.attention
        heads, mixed = attention.heads, []
        projections = (attention.query, attention.key, attention.value)
        query, key, value = (projection(hidden).view(length, heads, -1) for projection in projections)
        for head in range(heads):
            gates = attention.gates(query[:, head])
            update, reset = gates[:, :4].sum(1).sigmoid(), gates[:, 4:].sum(1).sigmoid()
            gate = update * (reset * attention.gate_scale[0, head, 0, 0] - 1) + 2
            scores = query[:, head] @ key[:, head].T / query.shape[2] ** 0.5 + gate[:, None] * bias[:, :, head]
            mixed.append(scores.softmax(-1) @ value[:, head])
        alpha = (2 * len(encoder.layers)) ** 0.25
        hidden = layer.attention_norm(alpha * hidden + attention.out(torch.cat(mixed, 1)))
        hidden = layer.norm(alpha * hidden + layer.fc2(nn.functional.gelu(layer.fc1(hidden))))
    return hidden


def _bucket(distance: int, table: nn.Module) -> int:
    """T5's bucket of a signed distance (both directions)."""
    half = table.table.num_embeddings // 2
    exact, size = half // 2, abs(distance)
    if size >= exact:
        ratio = np.log(np.float32(size / exact)) / np.log(table.max_distance / exact)
        size = min(half - 1, exact + int(ratio * (half - exact)))
    return size + (half if distance > 0 else 0)


def write_released(
    folder: Path, config: SalmonnConfig, weights: Mapping[str, Tensor], *, whisper_config: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> dict[str, Path]:  # fmt: skip
    """Write a model's released parts from the official state dict, as their publishers do.

    Args:
        folder: Folder to write.
        config: Sizes of the parts.
        weights: The official model's whole state dict, under its own names.
        whisper_config: Content of Whisper's config.json.
        tokenizer: Vicuna's tokenizer.
    Returns:
        The arguments of `convert` in `convert/salmonn.py`, without `out`.
    """

    def with_prefix(prefix: str, keep: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return {name: value.clone() for name, value in part.items() if keep(name)}

    paths = {name: folder / name for name in ("whisper", "vicuna")}
    for name, path in paths.items():
        path.mkdir(parents=True)
        content = whisper_config if name == "whisper" else config.llama
        write_json(path / "config.json", {**content, "model_type": "whisper" if name == "whisper" else "llama"})
    encoder = {f"model.encoder.{name}": value for name, value in with_prefix("speech_encoder.").items()}
    save_file(encoder | {"proj_out.weight": torch.ones(2, 2)}, paths["whisper"] / "model.safetensors")
    vicuna = with_prefix("llama_model.base_model.model.", lambda name: ".lora_" not in name)
    torch.save(vicuna, paths["vicuna"] / "pytorch_model-00001-of-00001.bin")
    tokenizer.save(str(paths["vicuna"] / "tokenizer.json"))
    sizes = {released: asdict(config.beats)[ours] for ours, released in BEATS_SIZES.items()}
    torch.save({"cfg": BEATS_REQUIRED | sizes, "model": with_prefix("beats.")}, folder / "beats.pt")
    frozen = ("speech_encoder.", "beats.", "llama_model.")
    trained = {
        name: value.clone()
        for name, value in weights.items()
        if not name.startswith(frozen) or ".lora_" in name or name.endswith(("inv_freq", SHARED_TABLE))
    }
    settings = {"model": {"lora_rank": LORA_RANK, "lora_alpha": LORA_ALPHA, "second_per_window": 0.333333}}
    torch.save({"model": trained, "config": settings, "epoch": 0}, folder / "salmonn.pth")
    return paths | {"beats": folder / "beats.pt", "pth": folder / "salmonn.pth"}
