"""The embedded model's architecture at test size.

The reference is transformers' own WhisperEncoder and LlamaForCausalLM, with the connector written out between them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, WhisperFeatureExtractor
from transformers.models.llama.modeling_llama import LlamaModel

from builders import byte_tokenizer
from earwise.models.base import AudioLM
from earwise.models.embedded import base_weights
from earwise.models.embedded.model import PLACEHOLDER, POOL, SUMMARY, Embedded, EmbeddedModule, load
from earwise.models.parts import attention, whisper
from earwise.models.parts.projector import LayerMix
from earwise.types import Waveform
from families.forests import at_home
from families.tiny import Tiny

EARS = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 16}
EARS |= {"max_source_positions": 1500}
WORDS = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
WORDS |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
THETA = 10000.0


def tokenizer() -> Tokenizer:
    """One token per byte, the marks of the embedded model's own."""
    made = byte_tokenizer()
    made.add_special_tokens([AddedToken(PLACEHOLDER, special=True)])
    return made


def tiny(seed: int = 0) -> Tiny:
    """Two layers on each side and the real connector, hears 30 s as the real one."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **WORDS, rope_parameters={"rope_type": "default", "rope_theta": THETA}, tie_word_embeddings=True
    )
    config._attn_implementation = attention.IMPLEMENTATION
    encoder, decoder = whisper.build_encoder(EARS), LlamaModel(config)
    connector = LayerMix(EARS["encoder_layers"] + 1, EARS["d_model"], config.hidden_size, SUMMARY)
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

    def reload(changed: AudioLM, folder: Path) -> AudioLM:
        """The base weights stand where `fetch` keeps them; only what was trained is in the folder."""
        changed.save(folder)
        keep_base(folder / "home", untrained)
        with at_home(folder):
            return load(folder)

    return Tiny(model, lambda ids, waveforms: _reference(model, ids, waveforms), reload)


@torch.no_grad()
def _reference(model: Embedded, ids: Sequence[int], waveforms: Sequence[Waveform]) -> Tensor:
    module = model.module
    plain = LlamaForCausalLM(LlamaConfig(**module.decoder.config.to_dict() | {"attn_implementation": "eager"})).eval()
    plain.model.load_state_dict(module.decoder.state_dict())
    plain.tie_weights()
    embedded = plain.model.embed_tokens(torch.tensor(ids)).clone()
    if waveforms:
        clips = [_connect(module.connector, _hear(module.encoder, wave)) for wave in waveforms]
        embedded[torch.tensor(ids) == model.placeholder_id] = torch.cat(clips)
    logits: Tensor = plain(inputs_embeds=embedded[None]).logits[0]
    return logits


def _hear(encoder: nn.Module, wave: Waveform) -> Tensor:
    """All layers of transformers' encoder on the frames that exist (an even number), its table of positions cut to
    them.
    """
    extractor = WhisperFeatureExtractor(feature_size=EARS["num_mel_bins"], sampling_rate=16000)
    mel = whisper.log_mel(wave, extractor)[None]
    alone = whisper.build_encoder(EARS | {"max_source_positions": mel.shape[2] // 2}).eval()
    state = encoder.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][: mel.shape[2] // 2]
    alone.load_state_dict(state)
    out = alone(mel, output_hidden_states=True)
    return torch.stack([layer[0] for layer in (*out.hidden_states[:-1], out.last_hidden_state)])


def _connect(connector: LayerMix, layers: Tensor) -> Tensor:
    """The connector's formula, read off its parameters: leads, summaries of mean and deviation, window means."""
    mean, deviation = layers.mean(1), layers.std(1, correction=0)
    windows = [layers[:, at : at + POOL].mean(1) for at in range(0, layers.shape[1], POOL)]
    level = mean.std(-1, keepdim=True, correction=0) + 1e-6
    gates = connector.gates.softmax(0)[:, None] * len(layers)
    rows = [(row / level * gates).flatten() for row in (mean, deviation, *windows)]
    narrow = connector.squeeze(torch.cat(rows[:2])).view(SUMMARY, -1)
    out: list[Tensor] = []
    for number in range(SUMMARY):
        out += [*connector.leads[number], narrow[number] @ connector.summary[number] + connector.summary_bias[number]]
    return torch.stack([*out, *connector.leads[-1], *(connector.frames(row) for row in rows[2:])])


def at_random(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Base weights at test size, for `keep_base`."""
    module = tiny(seed).model.module
    return {name: module.get_submodule(name).state_dict() for name in ("encoder", "decoder")}


def keep_base(home: Path, parts: Mapping[str, dict[str, Tensor]]) -> None:
    """Write a home whose base weights are these."""
    folder = home / base_weights.BASE
    folder.mkdir(parents=True)
    for name, state in parts.items():
        save_file(state, folder / f"{name}.safetensors")
    (folder / "encoder.json").write_text(json.dumps(EARS))
    (folder / "decoder.json").write_text(json.dumps(WORDS | {"rope_theta": THETA}))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "complete").write_text("ok")
