"""Mellow: HTSAT, a small projector, SmolLM2-135M, behind the `AudioLM` contract; 167M parameters in all.

A clip is one window of 10 s. The encoder says of it a latent vector (mean over time) and, for 32 moments, the
probability of 527 sound classes; the connector makes one embedding of each, so the decoder reads 33. Two ways to put a
prompt together, chosen by `load` or by earwise.json:

- `repaired` (default, for training): a clip is 1 + one token per started 1/32 of the window, zeros behind its end are
  neither averaged into the latent nor shown to the decoder; one, two or more clips, each followed by the separator; the
  prompt ends with the end mark, as in the released trainer, and nothing is padded.
- `compat` (for the released weights): a short clip is repeated to fill the window, every moment stands four times (129
  tokens a clip), always two clips (a single one is heard twice), the prompt cut or filled up with `!` to 129 tokens
  that the decoder sees: 389 positions. Values are those of the official code.

Deviations in both: 1. no dropout of one half in the connector, so that what was sampled and what is trained have the
same probabilities; 2. batch norm never drifts (see `parts.htsat`); 3. sounds are mixed down and longer ones refused or
cut knowingly by the caller. `official_window` is the released loader, channels end to end and a random start.

Source: papers/mellow.md; arXiv:2503.08540; soham97/mellow@349f9b2 and its branch `training` @c8204d8.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from earwise.audio import AudioSpec, num_samples, seconds
from earwise.errors import AudioError, ModelError
from earwise.files import write_json
from earwise.models import checkpoint
from earwise.models.parts import attention, htsat
from earwise.models.tokenizer import TextTokenizer
from earwise.prompts import MELLOW, MELLOW_COMPAT
from earwise.types import Waveform

WHAT = "a Mellow model"
END = "<|endoftext|>"  # ends an answer and separates the clips
TEMPLATES = {"repaired": MELLOW, "compat": MELLOW_COMPAT}
REPEATS = 4  # of each moment under `compat`: 32 times in the encoder's output, then averaged by eight
RELEASED: dict[str, Any] = {
    "model_type": "mellow",
    "window_s": 10.0,
    "encoder": {},  # HTSAT's own sizes
    "decoder": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "bos_token_id": 0, "eos_token_id": 0,
    },
    "placeholder": "<file_sep>",  # a code token of SmolLM2 that no question holds; its embedding is always replaced
}  # fmt: skip
"""Sizes of the released weights v0 and v0_s, as config.json holds them."""


class Connector(nn.Module):
    """What the encoder says -> embeddings: class probabilities to the latent's width, then a residual projector."""

    def __init__(self, classes: int, dim: int, out: int) -> None:
        super().__init__()
        self.c2l = nn.Linear(classes, dim)
        self.linear1 = nn.Linear(dim, out, bias=False)
        self.linear2 = nn.Linear(out, out, bias=False)
        self.layer_norm = nn.LayerNorm(out)

    def forward(self, heard: Tensor) -> Tensor:
        """`(1 + frames, width)`, see `Mellow.listen` -> `(1 + frames, out)`."""
        latent, posteriors = heard[:1, : self.c2l.out_features], heard[1:, : self.c2l.in_features]
        straight = self.linear1(torch.cat([latent, self.c2l(posteriors)]))
        normed: Tensor = self.layer_norm(straight + self.linear2(nn.functional.gelu(straight)))
        return normed


class MellowModule(nn.Module):
    """The three parts under one roof. On the meta device it has shapes and no weights.

    Args:
        config: As `RELEASED`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = htsat.Htsat(htsat.config(**config["encoder"]))
        decoder = LlamaConfig(**config["decoder"])
        decoder._attn_implementation = attention.IMPLEMENTATION
        self.connector = Connector(self.encoder.classes, self.encoder.dim, decoder.hidden_size)
        self.decoder = LlamaModel(decoder)
        # Not in a checkpoint, so computed here even where the weights are built on the meta device.
        with torch.device("cpu"):
            self.decoder.rotary_emb = type(self.decoder.rotary_emb)(config=decoder)


class Mellow:
    """`AudioLM` for Mellow; made by `load` or from parts, see `models.base` for the contract.

    Args:
        module: All weights.
        config: As `RELEASED`; written again by `save`.
        tokenizer: Knows the placeholder, the end mark and `!`.
        template: Key of `TEMPLATES`.
        name: For result rows.
        revision: Hash of the weights.
    Raises:
        ModelError: if the parts do not fit each other, or there is no such template.
    """

    def __init__(
        self, module: MellowModule, config: Mapping[str, Any], tokenizer: Tokenizer, *, template: str = "repaired",
        name: str = "mellow", revision: str = "unsaved",
    ) -> None:  # fmt: skip
        if template not in TEMPLATES:
            raise ModelError(f"{name}: template {template!r} is none of {', '.join(TEMPLATES)}")
        needed = (config["placeholder"], END, "!")
        marks = {mark: number for mark in needed if (number := tokenizer.token_to_id(mark)) is not None}
        absent = [mark for mark in needed if mark not in marks]
        if absent:
            raise ModelError(f"{name}: the tokenizer has no {', '.join(absent)}; give SmolLM2's tokenizer")
        rows = module.decoder.embed_tokens.num_embeddings
        if tokenizer.get_vocab_size() > rows:
            raise ModelError(
                f"{name}: {tokenizer.get_vocab_size()} tokens but {rows} embeddings; take both from one checkpoint"
            )
        self._samples = num_samples(config["window_s"], htsat.SAMPLE_RATE)
        if self._samples > module.encoder.max_samples:
            longest = seconds(module.encoder.max_samples, htsat.SAMPLE_RATE)
            raise ModelError(
                f"{name}: window_s is {config['window_s']}, the encoder sees {longest:g} s; correct config.json"
            )
        self.module = module.eval().requires_grad_(False)
        self.name = name
        self.revision = revision
        self.template = TEMPLATES[template]
        self._compat = template == "compat"
        self._frames: int = module.encoder.frames
        self.spec = AudioSpec(
            sample_rate=htsat.SAMPLE_RATE, max_s=float(config["window_s"]),
            tokens_per_s=self._frames * (REPEATS if self._compat else 1) / config["window_s"],
        )  # fmt: skip
        self.groups = {"encoder": ("encoder.",), "connector": ("connector.",), "decoder": ("decoder.",)}
        self.trims = False
        self.masks = False
        self.placeholder_id: int = marks[config["placeholder"]]
        self.eos_ids: tuple[int, ...] = (marks[END],)
        self._config = dict(config)
        encoding = None
        if self._compat:  # the released tokenizer takes `!` for its padding mark and cuts the text there
            encoding = Tokenizer.from_str(tokenizer.to_str())
            encoding.add_special_tokens(["!"])
        self.tokenizer = TextTokenizer(tokenizer, self.placeholder_id, self.eos_ids, encoding_backend=encoding)

    def audio_tokens(self, samples: int) -> int:
        """One for the whole clip, then one per started 1/32 of the window (`compat`: always 4 x 32).

        Raises:
            AudioError: if the clip is longer than the window, or has no samples.
        """
        moments = self._moments(samples)
        return 1 + (moments * REPEATS if self._compat else moments)

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """What the encoder says of each clip, `(1 + moments, width)`: the latent, then the class probabilities of each
        moment, in as many columns as the wider of the two needs (zeros behind the narrower)."""
        if not waveforms:
            return []
        moments = [self._moments(len(wave)) for wave in waveforms]
        encoder = self.module.encoder
        windows = np.stack([self._window(np.asarray(wave, np.float32)) for wave in waveforms])
        states = encoder.states(torch.from_numpy(windows).to(encoder.mel.device))
        posteriors = encoder.class_scores(states).sigmoid()
        width = max(encoder.dim, encoder.classes)
        heard = []
        for clip, count in enumerate(moments):
            latent = states[clip, :, :, :count].mean((1, 2))
            rows = [latent[None], posteriors[clip, :count]]
            heard.append(torch.cat([nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]))
        return heard

    def project_audio(self, heard: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        connector = self.module.connector
        embedded = [connector(clip.to(connector.c2l.weight)) for clip in heard]
        if not self._compat:
            return embedded
        return [torch.cat([clip[:1], clip[1:].repeat_interleave(REPEATS, 0)]) for clip in embedded]

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        table = self.module.decoder.embed_tokens
        embedded: Tensor = table(ids.to(table.weight.device))
        return embedded

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`."""
        return attention.decode_packed(self.module.decoder, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary; the head is the embedding table."""
        return nn.functional.linear(hidden, self.module.decoder.embed_tokens.weight)

    def save(self, folder: Path) -> None:
        """Write all weights (LoRA merged in), sizes, tokenizer and template: what `load` reads, bit for bit."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(checkpoint.merged_state(self.module), folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", self._config)
        self.tokenizer.save(folder)
        write_json(folder / "earwise.json", {"family": "mellow", "template": "compat" if self._compat else "repaired"})

    def _moments(self, samples: int) -> int:
        """Moments of the encoder's output that hold sound."""
        if samples > self._samples:
            raise AudioError(
                f"clip of {seconds(samples, htsat.SAMPLE_RATE):.2f} s is longer than the {self.spec.max_s:g} s that "
                f"{self.name} hears; cut it, or choose long_audio: truncate or chunk"
            )
        if samples < 1:
            raise AudioError(f"clip of {samples} samples; {self.name} needs at least one: record or export it again")
        return self._frames if self._compat else -(-samples * self._frames // self._samples)

    def _window(self, wave: Waveform) -> Waveform:
        """The clip as long as the window: silence behind it, or under `compat` the clip again and again."""
        return np.resize(wave, self._samples) if self._compat else np.pad(wave, (0, self._samples - len(wave)))


def official_window(channels: NDArray[np.float32], rng: random.Random, samples: int = 320_000) -> Waveform:
    """The released loader, after resampling: channels laid end to end (not mixed), repeated if short, cut at a random
    start if long; the last possible start is never drawn.

    Args:
        channels: `(channels, samples)` at 32 kHz.
        rng: Draws the start.
        samples: Length of the window.
    Returns:
        `(samples,)`, for a model loaded with template `compat`.
    Source: papers/mellow.md section 2; soham97/mellow@349f9b2 wrapper.
    """
    flat = channels.reshape(-1)
    if len(flat) <= samples:
        return np.resize(flat, samples)
    start = rng.randrange(len(flat) - samples)
    return flat[start : start + samples]


def load(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None, template: str | None = None
) -> Mellow:
    """A checkpoint as written by `convert_mellow` or `save`.

    Args:
        weights: Folder with config.json, *.safetensors and tokenizer.json.
        device: Where to put it.
        dtype: Of the decoder; encoder and connector stay in float32. None is as stored.
        template: Key of `TEMPLATES`; None is what earwise.json says, or `repaired`.
    Raises:
        ModelError: if there are no weights, they are pickled, or tensors are missing, left over or of another shape.
    """
    if weights is None:
        raise ModelError(
            "mellow: no weights given; convert the released v0.ckpt once (python -m earwise.models.convert.mellow "
            "v0.ckpt --tokenizer DIR --out DIR) and give that folder"
        )
    config = checkpoint.config(weights, ("mellow",), WHAT)
    shards = checkpoint.safetensors_shards(weights)
    state: dict[str, Tensor] = {}
    for shard in shards:
        try:
            state |= load_file(shard)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{shard}: not a safetensors file ({error}); convert or download it again") from error
    module = filled(config, state, weights)
    if dtype is not None:
        for parameter in module.decoder.parameters():  # not the rotary frequencies, a buffer
            parameter.data = parameter.data.to(dtype)
    tokenizer = checkpoint.tokenizer(weights, str(config["placeholder"]))
    return Mellow(
        module.to(device), config, tokenizer, template=template or _marked_template(weights),
        revision=checkpoint.digest(shards),
    )  # fmt: skip


def filled(config: Mapping[str, Any], state: Mapping[str, Tensor], source: Path) -> MellowModule:
    """A module of these sizes with these weights, not copied.

    Raises:
        ModelError: if the sizes are no Mellow's, or the weights do not fill it exactly; names `source`.
    """
    try:
        with torch.device("meta"):
            module = MellowModule(config)
    except (KeyError, TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"{source / 'config.json'}: no sizes of {WHAT} ({told}); convert it again") from error
    wanted = module.state_dict()
    misshapen = [
        (name, state[name].shape, value.shape)
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    checkpoint.check_keys(
        source, wanted.keys() - state.keys(), state.keys() - wanted.keys(), checkpoint.misshapen(misshapen), WHAT
    )
    module.load_state_dict(state, assign=True)
    return module


def _marked_template(folder: Path) -> str:
    marker = folder / "earwise.json"
    if not marker.exists():
        return "repaired"
    try:
        return str(json.loads(marker.read_text(encoding="utf-8")).get("template", "repaired"))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{marker}: not readable ({error}); convert or export the model again") from error
