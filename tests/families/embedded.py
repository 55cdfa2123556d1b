"""The embedded model's architecture at test size.

The reference is transformers' own WhisperEncoder and LlamaForCausalLM, with the connector written out between them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig
from transformers import WhisperFeatureExtractor as FeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from builders import byte_tokenizer
from earwise.models.base import AudioLM
from earwise.models.decoders.llama import LlamaDecoder, LlamaSizes
from earwise.models.decoders.whisper_decoder import WhisperDecoder
from earwise.models.embedded import base_weights
from earwise.models.embedded.model import PLACEHOLDER, POOL, SUMMARY, Embedded, EmbeddedModule, load
from earwise.models.parts import whisper
from earwise.models.parts.projector import LayerMix
from earwise.types import Waveform
from families.forests import base_weights_of
from families.tiny import Tiny

ENCODER_CONFIG = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 16,
}
ENCODER_CONFIG |= {"max_source_positions": 1500}
DECODER_CONFIG = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
THETA = 10000.0
CONTROL_TOKENS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|nocaptions|>",
    "<|notimestamps|>",
)  # fmt: skip


def tokenizer() -> Tokenizer:
    """One token per byte, and the special tokens of the embedded model."""
    backend = byte_tokenizer()
    backend.add_special_tokens([AddedToken(PLACEHOLDER, special=True)])
    return backend


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side and the real connector; clips of up to 30 s, like the shipped model."""
    torch.manual_seed(seed)
    config = LlamaSizes(**DECODER_CONFIG, rope_theta=THETA)
    encoder, decoder = whisper.WhisperEncoder(ENCODER_CONFIG), LlamaDecoder(config)
    connector = LayerMix(ENCODER_CONFIG["encoder_layers"] + 1, ENCODER_CONFIG["d_model"], config.hidden_size, SUMMARY)
    with torch.no_grad():
        for name, parameter in (*encoder.named_parameters(), *decoder.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0, 1.0 if "embed" in name else parameter[0].numel() ** -0.5)
    module = EmbeddedModule(encoder, connector, decoder).eval().requires_grad_(False)
    model = Embedded(module, tokenizer(), name="tiny", revision="unsaved", merged_lora={}, trim=True)

    untrained = {
        name: {key: value.clone() for key, value in part.state_dict().items()}
        for name, part in (("encoder", encoder), ("decoder", decoder))
    }

    def reload(model: AudioLM, folder: Path) -> AudioLM:
        """The base weights are where they would be downloaded to; the folder contains only what was trained."""
        model.save(folder)
        write_base_weights(folder / "home", untrained)
        with base_weights_of(folder):
            return load(folder)

    return Tiny(model, lambda ids, waveforms: _reference(model, ids, waveforms), reload)


@torch.no_grad()
def _reference(model: Embedded, ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
    module = model.module
    config = LlamaConfig(**module.decoder.config.transformers_fields(), attn_implementation="eager")
    decoder = LlamaForCausalLM(config).eval()
    decoder.model.load_state_dict(module.decoder.state_dict())
    decoder.tie_weights()
    embedded = decoder.model.embed_tokens(torch.tensor(ids)).clone()
    if waveforms:
        clips = [_connect(module.connector, _encode(module.encoder, waveform)) for waveform in waveforms]
        embedded[torch.tensor(ids) == model.placeholder_id] = torch.cat(clips)
    logits: Tensor = decoder(inputs_embeds=embedded[None]).logits[0]
    return logits


def _encode(encoder: nn.Module, waveform: Waveform) -> Tensor:
    """All layers of transformers' encoder on the frames of the clip (an even number), with the table of positions cut
    to them.
    """
    samples = whisper.mel_frames(len(waveform)) * whisper.HOP_SAMPLES
    padded = np.pad(waveform, (0, samples + 2 * whisper.HOP_SAMPLES - len(waveform)))
    extractor = FeatureExtractor(feature_size=ENCODER_CONFIG["num_mel_bins"], sampling_rate=16000)
    features = extractor(padded, sampling_rate=16000, padding=False, truncation=False, return_tensors="pt")
    mel = torch.as_tensor(features.input_features)[..., : samples // whisper.HOP_SAMPLES]
    reference = transformers_encoder(ENCODER_CONFIG | {"max_source_positions": mel.shape[2] // 2})
    weights = encoder.state_dict()
    weights["embed_positions.weight"] = weights["embed_positions.weight"][: mel.shape[2] // 2]
    reference.load_state_dict(weights)
    out = reference(mel, output_hidden_states=True)
    return torch.stack([layer[0] for layer in (*out.hidden_states[:-1], out.last_hidden_state)])


def transformers_encoder(sizes: Mapping[str, int], weights: Mapping[str, Tensor] | None = None) -> WhisperEncoder:
    """transformers' own encoder of these sizes, with the weights of ours if they are given."""
    encoder = WhisperEncoder(WhisperConfig(**sizes)).eval()
    if weights is not None:
        encoder.load_state_dict(weights)
    return encoder


def _connect(connector: LayerMix, layers: Tensor) -> Tensor:
    """The connector's formula from its parameters: leads, summaries of mean and deviation, window means."""
    mean, deviation = layers.mean(1), layers.std(1, correction=0)
    windows = [layers[:, start : start + POOL].mean(1) for start in range(0, layers.shape[1], POOL)]
    level = mean.std(-1, keepdim=True, correction=0) + 1e-6
    gates = connector.gates.softmax(0)[:, None] * len(layers)
    rows = [(row / level * gates).flatten() for row in (mean, deviation, *windows)]
    narrow = connector.squeeze(torch.cat(rows[:2])).view(SUMMARY, -1)
    out: list[Tensor] = []
    for number in range(SUMMARY):
        out += [*connector.leads[number], narrow[number] @ connector.summary[number] + connector.summary_bias[number]]
    return torch.stack([*out, *connector.leads[-1], *(connector.frames(row) for row in rows[2:])])


def random_base_weights(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Base weights at test size, for `write_base_weights`."""
    module = tiny(seed).model.module
    return {name: module.get_submodule(name).state_dict() for name in ("encoder", "decoder")}


def write_base_weights(home: Path, parts: Mapping[str, dict[str, Tensor]]) -> None:
    """Write a cache folder with these base weights."""
    folder = home / base_weights.BASE
    folder.mkdir(parents=True)
    for name, tensors in parts.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "encoder.json").write_text(json.dumps(ENCODER_CONFIG))
    (folder / "decoder.json").write_text(json.dumps(DECODER_CONFIG | {"rope_theta": THETA}))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "complete").write_text("ok")


def write_recogniser(home: Path) -> None:
    """Write a recogniser with random weights into a cache folder: an alphabet behind Whisper's control tokens."""
    sizes = ENCODER_CONFIG | {
        "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "max_target_positions": 64,
        "vocab_size": len(CONTROL_TOKENS) + 26,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    weights = {
        f"decoder.{name}": torch.randn(value.shape, generator=generator).half()
        for name, value in WhisperDecoder(sizes).state_dict().items()
    }
    folder = home / "whisper-base-1"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = {"sizes": sizes, "never": [*range(1, 7)], "never_first": [0]}
    (folder / "recogniser.json").write_text(json.dumps(config))
    letters = [chr(ord("a") + number) for number in range(26)]
    vocab = {word: number for number, word in enumerate((*CONTROL_TOKENS, *letters))}
    letter_tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    letter_tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    letter_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "complete").write_text("ok\n")
