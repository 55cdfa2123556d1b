"""Audio models that transformers itself knows, behind the `AudioLM` contract: one adapter, one declared row a family.

A `Row` says by name what the adapter needs to know of a family: the class, where encoder, connector and decoder lie in
it, its marks and chat format, and functions for what differs (features, token counts, hearing, connecting; embedding
and decoding where they are not the plain ones). Nothing is guessed from attributes. Rows stand in `native_rows/`, one
a file, and are imported when they are asked for; the decoder runs under the forest's attention in every family.

Source: transformers 5, `models/<family>`; papers/qwen2.5-omni.md section 6.
"""

import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from earwise.audio import AudioSpec, num_samples, seconds
from earwise.errors import AudioError, ModelError
from earwise.models import checkpoint
from earwise.models.parts import attention
from earwise.models.tokenizer import TextTokenizer, known_ids
from earwise.prompts import ChatTemplate
from earwise.types import Waveform

ROWS = {
    "qwen25_omni": "earwise.models.families.qwen25_omni",
    "qwen3_omni": "earwise.models.families.qwen3_omni",
    "audio_flamingo3": "earwise.models.families.audio_flamingo3",
    "voxtral": "earwise.models.families.voxtral",
    "granite_speech": "earwise.models.families.granite_speech",
    "phi4_multimodal": "earwise.models.families.phi4_multimodal",
    "gemma3n": "earwise.models.families.gemma3n",
}


def embed_text(module: Any, ids: Tensor) -> Tensor:
    """Rows of the model's input embeddings, `(seq, dim)`."""
    table = module.get_input_embeddings()
    embedded: Tensor = table(ids.to(table.weight.device))
    return embedded


def head_logits(module: Any, hidden: Tensor) -> Tensor:
    """Scores of the model's output head, `(seq, vocab)`."""
    scores: Tensor = module.get_output_embeddings()(hidden)
    return scores


def forest_attention(module: Any, language: str) -> None:
    """Give the text model at path `language` the forest's attention, in place; everything else keeps its own."""
    module.get_submodule(language).config._attn_implementation = attention.IMPLEMENTATION


def sliding_window(config: Any) -> int | None:
    """Longest sequence that full attention decodes as the text model's own attention does: that which fits the sliding
    window of its layers, if any has one."""
    window: int | None = config.sliding_window if "sliding_attention" in config.layer_types else None
    return window


def no_limit(config: Any) -> int | None:
    """For a text model without sliding windows."""
    return None


@dataclass(frozen=True, slots=True)
class Row:
    """What the adapter must know of a family. `module` is an instance of `model_class`, `config` its config,
    `extractor` whatever `extractor` gave.

    Attributes:
        family: Name in `models.base.MODELS`.
        what: The family in error messages, with its article.
        hub: Released checkpoint, taken where no weights are given; `name@revision` if it is not the main one.
        model_class: Name in `transformers`, or `module:Name` of a class of ours made of transformers' parts.
        types: Accepted `model_type` of config.json -> the part of the checkpoint to read ("thinker": config under
            `thinker_config`, tensors under `thinker.`), or "" for the whole.
        mark: The token that stands for audio in text.
        end_marks: Tokens that end a completion; the first is written by training and must exist.
        template: Chat format.
        encoder, connector, decoder: Parameter-name prefixes. Together they name every parameter once; the first of
            each is the module that LoRA goes into.
        language: Path of the text model that `decode` runs.
        placeholder_id: config -> id of `mark`.
        extractor: (checkpoint folder or None, config) -> feature extractor; it needs `save_pretrained`.
        spec: (config, extractor) -> what the encoder hears.
        tokens: (config, extractor, samples) -> audio tokens of a clip within `spec`; 0 if it is too short to hear.
        listen: (module, extractor, waves) -> the encoder's states of each clip, real frames only.
        connect: (module, heard) -> embeddings of each clip, as wide as `embed`'s.
        trims, masks: See `AudioLM`.
        unread: Name prefixes of the other parts of a full checkpoint (talker, vocoder), which are never read.
        left_out: Modules that are never computed (vision): taken out of the model, written back by `save`.
        embed: (module, ids) -> rows for `decode`; wider than the model where the decoder needs more than embeddings.
        decode: (text model, rows, positions, attend) -> states after the final norm.
        logits: (module, states) -> scores.
        attend: (module, `language`) -> nothing; gives the text model the forest's attention, and no other part.
        longest: text config -> longest sequence (tokens) that is decoded exactly, None for no limit.
        wrap: What a released checkpoint's config says around that of the part that is read; `save` writes the same
            layout, so that what reads the released one reads it. None where the whole is read.
        finish: (module, checkpoint folder) -> nothing; what is left to do to freshly read weights, such as merging an
            adapter that the family ships beside them.
    """

    family: str
    what: str
    hub: str
    model_class: str
    types: Mapping[str, str]
    mark: str
    end_marks: tuple[str, ...]
    template: ChatTemplate
    encoder: tuple[str, ...]
    connector: tuple[str, ...]
    decoder: tuple[str, ...]
    language: str
    placeholder_id: Callable[[Any], int]
    extractor: Callable[[Path | None, Any], Any]
    spec: Callable[[Any, Any], AudioSpec]
    tokens: Callable[[Any, Any, int], int]
    encode_audio: Callable[[Any, Any, Sequence[Waveform]], list[Tensor]]
    project_audio: Callable[[Any, Sequence[Tensor]], list[Tensor]]
    trims: bool
    masks: bool
    unread: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    embed: Callable[[Any, Tensor], Tensor] = embed_text
    decode: Callable[[Any, Tensor, Tensor, attention.AttentionFn], Tensor] = attention.decode_packed
    logits: Callable[[Any, Tensor], Tensor] = head_logits
    attend: Callable[[Any, str], None] = forest_attention
    longest: Callable[[Any], int | None] = no_limit
    wrap: Mapping[str, Any] | None = None
    finish: Callable[[Any, Path], None] | None = None


class Native:
    """`AudioLM` over a transformers class and its row; made by `load` or `from_parts`, see `models.base`."""

    def __init__(
        self, row: Row, module: Any, tokenizer: Tokenizer, extractor: Any, *, name: str, revision: str,
        carried: Mapping[str, Tensor], beside: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        self.row = row
        self.module = module
        self.name = name
        self.revision = revision
        self.carried = carried
        """Tensors of the checkpoint that are never computed with, on the CPU; `save` writes them back."""
        self.beside = beside
        """Small files of the checkpoint that `save` hands on as they are, see `checkpoint.side_files`."""
        self.spec = row.spec(module.config, extractor)
        self.template = row.template
        self.placeholder_id = row.placeholder_id(module.config)
        self.tokenizer = TextTokenizer(tokenizer, self.placeholder_id, known_ids(tokenizer, row.end_marks))
        self.eos_ids = self.tokenizer.eos_ids
        self.groups = {"encoder": row.encoder, "connector": row.connector, "decoder": row.decoder}
        self.trims = row.trims
        self.masks = row.masks
        self._extractor = extractor
        self._language = module.get_submodule(row.language)
        self._longest = row.longest(self._language.config)

    def audio_tokens(self, samples: int) -> int:
        """Audio tokens of a clip of `samples` samples.

        Raises:
            AudioError: if the clip is longer than the model hears, or too short to give a token.
        """
        rate = self.spec.sample_rate
        if samples > num_samples(self.spec.max_s, rate):
            raise AudioError(
                f"clip of {seconds(samples, rate):.2f} s is longer than the {self.spec.max_s:.0f} s that {self.name} "
                "hears; cut it, or choose long_audio: truncate or chunk"
            )
        count = self._count(samples)
        if count < 1:
            step = rate // 100
            enough = next(n for n in range(step, rate * 60, step) if self._count(n) > 0)
            raise AudioError(
                f"clip of {samples} samples gives no audio token in {self.name}; "
                f"it hears clips longer than {(enough // step - 1) * 10} ms"
            )
        return count

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """The encoder's states of each clip, real frames only."""
        for wave in waveforms:
            self.audio_tokens(len(wave))
        return self.row.encode_audio(self.module, self._extractor, waveforms) if waveforms else []

    def project_audio(self, heard: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        return self.row.project_audio(self.module, heard)

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        return self.row.embed(self.module, ids)

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`.

        Raises:
            ModelError: if a sequence is longer than the decoder's sliding window, which a forest does not have.
        """
        if self._longest is not None and len(positions) and int(positions.max()) >= self._longest:
            raise ModelError(
                f"sequence of {int(positions.max()) + 1} tokens is longer than the {self._longest} that {self.name} "
                "decodes exactly here; use shorter clips, prompts or answers"
            )
        return self.row.decode(self._language, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        return self.row.logits(self.module, hidden)

    def save(self, folder: Path) -> None:
        """Write a whole checkpoint that transformers reads too: safetensors with LoRA merged in, config, tokenizer.

        Without LoRA `load` gives the same weights bit for bit; with LoRA the merged weights, each rounded once.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = checkpoint.merged_state(self.module) | dict(self.carried)
        if self.row.wrap is None:
            self.module.save_pretrained(folder, state_dict=state)
        else:
            part = self.row.types[self.row.wrap["model_type"]]
            released = revert_weight_conversion(self.module, state)
            wrapped = {f"{part}.{key.removeprefix(f'{part}.')}": value for key, value in released.items()}
            self.module.save_pretrained(folder, state_dict=wrapped, save_original_format=False)
            inner = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            outer = {**self.row.wrap, "dtype": inner["dtype"], f"{part}_config": inner}
            (folder / "config.json").write_text(json.dumps(outer, indent=2) + "\n", encoding="utf-8")
        self._extractor.save_pretrained(folder)
        for name, content in self.beside.items():
            (folder / name).write_bytes(content)
        self.tokenizer.save(folder)
        (folder / "earwise.json").write_text(json.dumps({"family": self.row.family}, indent=1) + "\n")

    def _count(self, samples: int) -> int:
        return self.row.tokens(self.module.config, self._extractor, samples) if samples else 0


def from_parts(
    row: Row, module: Any, tokenizer: Tokenizer, extractor: Any, *, name: str | None = None, revision: str = "unsaved"
) -> Native:
    """Put a model together from a transformers model, changed in place: the forest's attention, modules that are never
    computed taken out, parameters frozen.

    Args:
        row: The family.
        module: Of the row's class, any size.
        tokenizer: Knows the row's mark under the id that the config gives it, and its first end mark.
        extractor: As the row's `extractor` makes it.
        name: For result rows; the family if None.
        revision: Hash of the weights.
    Raises:
        ModelError: if the parts do not fit each other.
    """
    name = name or row.family
    mark, stated = tokenizer.token_to_id(row.mark), row.placeholder_id(module.config)
    if mark != stated:
        raise ModelError(
            f"{name}: the tokenizer gives {row.mark} the id {mark}, the config {stated}; take both from one checkpoint"
        )
    if tokenizer.token_to_id(row.end_marks[0]) is None:
        raise ModelError(f"{name}: the tokenizer has no {row.end_marks[0]}; give the tokenizer of a chat model")
    rows = module.get_input_embeddings().weight.shape[0]
    largest = max(number for token, number in tokenizer.get_vocab().items() if token != row.mark)
    if largest >= rows:
        raise ModelError(f"{name}: token id {largest} but {rows} embeddings; take both from one checkpoint")
    row.attend(module, row.language)
    carried = _take_out(module, row.left_out)
    return Native(
        row, module.eval().requires_grad_(False), tokenizer, extractor, name=name, revision=revision, carried=carried,
        beside={},
    )  # fmt: skip


def class_of(row: Row) -> Any:
    """The row's `model_class` itself."""
    module, _, ours = row.model_class.partition(":")
    return getattr(importlib.import_module(module), ours) if ours else getattr(transformers, row.model_class)


def config_of(row: Row, read: Mapping[str, Any]) -> Any:
    """The config object of the part that is read, from the content of a checkpoint's config.json."""
    part = row.types[read["model_type"]]
    return class_of(row).config_class.from_dict(read[f"{part}_config"] if part else read)


def load(family: str, weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Native:
    """A checkpoint as published, or as written by `save`.

    Args:
        family: Key of `ROWS`.
        weights: Folder with config.json, *.safetensors and the tokenizer; None takes the released one from a model hub.
        device: Where to put it.
        dtype: Of all weights; None is the stored one.
    Raises:
        ModelError: if there is no folder and no hub, weights are pickled, or tensors are missing, left over or of
            another shape.
    """
    row: Row = importlib.import_module(ROWS[family]).ROW
    folder = weights
    if folder is None:
        folder = checkpoint.from_hub(row.hub, f"{family}: no weights given", "give the folder of a checkpoint")
    read = checkpoint.config(folder, row.types, row.what)
    part = row.types[read["model_type"]]
    kind = class_of(row)
    try:
        config = config_of(row, read)
    except (KeyError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            f"{folder / 'config.json'}: not the config of {row.what} ({checkpoint.one_line(error)})"
        ) from error
    shards, state, strays = checkpoint.tensors(folder, row.what, prefix=f"{part}." if part else "", unread=row.unread)
    spare = {key: value for key, value in state.items() if key.startswith(row.left_out)}
    try:
        module, report = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype or "auto", attn_implementation="sdpa",
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: not a checkpoint of {row.what} ({checkpoint.one_line(error)})") from error
    missing = set(report["missing_keys"])
    absent = {key for key in missing if key.startswith(row.left_out)}
    wrong = checkpoint.misshapen(report["mismatched_keys"])
    checkpoint.check_keys(folder, missing - absent, strays | set(report["unexpected_keys"]), wrong, row.what)
    if row.finish is not None:
        row.finish(module, folder)
    tokenizer, extractor = checkpoint.tokenizer(folder, row.mark), row.extractor(folder, module.config)
    model = from_parts(row, module, tokenizer, extractor, revision=checkpoint.digest(shards))
    model.carried = {key: value for key, value in (spare | dict(model.carried)).items() if key not in absent}
    model.beside = checkpoint.side_files(folder)
    model.module.to(device)
    return model


qwen3_omni = functools.partial(load, "qwen3_omni")
audio_flamingo3 = functools.partial(load, "audio_flamingo3")
voxtral = functools.partial(load, "voxtral")
granite_speech = functools.partial(load, "granite_speech")
phi4_multimodal = functools.partial(load, "phi4_multimodal")
gemma3n = functools.partial(load, "gemma3n")


def _take_out(module: Any, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Remove the modules that are there, in place; returns their tensors by full name, on the CPU."""
    carried = {key: value.detach().cpu() for key, value in module.state_dict().items() if key.startswith(prefixes)}
    for prefix in prefixes:
        parent, _, name = prefix.removesuffix(".").rpartition(".")
        if name in dict(module.get_submodule(parent).named_children()):
            delattr(module.get_submodule(parent), name)
    return carried
