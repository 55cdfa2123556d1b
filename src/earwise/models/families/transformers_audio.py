"""Audio-language models that transformers has a class for, behind the `AudioLM` contract.

`TransformersAudioLM` is the same for all of them. What differs is written down in an `Architecture`, one per family's
file: the class, where encoder, connector and decoder lie in it, its special tokens and chat format, and functions for
features, token counts, encoding and projecting audio (and for embedding and decoding text where they are not the plain
ones). Nothing is guessed from attributes. The decoder runs under the forest's attention in every family.

Source: transformers 5, `models/<family>`; Qwen2.5-Omni (arXiv:2503.20215) for models that are part of a larger one.
"""

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

from earwise.audio import LONG_AUDIO_REMEDY, AudioSpec, num_samples, seconds
from earwise.errors import AudioError, ModelError, is_out_of_memory
from earwise.models import checkpoint, hub
from earwise.models.base import EmptyModel
from earwise.models.decoders import transformers_decoder
from earwise.models.family import ModelFamily
from earwise.models.parts import attention
from earwise.models.tokenizer import TextTokenizer, check_placeholder, check_special_tokens, known_ids
from earwise.prompts import ChatTemplate
from earwise.types import Waveform


def embed_text(module: Any, ids: Tensor) -> Tensor:
    """Rows of the model's input embeddings, `(seq, dim)`."""
    table = module.get_input_embeddings()
    embedded: Tensor = table(ids.to(table.weight.device))
    return embedded


def head_logits(module: Any, hidden: Tensor) -> Tensor:
    """Scores of the model's output head, `(seq, vocab)`."""
    scores: Tensor = module.get_output_embeddings()(hidden)
    return scores


def use_forest_attention(module: Any, language_model: str) -> None:
    """Switch the text model at path `language_model` to the forest's attention, in place; other parts keep theirs."""
    module.get_submodule(language_model).config._attn_implementation = transformers_decoder.IMPLEMENTATION


def no_limit(config: Any) -> int | None:
    """The `max_sequence` of a text model that decodes sequences of any length exactly."""
    return None


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a transformers class serves as an `AudioLM`.

    In the functions `module` is an instance of `model_class`, `config` its config, and `extractor` whatever
    `feature_extractor` returned.

    Attributes:
        family: The family's row in `models/registry.py`.
        label: The family in error messages, with its article ("a Voxtral model").
        model_class: Name of the class in `transformers`, or `module:Name` of a class of ours.
        placeholder: Token that stands for audio in text.
        end_tokens: Tokens that end a completion; the first is written by training and must exist.
        template: Chat format.
        encoder: Parameter-name prefixes of the encoder.
        connector: Parameter-name prefixes of the connector.
        decoder: Parameter-name prefixes of the decoder. Together the three match every parameter once; the first prefix
            of each is the module that LoRA is added to.
        language_model: Path of the text model that `decode` runs.
        placeholder_id: config -> id of `placeholder`.
        feature_extractor: (checkpoint folder or None, config) -> feature extractor, which needs `save_pretrained`.
        audio_spec: (config, extractor) -> sample rate, longest clip and token rate.
        audio_tokens: (config, extractor, samples) -> number of audio tokens of a clip within `audio_spec`; 0 if it is
            too short for one.
        encode_audio: (module, extractor, waveforms) -> encoder states of each clip, real frames only.
        project_audio: (module, encoder states) -> embeddings of each clip, as wide as those of `embed`.
        trims_padding: See `AudioLM`.
        masks_padding: See `AudioLM`.
        unread_prefixes: Tensor-name prefixes of other parts of a full checkpoint (talker, vocoder), which are never
            read.
        removed_modules: Parameter-name prefixes of modules that are never computed (vision). They are taken out of the
            model and written back by `save`.
        embed: (module, ids) -> rows for `decode`, wider than the model where the decoder needs more than embeddings.
        decode: (text model, rows, positions, attend) -> states after the final norm.
        logits: (module, states) -> scores.
        set_attention: (module, `language_model`) -> None; gives the text model the forest's attention, and no other
            part.
        max_sequence: text config -> longest sequence in tokens that is decoded exactly; None for no limit.
        published_config: What the config of a published checkpoint says around the config of the part that is read.
            `save` writes the same layout, so that programs for the published checkpoint read it. None if the whole
            checkpoint is read.
        attn_implementation: transformers' attention in the parts that are not the text model.
        after_loading: (module, checkpoint folder) -> None; the last change to freshly read weights, such as merging a
            LoRA that the checkpoint contains.
    """

    family: ModelFamily
    label: str
    model_class: str
    placeholder: str
    end_tokens: tuple[str, ...]
    template: ChatTemplate
    encoder: tuple[str, ...]
    connector: tuple[str, ...]
    decoder: tuple[str, ...]
    language_model: str
    placeholder_id: Callable[[Any], int]
    feature_extractor: Callable[[Path | None, Any], Any]
    audio_spec: Callable[[Any, Any], AudioSpec]
    audio_tokens: Callable[[Any, Any, int], int]
    encode_audio: Callable[[Any, Any, Sequence[Waveform]], list[Tensor]]
    project_audio: Callable[[Any, Sequence[Tensor]], list[Tensor]]
    trims_padding: bool
    masks_padding: bool
    unread_prefixes: tuple[str, ...] = ()
    removed_modules: tuple[str, ...] = ()
    embed: Callable[[Any, Tensor], Tensor] = embed_text
    decode: Callable[[Any, Tensor, Tensor, attention.AttentionFn], Tensor] = transformers_decoder.decode_packed
    logits: Callable[[Any, Tensor], Tensor] = head_logits
    set_attention: Callable[[Any, str], None] = use_forest_attention
    max_sequence: Callable[[Any], int | None] = no_limit
    published_config: Mapping[str, Any] | None = None
    attn_implementation: str = "sdpa"
    after_loading: Callable[[Any, Path], None] | None = None

    @property
    def parameter_prefixes(self) -> dict[str, tuple[str, ...]]:
        """See `AudioLM`."""
        return {"encoder": self.encoder, "connector": self.connector, "decoder": self.decoder}


class TransformersAudioLM:
    """`AudioLM` over a transformers class and its `Architecture`; made by `load` or `from_parts`."""

    def __init__(
        self, architecture: Architecture, module: Any, tokenizer: Tokenizer, extractor: Any, *, name: str,
        revision: str, unused_tensors: Mapping[str, Tensor], side_files: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        self.architecture = architecture
        self.module = module
        self.name = name
        self.revision = revision
        self.unused_tensors = unused_tensors
        """Tensors of the checkpoint that are never computed with, on the CPU; `save` writes them back."""
        self.side_files = side_files
        """Small files of the checkpoint that `save` writes back as they are, see `checkpoint.read_side_files`."""
        self.spec = architecture.audio_spec(module.config, extractor)
        self.template = architecture.template
        self.placeholder_id = architecture.placeholder_id(module.config)
        self.tokenizer = TextTokenizer(
            tokenizer, self.placeholder_id, known_ids(tokenizer, architecture.end_tokens), architecture.template
        )
        self.eos_ids = self.tokenizer.eos_ids
        self.parameter_prefixes = architecture.parameter_prefixes
        self.trims_padding = architecture.trims_padding
        self.masks_padding = architecture.masks_padding
        self._extractor = extractor
        self._language_model = module.get_submodule(architecture.language_model)
        self._max_sequence = architecture.max_sequence(self._language_model.config)

    def audio_tokens(self, samples: int) -> int:
        """Number of audio tokens of a clip of `samples` samples.

        Raises:
            AudioError: if the clip is longer than the model takes, or too short to give a token.
        """
        rate = self.spec.sample_rate
        if samples > num_samples(self.spec.max_s, rate):
            raise AudioError(
                f"clip of {seconds(samples, rate):.2f} s is longer than the {self.spec.max_s:.0f} s that {self.name} "
                f"takes; {LONG_AUDIO_REMEDY}"
            )
        count = self._count(samples)
        if count < 1:
            step = rate // 100
            enough = next(length for length in range(step, rate * 60, step) if self._count(length) > 0)
            raise AudioError(
                f"clip of {samples} samples gives no audio token in {self.name}; "
                f"it takes clips longer than {(enough // step - 1) * 10} ms"
            )
        return count

    def encode_audio(self, waveforms: Sequence[Waveform]) -> list[Tensor]:
        """Encoder states of each clip, real frames only."""
        for waveform in waveforms:
            self.audio_tokens(len(waveform))
        return self.architecture.encode_audio(self.module, self._extractor, waveforms) if waveforms else []

    def project_audio(self, encoder_states: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings of each clip, `(audio_seq, dim)`."""
        return self.architecture.project_audio(self.module, encoder_states)

    def embed(self, ids: Tensor) -> Tensor:
        """Text embeddings `(seq, dim)`."""
        return self.architecture.embed(self.module, ids)

    def decode(self, embeddings: Tensor, positions: Tensor, attend: attention.AttentionFn) -> Tensor:
        """Decoder states `(seq, dim)`.

        Raises:
            ModelError: if a sequence is longer than `max_sequence` of the architecture.
        """
        limit = self._max_sequence
        if limit is not None and len(positions) and int(positions.max()) >= limit:
            raise ModelError(
                f"sequence of {int(positions.max()) + 1} tokens is longer than the {limit} that {self.name} "
                "decodes exactly here; use shorter clips, prompts or answers"
            )
        return self.architecture.decode(self._language_model, embeddings, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary."""
        return self.architecture.logits(self.module, hidden)

    def save(self, folder: Path) -> None:
        """Write a whole checkpoint that transformers reads too: safetensors with LoRA merged in, config, tokenizer.

        Without LoRA `load` gives the same weights bit for bit; with LoRA the merged weights, each rounded once.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = checkpoint.merged_state_dict(self.module) | dict(self.unused_tensors)
        published = self.architecture.published_config
        if published is None:
            with checkpoint.no_progress_bars():
                self.module.save_pretrained(folder, state_dict=tensors)
        else:
            part = self.architecture.family.model_types[published["model_type"]]
            renamed = revert_weight_conversion(self.module, tensors)
            nested = {f"{part}.{name.removeprefix(f'{part}.')}": value for name, value in renamed.items()}
            with checkpoint.no_progress_bars():
                self.module.save_pretrained(folder, state_dict=nested, save_original_format=False)
            inner = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            outer = {**published, "dtype": inner["dtype"], f"{part}_config": inner}
            (folder / "config.json").write_text(json.dumps(outer, indent=2) + "\n", encoding="utf-8")
        self._extractor.save_pretrained(folder)
        for name, content in self.side_files.items():
            (folder / name).write_bytes(content)
        self.tokenizer.save(folder)
        checkpoint.write_marker(folder, {"family": self.architecture.family.name})

    def _count(self, samples: int) -> int:
        return self.architecture.audio_tokens(self.module.config, self._extractor, samples) if samples else 0


def from_parts(
    architecture: Architecture, module: Any, tokenizer: Tokenizer, extractor: Any, *, name: str | None = None,
    revision: str = "unsaved",
) -> TransformersAudioLM:  # fmt: skip
    """Put a model together from a transformers model, which is changed in place: it gets the forest's attention, loses
    the modules that are never computed, and its parameters are frozen.

    Args:
        architecture: The family's.
        module: Instance of the architecture's class, of any size.
        tokenizer: Has the architecture's placeholder under the id that the config gives it, and its first end token.
        extractor: As the architecture's `feature_extractor` makes it.
        name: Name in result rows; None takes the family's.
        revision: Hash of the weights.
    Raises:
        ModelError: if the parts do not fit each other.
    """
    name = name or architecture.family.name
    check_placeholder(tokenizer, architecture.placeholder, architecture.placeholder_id(module.config), name)
    check_special_tokens(tokenizer, architecture.end_tokens[:1], name, "give the tokenizer of a chat model")
    rows = module.get_input_embeddings().weight.shape[0]
    largest = max(number for token, number in tokenizer.get_vocab().items() if token != architecture.placeholder)
    if largest >= rows:
        raise ModelError(f"{name}: token id {largest} but {rows} embeddings; take both from one checkpoint")
    architecture.set_attention(module, architecture.language_model)
    removed = _remove_modules(module, architecture.removed_modules)
    return TransformersAudioLM(
        architecture, module.eval().requires_grad_(False), tokenizer, extractor, name=name, revision=revision,
        unused_tensors=removed, side_files={},
    )  # fmt: skip


def class_of(architecture: Architecture) -> Any:
    """The class that `Architecture.model_class` names."""
    module, _, class_name = architecture.model_class.partition(":")
    if class_name:
        return getattr(importlib.import_module(module), class_name)
    return getattr(transformers, architecture.model_class)


def config_of(architecture: Architecture, content: Mapping[str, Any]) -> Any:
    """The config object of the part that is read, from the content of a checkpoint's config.json."""
    part = architecture.family.model_types[content["model_type"]]
    return class_of(architecture).config_class.from_dict(content[f"{part}_config"] if part else content)


def build_empty(architecture: Architecture, content: Mapping[str, Any]) -> EmptyModel:
    """The model without weights, on the meta device, from the content of a checkpoint's config.json."""
    return empty_of_config(architecture, config_of(architecture, content))


def empty_of_config(architecture: Architecture, config: Any) -> EmptyModel:
    """The model without weights, on the meta device, from its config object."""
    with torch.device("meta"):
        module = class_of(architecture)(config)
    spec = architecture.audio_spec(config, architecture.feature_extractor(None, config))
    return EmptyModel(module, architecture.parameter_prefixes, spec)


def load(
    architecture: Architecture, weights: Path | None = None, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> TransformersAudioLM:
    """Load a checkpoint as published, or as written by `save`.

    Args:
        architecture: The family's.
        weights: Folder with config.json, *.safetensors and the tokenizer; None downloads the published one from a model
            hub.
        device: Device to put the model on.
        dtype: Dtype of all weights; None keeps the stored one.
    Raises:
        ModelError: if there is no folder and no hub, the weights are pickled, or tensors are missing, unexpected or of
            another shape.
    """
    family, label = architecture.family, architecture.label
    folder = weights
    if folder is None:
        if not family.hub:
            raise ModelError(f"{family.name} has no published checkpoint; name a folder with one: --model FOLDER")
        folder = hub.fetch(family.hub).folder
    content = checkpoint.read_config(folder, family.model_types, label)
    part = family.model_types[content["model_type"]]
    try:
        config = config_of(architecture, content)
    except (KeyError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            f"{folder / 'config.json'}: not the config of {label} ({checkpoint.one_line(error)})"
        ) from error
    files, tensors, unexpected = checkpoint.read_tensors(
        folder, label, prefix=f"{part}." if part else "", other_prefixes=architecture.unread_prefixes
    )
    removed = {name: value for name, value in tensors.items() if name.startswith(architecture.removed_modules)}
    try:
        with checkpoint.no_progress_bars():
            module, report = class_of(architecture).from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype or "auto",
                attn_implementation=architecture.attn_implementation, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{folder}: not a checkpoint of {label} ({checkpoint.one_line(error)})") from error
    missing = set(report["missing_keys"])
    absent = {name for name in missing if name.startswith(architecture.removed_modules)}
    mismatches = checkpoint.describe_mismatches(report["mismatched_keys"])
    checkpoint.check_tensors(folder, missing - absent, unexpected | set(report["unexpected_keys"]), mismatches, label)
    if architecture.after_loading is not None:
        architecture.after_loading(module, folder)
    tokenizer = checkpoint.read_tokenizer(folder, architecture.placeholder)
    extractor = architecture.feature_extractor(folder, module.config)
    model = from_parts(architecture, module, tokenizer, extractor, revision=checkpoint.weights_digest(files))
    unused = removed | dict(model.unused_tensors)
    model.unused_tensors = {name: value for name, value in unused.items() if name not in absent}
    model.side_files = checkpoint.read_side_files(folder)
    model.module.to(device)
    return model


def _remove_modules(module: Any, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Remove those of the modules that exist, in place; returns their tensors by full name, on the CPU."""
    tensors = {name: value.detach().cpu() for name, value in module.state_dict().items() if name.startswith(prefixes)}
    for prefix in prefixes:
        parent, _, name = prefix.removesuffix(".").rpartition(".")
        if name in dict(module.get_submodule(parent).named_children()):
            delattr(module.get_submodule(parent), name)
    return tensors
