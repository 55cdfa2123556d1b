"""The embedded model: Whisper base's encoder, a learned connector, SmolLM2-135M-Instruct's decoder. Runs on a laptop,
default everywhere.

Qwen2-Audio's architecture at 1/50 of its size, composed of transformers' own encoder and Llama classes. The base
weights come from `fetch`; what we trained (connector and LoRA, `recipes/embedded.yaml`) ships in the package: alignment
on open recognition; it has hardly seen an answer format, which is where reinforcement starts. It was trained on trimmed
audio: only frames that exist are encoded.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, WhisperFeatureExtractor
from transformers.models.llama.modeling_llama import LlamaModel

from earwise.audio import AudioSpec
from earwise.errors import ModelError
from earwise.models import fetch
from earwise.models.parts import attention, lora, whisper
from earwise.models.parts.projector import LayerMix, pool_states
from earwise.prompts import EMBEDDED
from earwise.types import Waveform

POOL = 16  # encoder states (20 ms) per frame token: 320 ms
SUMMARY = 4
ASSETS = Path(__file__).parents[1] / "assets" / "embedded"
PLACEHOLDER = "<file_sep>"  # a SmolLM2 code token that no conversation holds; its embedding is always replaced


class EmbeddedModule(nn.Module):
    """The three parts under one roof, so that names in checkpoints read `encoder.`, `connector.`, `decoder.`."""

    def __init__(self, encoder: nn.Module, connector: LayerMix, decoder: LlamaModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self.decoder = decoder


class Embedded:
    """`AudioLM` for the embedded model; see `models.base` for the contract."""

    def __init__(
        self, module: EmbeddedModule, tokenizer: Tokenizer, *, name: str, revision: str, inherited: Mapping[str, Tensor]
    ) -> None:
        self.module = module
        self.name = name
        self.revision = revision
        self.inherited = inherited
        """LoRA matrices already merged into the decoder; written out again by `save`, beside those trained since."""
        self.spec = AudioSpec(sample_rate=16000, max_s=30.0, tokens_per_s=50 / POOL)
        self.template = EMBEDDED
        self.groups = {"encoder": ("encoder.",), "connector": ("connector.",), "decoder": ("decoder.",)}
        self.trims = True
        self._tokenizer = tokenizer
        self.placeholder_id = tokenizer.token_to_id(PLACEHOLDER)
        self.eos_ids = (tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>"))
        self._extractor = WhisperFeatureExtractor(feature_size=module.encoder.num_mel_bins, sampling_rate=16000)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of text; nothing is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def audio_tokens(self, samples: int) -> int:
        """Summary tokens and leads, plus one per started 320 ms."""
        return self.module.connector.fixed_tokens - (-whisper.states(samples) // POOL)

    def listen(self, waves: Sequence[Waveform]) -> list[Tensor]:
        """Pooled states of all layers per clip, `(layers, 2 + windows, dim)`; see `projector.pool_states`."""
        mels = [whisper.log_mel(wave, self._extractor) for wave in waves]
        return [pool_states(states, POOL) for states in whisper.layer_states(self.module.encoder, mels)]

    def connect(self, heard: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        device = self.module.connector.gates.device
        connected: list[Tensor] = self.module.connector([clip.to(device) for clip in heard])
        return connected

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        embedded: Tensor = self.module.decoder.embed_tokens(ids)
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.Attend) -> Tensor:
        """Decoder states `(seq, dim)`."""
        return attention.decode_packed(self.module.decoder, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary; the head is the embedding table."""
        return nn.functional.linear(hidden, self.module.decoder.embed_tokens.weight)

    def save(self, folder: Path) -> None:
        """Write connector and LoRA (all that training changes here) with what `load` checks."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            f"connector.{name}": value.detach().contiguous()
            for name, value in self.module.connector.state_dict().items()
        }
        state |= {
            f"decoder.{name}": value
            for name, value in lora.stacked(self.inherited, lora.collect(self.module.decoder)).items()
        }
        save_file(state, folder / "trained.safetensors")
        (folder / "earwise.json").write_text(json.dumps({"family": "embedded", "base": fetch.BASE}, indent=1) + "\n")


def load(weights: Path | None = None, *, device: str = "cpu") -> Embedded:
    """The model as shipped, or with the trained part found in `weights` (a folder with `trained.safetensors`)."""
    path = (weights or ASSETS) / "trained.safetensors"
    if not path.exists():
        raise ModelError(
            f"{path}: no trained part of the embedded model here; give a checkpoint folder made by `earwise train`"
        )
    try:
        with safe_open(str(path), "pt") as handle:
            state = {key: handle.get_tensor(key).float() for key in handle.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # safetensors raises its own, undeclared class
        raise ModelError(f"{path}: not a safetensors file ({error}); train or copy it again") from error
    revision = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return _build(fetch.base_folder(), state, "embedded", revision, device, 0)


def blank(*, device: str = "cpu", seed: int = 0) -> Embedded:
    """Base weights with an untrained connector: where `recipes/embedded.yaml` starts."""
    return _build(fetch.base_folder(), {}, "embedded-blank", "blank", device, seed)


def load_blank(weights: Path | None = None, *, device: str = "cpu") -> Embedded:
    """`blank` for the table of models."""
    if weights is not None:
        raise ModelError("embedded-blank takes no weights; name embedded for a trained part")
    return blank(device=device)


def _build(base: Path, trained: dict[str, Tensor], name: str, revision: str, device: str, seed: int) -> Embedded:
    sizes = json.loads((base / "encoder.json").read_text())
    config = LlamaConfig(**_llama(json.loads((base / "decoder.json").read_text())))
    config._attn_implementation = attention.IMPLEMENTATION
    with torch.device("meta"):
        encoder, decoder = whisper.build_encoder(sizes), LlamaModel(config)
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    connector = LayerMix(sizes["encoder_layers"] + 1, sizes["d_model"], config.hidden_size, SUMMARY)
    torch.set_rng_state(generator_state)
    _fill(encoder, base / "encoder.safetensors")
    _fill(decoder, base / "decoder.safetensors")
    lora_state = {key.removeprefix("decoder."): value for key, value in trained.items() if key.startswith("decoder.")}
    connector_state = {
        key.removeprefix("connector."): value for key, value in trained.items() if key.startswith("connector.")
    }
    if trained:
        try:
            connector.load_state_dict(connector_state)
            lora.merge(decoder, lora_state)
        except (RuntimeError, KeyError) as error:
            raise ModelError(
                f"trained part does not fit this version of the embedded model: {str(error).splitlines()[-1].strip()}"
            ) from error
    module = EmbeddedModule(encoder, connector, decoder).to(device).eval().requires_grad_(False)
    return Embedded(
        module, Tokenizer.from_file(str(base / "tokenizer.json")), name=name, revision=revision, inherited=lora_state
    )


def _llama(sizes: dict[str, Any]) -> dict[str, Any]:
    theta = sizes.pop("rope_theta")
    return sizes | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "tie_word_embeddings": True}


def _fill(module: nn.Module, path: Path) -> None:
    """Load float32 weights from a file into a module that has none."""
    with safe_open(str(path), "pt") as handle:
        state = {key: handle.get_tensor(key).float() for key in handle.keys()}  # noqa: SIM118 - not a dict
    module.load_state_dict(state, assign=True)
