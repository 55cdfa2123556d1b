"""Mellow: HTSAT, a small projector and SmolLM2-135M behind the `AudioLM` contract; 167M parameters in all.

A clip is one window of 10 s. The encoder gives a latent vector (mean over time) and, for 32 frames of output, the
probabilities of 527 sound classes; the connector makes one embedding of each, so the decoder reads 33. There are two
ways to build a prompt; `load` or earwise.json chooses one:

- `repaired` (default, for training): a clip takes 1 token and one per started 1/32 of the window. Padding after its end
  is neither averaged into the latent nor shown to the decoder. One, two or more clips are possible, each followed by
  the separator; the prompt ends with the end token, as in the released trainer, and nothing is padded.
- `compat` (for the released weights): a short clip is repeated to fill the window, every output frame stands four times
  (129 tokens per clip), there are always two clips (a single one is used twice), and the prompt is cut or padded with
  `!` to 129 tokens that the decoder sees: 389 positions. Values are those of the official code.

Deviations in both: 1. no dropout of one half in the connector, so that sampling and training see the same
probabilities; 2. batch norm statistics stay fixed (see `parts/htsat.py`); 3. channels are mixed down, and longer clips
refused or cut by the caller's choice. `official_window` is the released loader: channels end to end, random start.

Source: Mellow (arXiv:2503.08540); released code soham97/mellow@349f9b2 and its branch `training` @c8204d8.
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

from earwise.audio import LONG_AUDIO_REMEDY, AudioSpec, num_samples, seconds
from earwise.errors import AudioError, ModelError
from earwise.files import write_json
from earwise.models import checkpoint, registry
from earwise.models.decoders import transformers_decoder
from earwise.models.detect import MARKER
from earwise.models.parts import attention, htsat
from earwise.models.tokenizer import TextTokenizer, check_special_tokens, check_vocabulary
from earwise.prompts import MELLOW, MELLOW_COMPAT
from earwise.types import Waveform

FAMILY = registry.get("mellow")
LABEL = "a Mellow model"
END_TOKEN = "<|endoftext|>"
"""Token that ends an answer and separates the clips."""
FILL_TOKEN = "!"
"""Token that the released code pads prompts with."""
TEMPLATES = {"repaired": MELLOW, "compat": MELLOW_COMPAT}
REPEATS = 4
"""Times that `compat` repeats each output frame: the released encoder repeats it 32 times and averages by eight."""
PARAMETER_PREFIXES = {"encoder": ("encoder.",), "connector": ("connector.",), "decoder": ("decoder.",)}
RELEASED: dict[str, Any] = {
    "model_type": "mellow",
    "window_s": 10.0,
    "encoder": {},  # HTSAT's own sizes
    "decoder": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "bos_token_id": 0, "eos_token_id": 0,
    },
    "placeholder": "<file_sep>",  # a code token of SmolLM2 that no question contains; its embedding is always replaced
}  # fmt: skip
"""Sizes of the released weights v0 and v0_s, as config.json holds them."""


class Connector(nn.Module):
    """Encoder output -> embeddings: class probabilities to the latent's width, then a residual projector."""

    def __init__(self, classes: int, dim: int, out: int) -> None:
        super().__init__()
        self.c2l = nn.Linear(classes, dim)
        self.linear1 = nn.Linear(dim, out, bias=False)
        self.linear2 = nn.Linear(out, out, bias=False)
        self.layer_norm = nn.LayerNorm(out)

    def forward(self, encoder_states: Tensor) -> Tensor:
        """`(1 + frames, width)`, see `Mellow.encode_audio` -> `(1 + frames, out)`."""
        latent = encoder_states[:1, : self.c2l.out_features]
        posteriors = encoder_states[1:, : self.c2l.in_features]
        projected = self.linear1(torch.cat([latent, self.c2l(posteriors)]))
        normed: Tensor = self.layer_norm(projected + self.linear2(nn.functional.gelu(projected)))
        return normed


class MellowModule(nn.Module):
    """Encoder, connector and decoder as one module; on the meta device it has shapes and no weights.

    Args:
        config: Sizes, like `RELEASED`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = htsat.Htsat(htsat.config(**config["encoder"]))
        decoder = LlamaConfig(**config["decoder"])
        decoder._attn_implementation = transformers_decoder.IMPLEMENTATION
        self.connector = Connector(self.encoder.classes, self.encoder.dim, decoder.hidden_size)
        self.decoder = LlamaModel(decoder)
        # Not in a checkpoint, so computed here even if the weights are built on the meta device.
        with torch.device("cpu"):
            self.decoder.rotary_emb = type(self.decoder.rotary_emb)(config=decoder)


class Mellow:
    """`AudioLM` for Mellow; made by `load` or from parts, see `models.base` for the contract.

    Args:
        module: All weights.
        config: Sizes, like `RELEASED`; written back by `save`.
        tokenizer: Has the placeholder, the end token and `!`.
        template: Key of `TEMPLATES`.
        name: Name in result rows.
        revision: Hash of the weights.
    Raises:
        ModelError: if the parts do not fit each other, or there is no such template.
    """

    def __init__(
        self, module: MellowModule, config: Mapping[str, Any], tokenizer: Tokenizer, *, template: str = "repaired",
        name: str = FAMILY.name, revision: str = "unsaved",
    ) -> None:  # fmt: skip
        if template not in TEMPLATES:
            raise ModelError(f"{name}: template {template!r} is none of {', '.join(TEMPLATES)}")
        needed = (config["placeholder"], END_TOKEN, FILL_TOKEN)
        token_ids = check_special_tokens(tokenizer, needed, name, "give SmolLM2's tokenizer")
        check_vocabulary(tokenizer, module.decoder.embed_tokens.num_embeddings, name)
        self._window_samples = num_samples(config["window_s"], htsat.SAMPLE_RATE)
        if self._window_samples > module.encoder.max_samples:
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
        self.parameter_prefixes = PARAMETER_PREFIXES
        self.trims_padding = False
        self.masks_padding = False
        self.placeholder_id: int = token_ids[config["placeholder"]]
        self.eos_ids: tuple[int, ...] = (token_ids[END_TOKEN],)
        self._config = dict(config)
        encoding_backend = None
        if self._compat:  # the released tokenizer uses `!` as its padding token and splits the text there
            encoding_backend = Tokenizer.from_str(tokenizer.to_str())
            encoding_backend.add_special_tokens([FILL_TOKEN])
        self.tokenizer = TextTokenizer(
            tokenizer, self.placeholder_id, self.eos_ids, self.template, encoding_backend=encoding_backend
        )

    def audio_tokens(self, samples: int) -> int:
        """One for the whole clip, then one per started 1/32 of the window (`compat`: always 4 x 32).

        Raises:
            AudioError: if the clip is longer than the window, or has no samples.
        """
        frames = self._frames_of(samples)
        return 1 + (frames * REPEATS if self._compat else frames)

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """The encoder's output for each clip, `(1 + frames, width)`: the latent, then the class probabilities of each
        frame, in as many columns as the wider of the two needs (zeros after the narrower)."""
        if not waveforms:
            return []
        frames = [self._frames_of(len(waveform)) for waveform in waveforms]
        encoder = self.module.encoder
        windows = np.stack([self._fill_window(np.asarray(waveform, np.float32)) for waveform in waveforms])
        states = encoder.states(torch.from_numpy(windows).to(encoder.mel.device))
        posteriors = encoder.class_scores(states).sigmoid()
        width = max(encoder.dim, encoder.classes)
        encoder_states = []
        for clip, count in enumerate(frames):
            latent = states[clip, :, :, :count].mean((1, 2))
            rows = [latent[None], posteriors[clip, :count]]
            encoder_states.append(torch.cat([nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]))
        return encoder_states

    def project_audio(self, encoder_states: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        connector = self.module.connector
        embedded = [connector(clip.to(connector.c2l.weight)) for clip in encoder_states]
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
        return transformers_decoder.decode_packed(self.module.decoder, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary; the head is the embedding table."""
        return nn.functional.linear(hidden, self.module.decoder.embed_tokens.weight)

    def save(self, folder: Path) -> None:
        """Write all weights (LoRA merged in), sizes, tokenizer and template: what `load` reads, bit for bit."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(checkpoint.merged_state_dict(self.module), folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", self._config)
        self.tokenizer.save(folder)
        template = "compat" if self._compat else "repaired"
        checkpoint.write_marker(folder, {"family": FAMILY.name, "template": template})

    def _frames_of(self, samples: int) -> int:
        """Frames of the encoder's output that contain audio."""
        if samples > self._window_samples:
            raise AudioError(
                f"clip of {seconds(samples, htsat.SAMPLE_RATE):.2f} s is longer than the {self.spec.max_s:g} s that "
                f"{self.name} takes; {LONG_AUDIO_REMEDY}"
            )
        if samples < 1:
            raise AudioError(f"clip of {samples} samples; {self.name} needs at least one: record or export it again")
        return self._frames if self._compat else -(-samples * self._frames // self._window_samples)

    def _fill_window(self, waveform: Waveform) -> Waveform:
        """The clip as long as the window: silence after it, or under `compat` the clip repeated."""
        if self._compat:
            return np.resize(waveform, self._window_samples)
        return np.pad(waveform, (0, self._window_samples - len(waveform)))


def official_window(channels: NDArray[np.float32], rng: random.Random, samples: int = 320_000) -> Waveform:
    """The released loader, after resampling: channels joined end to end (not mixed), repeated if short, cut at a random
    start if long; the last possible start is never drawn.

    Args:
        channels: `(channels, samples)` at 32 kHz.
        rng: Draws the start.
        samples: Length of the window.
    Returns:
        `(samples,)`, for a model loaded with template `compat`.
    Source: released code soham97/mellow@349f9b2, `wrapper.py`.
    """
    flat = channels.reshape(-1)
    if len(flat) <= samples:
        return np.resize(flat, samples)
    start = rng.randrange(len(flat) - samples)
    return flat[start : start + samples]


def load(
    weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None, template: str | None = None
) -> Mellow:
    """Load a checkpoint as written by `convert/mellow.py` or `save`.

    Args:
        weights: Folder with config.json, *.safetensors and tokenizer.json.
        device: Device to put the model on.
        dtype: Dtype of the decoder; encoder and connector stay in float32. None keeps the stored one.
        template: Key of `TEMPLATES`; None takes the one that earwise.json names, or `repaired`.
    Raises:
        ModelError: if there are no weights, they are pickled, or tensors are missing, unexpected or of another shape.
    """
    if weights is None:
        raise ModelError(
            "mellow: no weights given; convert the released v0.ckpt once (python -m earwise.models.convert.mellow "
            "v0.ckpt --tokenizer DIR --out DIR) and give that folder"
        )
    config = checkpoint.read_config(weights, FAMILY.model_types, LABEL)
    files = checkpoint.safetensors_files(weights)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: not a safetensors file ({error}); convert or download it again") from error
    module = module_with_weights(config, tensors, weights)
    if dtype is not None:
        for parameter in module.decoder.parameters():  # not the rotary frequencies, which are a buffer
            parameter.data = parameter.data.to(dtype)
    tokenizer = checkpoint.read_tokenizer(weights, str(config["placeholder"]))
    return Mellow(
        module.to(device), config, tokenizer, template=template or _template_of(weights),
        revision=checkpoint.weights_digest(files),
    )  # fmt: skip


def module_with_weights(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> MellowModule:
    """A module of these sizes with these weights, which are not copied.

    Raises:
        ModelError: if the sizes are not those of a Mellow model, or the weights do not fill it exactly; names `source`.
    """
    try:
        with torch.device("meta"):
            module = MellowModule(config)
    except (KeyError, TypeError, ValueError, AttributeError, StrictDataclassError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"{source / 'config.json'}: no sizes of {LABEL} ({reason}); convert it again") from error
    needed = module.state_dict()
    mismatches = checkpoint.shape_mismatches(tensors, needed)
    checkpoint.check_tensors(source, needed.keys() - tensors.keys(), tensors.keys() - needed.keys(), mismatches, LABEL)
    module.load_state_dict(tensors, assign=True)
    return module


def _template_of(folder: Path) -> str:
    marker = folder / MARKER
    if not marker.exists():
        return "repaired"
    try:
        return str(json.loads(marker.read_text(encoding="utf-8")).get("template", "repaired"))
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{marker}: not readable ({error}); convert or export the model again") from error
