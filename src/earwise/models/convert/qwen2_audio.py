"""The parts that Qwen2-Audio's training starts from -> a folder that `families/qwen2_audio.py` loads.

    python -m earwise.models.convert.qwen2_audio --encoder WHISPER --decoder QWEN --layout QWEN2_AUDIO --out DIR

The encoder of Whisper-large-v3, the language model Qwen-7B (or a later one of the same shape, under the names of
transformers' Qwen2), and between them a new linear layer. `--layout` is a folder with the released config.json and
tokenizer, whose weights are not read. The released checkpoints cannot take this place: both have been through the
alignment that the paper's first stage is.

Ours where the paper is silent: the linear layer is drawn from a normal distribution of the decoder's standard deviation
(0.02) with zero bias; embeddings of tokens that the language model does not have are the mean of all others.

Source: Qwen2-Audio (arXiv:2407.10759), section 2; names of Qwen-7B as in its released modeling_qwen.py.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from earwise.errors import EarwiseError, ModelError
from earwise.files import remove_abandoned, temporary_path
from earwise.models import checkpoint
from earwise.models.families.qwen2_audio import FAMILY, LABEL, TEMPLATES, Qwen2Audio, from_parts
from earwise.models.parts import mel
from earwise.prompts import AUDIO_PLACEHOLDER, QWEN2_AUDIO

ENCODER, DECODER = "model.audio_tower.", "model.language_model."
HEAD, EMBEDDING = "lm_head.weight", f"{DECODER}embed_tokens.weight"
PROJECTOR = "model.multi_modal_projector.linear."
PROJECTOR_STD = 0.02
QWEN1_NAMES = (
    (r"^transformer\.wte\.", DECODER + "embed_tokens."),
    (r"^transformer\.ln_f\.", DECODER + "norm."),
    (r"^transformer\.h\.", DECODER + "layers."),
    (r"\.ln_1\.", ".input_layernorm."),
    (r"\.ln_2\.", ".post_attention_layernorm."),
    (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
    (r"\.mlp\.w1\.", ".mlp.up_proj."),
    (r"\.mlp\.w2\.", ".mlp.gate_proj."),
    (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
)
"""Patterns in the names of Qwen-7B and what replaces them, applied in this order."""
STACKED, THIRDS = ".attn.c_attn.", ("q_proj", "k_proj", "v_proj")
"""One matrix of Qwen-7B, and the three layers that it becomes."""


def encoder_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Our name and the value of each tensor of a Whisper checkpoint's encoder; its decoder is passed over."""
    for name, value in _stored_tensors(folder):
        short = name.removeprefix("model.")
        if short.startswith("encoder."):
            yield ENCODER + short.removeprefix("encoder."), value


def decoder_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Our name and the value of each tensor of a Qwen checkpoint, under the names of Qwen-7B or of Qwen2."""
    for name, value in _stored_tensors(folder):
        if name == HEAD:
            yield name, value
        elif not name.startswith("transformer."):
            yield DECODER + name.removeprefix("model."), value
        elif STACKED in name:
            for layer, part in zip(THIRDS, value.chunk(len(THIRDS)), strict=True):
                yield qwen2_name(name.replace(STACKED, f".self_attn.{layer}.")), part
        elif not name.endswith(".rotary_emb.inv_freq"):  # follows from the shape
            yield qwen2_name(name), value


def qwen2_name(name: str) -> str:
    """Our name of a tensor of Qwen-7B.

    >>> qwen2_name("transformer.h.3.mlp.w1.weight")
    'model.language_model.layers.3.mlp.up_proj.weight'
    """
    for pattern, replacement in QWEN1_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def assemble(
    encoder: Path, decoder: Path, config: Qwen2AudioConfig, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Qwen2AudioForConditionalGeneration:
    """The model that training starts from.

    Args:
        encoder: Folder of Whisper-large-v3.
        decoder: Folder of the language model.
        config: Sizes of Qwen2-Audio.
        seed: Seed of the linear layer between them.
        dtype: Dtype of all weights.
    Raises:
        ModelError: if a folder lacks tensors, or they have other shapes.
    """
    with torch.device("meta"):
        module = Qwen2AudioForConditionalGeneration(config)
    needed = module.state_dict()
    tensors = {name: value.to(dtype) for name, value in encoder_tensors(encoder)}
    _check(encoder, tensors, {name: value for name, value in needed.items() if name.startswith(ENCODER)}, "Whisper")
    rows = config.text_config.vocab_size
    decoder_part = {name: _with_rows(name, value, rows).to(dtype) for name, value in decoder_tensors(decoder)}
    decoder_part.setdefault(HEAD, decoder_part.get(EMBEDDING, torch.empty(0)))  # tied in small models of the series
    wanted = {name: value for name, value in needed.items() if name.startswith(DECODER) or name == HEAD}
    _check(decoder, decoder_part, wanted, "a Qwen language model of this size")
    weight = torch.empty(needed[PROJECTOR + "weight"].shape)
    weight.normal_(0.0, PROJECTOR_STD, generator=torch.Generator().manual_seed(seed))
    projector = {"weight": weight.to(dtype), "bias": torch.zeros(weight.shape[0], dtype=dtype)}
    tensors |= decoder_part | {PROJECTOR + name: value for name, value in projector.items()}
    return _loaded(config, tensors)


def _loaded(config: Qwen2AudioConfig, tensors: Mapping[str, Tensor]) -> Qwen2AudioForConditionalGeneration:
    """A module with these tensors, without a second copy of the weights."""
    with torch.device("meta"):
        module = Qwen2AudioForConditionalGeneration(config)
    module.load_state_dict(dict(tensors), assign=True)
    rotary = module.model.language_model.rotary_emb  # not in a checkpoint, so made anew outside the meta device
    module.model.language_model.rotary_emb = type(rotary)(config=config.text_config)
    return module


def _with_rows(name: str, value: Tensor, rows: int) -> Tensor:
    """An embedding table or head with rows for new tokens: the mean of the rows that are there."""
    if name not in (HEAD, EMBEDDING) or len(value) >= rows:
        return value
    added = value.float().mean(0, keepdim=True).to(value.dtype)
    return torch.cat([value, added.expand(rows - len(value), -1)])


def _check(folder: Path, tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor], label: str) -> None:
    missing, unexpected = needed.keys() - tensors.keys(), tensors.keys() - needed.keys()
    mismatches = checkpoint.shape_mismatches({name: tensors[name] for name in tensors.keys() & needed.keys()}, needed)
    checkpoint.check_tensors(folder, missing, unexpected, mismatches, label)


def _stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the safetensors files of a folder, one at a time."""
    for file in checkpoint.safetensors_files(folder):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                yield name, stored.get_tensor(name)


def convert(
    encoder: Path, decoder: Path, layout: Path, out: Path, *, template: str = QWEN2_AUDIO.name, seed: int = 0
) -> Qwen2Audio:
    """Write the folder that training starts from; it appears only when it is complete.

    Args:
        encoder: Folder of Whisper-large-v3 in safetensors, with preprocessor_config.json.
        decoder: Folder of the language model in safetensors.
        layout: Folder with Qwen2-Audio's config.json and tokenizer.
        out: Folder to write; must not exist, or be empty.
        template: Chat format that the folder names; a key of `families.qwen2_audio.TEMPLATES`.
        seed: See `assemble`.
    Raises:
        ModelError: if a folder does not hold what is needed, or `out` is not empty or cannot be written.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ModelError(f"{out}: already exists; choose another --out or delete it")
    content = checkpoint.read_config(layout, FAMILY.model_types, LABEL)
    config = Qwen2AudioConfig.from_dict(dict(content))
    tokenizer = checkpoint.read_tokenizer(layout, AUDIO_PLACEHOLDER)
    extractor = mel.load_feature_extractor(encoder, config.audio_config.num_mel_bins)
    module = assemble(encoder, decoder, config, seed=seed)
    model = from_parts(
        module, tokenizer, extractor, template=TEMPLATES[template], side_files=checkpoint.read_side_files(layout)
    )
    part = temporary_path(out)
    remove_abandoned(out.parent)
    try:
        model.save(part)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error}); free some space or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return model


@click.command(
    help="Assemble what Qwen2-Audio's training starts from: Whisper's encoder, a language model, a new layer."
)
@click.option("--encoder", required=True, type=click.Path(path_type=Path), help="Folder of Whisper-large-v3.")
@click.option("--decoder", required=True, type=click.Path(path_type=Path), help="Folder of Qwen-7B or Qwen1.5-7B.")
@click.option(
    "--layout", required=True, type=click.Path(path_type=Path),
    help="Folder with the config.json and tokenizer of Qwen2-Audio-7B; its weights are not needed.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--template", default=QWEN2_AUDIO.name, show_default=True, type=click.Choice(list(TEMPLATES)),
    help="Chat format to train in: that of the Instruct model, or the bare one of the base model.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of the new layer's weights.")
def main(encoder: Path, decoder: Path, layout: Path, out: Path, template: str, seed: int) -> None:
    """The command line of this file; exit code 2 for an error in the user's input."""
    try:
        model = convert(encoder, decoder, layout, out, template=template, seed=seed)
    except EarwiseError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error
    parameters = sum(value.numel() for value in model.module.parameters())
    click.echo(json.dumps({"out": str(out), "parameters": parameters, "template": template}))


if __name__ == "__main__":
    main()
