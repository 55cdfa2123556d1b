"""The released Mellow checkpoint (`v0.ckpt`, a pickled state dict) -> the folder that `families/mellow.py` loads, and
back.

    python -m earwise.models.convert.mellow v0.ckpt --tokenizer SMOLLM2_FOLDER --out DIR [--template compat] [--fresh]

Run once, by hand. `--fresh` keeps only the encoder, to train as the paper does. The pickle is read by torch's
restricted reader, so it cannot run code. Every tensor is accounted for: it becomes one of ours (`official_name`), is
fixed and checked (the filters of the front end, the tied head), or is known and left out (attention masks that follow
from the shape; AudioSet's clip head, which Mellow does not read).

Source: Mellow (arXiv:2503.08540); names and shapes of soham97/mellow@349f9b2.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig

from earwise.errors import EarwiseError, ModelError
from earwise.files import remove_abandoned, temporary_path
from earwise.models import checkpoint
from earwise.models.families.mellow import (
    END_TOKEN,
    LABEL,
    RELEASED,
    TEMPLATES,
    Mellow,
    MellowModule,
    module_with_weights,
)
from earwise.models.parts import htsat

HTSAT = "audio_encoder.base.htsat."
HEAD, EMBEDDING = "caption_decoder.lm.lm_head.weight", "caption_decoder.lm.model.embed_tokens.weight"
NAMES = (
    (r"^encoder\.clap\.batch_norm\.", f"{HTSAT}bn0."),
    (r"^encoder\.clap\.", HTSAT),
    (r"^encoder\.", HTSAT),
    (r"^connector\.c2l\.", "audio_encoder.base.c2l."),
    (r"^connector\.", "audio_encoder.projection."),
    (r"^decoder\.", "caption_decoder.lm.model."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.self\.(?:query|key|value)\.", ".attn.qkv."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
"""Patterns in our tensor names and what replaces them in the official ones, applied in this order."""
STACKED = ("query", "key", "value")
"""Thirds of one official matrix."""
FRONT_END_TOLERANCE = {
    f"{HTSAT}spectrogram_extractor.stft.conv_real.weight": 1e-5,
    f"{HTSAT}spectrogram_extractor.stft.conv_imag.weight": 1e-5,
    f"{HTSAT}logmel_extractor.melW": 1e-7,
}
"""Largest difference between released filters and ours: float32 rounding of other code."""


def official_name(name: str) -> tuple[str, int | None]:
    """The official name of one of our tensors, and which third of the official tensor it is (None: all of it).

    >>> official_name("encoder.clap.layers.0.blocks.1.attention.self.key.bias")
    ('audio_encoder.base.htsat.layers.0.blocks.1.attn.qkv.bias', 1)
    """
    third = next((number for number, kind in enumerate(STACKED) if f".attention.self.{kind}." in name), None)
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name, third


def official_shapes(module: MellowModule) -> dict[str, tuple[int, ...]]:
    """Every name of the official state dict of such a model, with its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in module.state_dict().items():
        official, third = official_name(name)
        shapes[official] = tuple(value.shape) if third is None else (len(STACKED) * value.shape[0], *value.shape[1:])
    for name, block, (height, width) in _shifted_blocks(module.encoder):
        tokens = block.window_size**2
        shapes[name] = (height * width // tokens, tokens, tokens)
    classes = module.encoder.classes
    shapes |= {f"{HTSAT}head.weight": (classes, classes), f"{HTSAT}head.bias": (classes,)}
    shapes |= {name: tuple(value.shape) for name, value in front_end(module.encoder).items()}
    return shapes | {HEAD: shapes[EMBEDDING]}


def front_end(encoder: htsat.Htsat) -> dict[str, Tensor]:
    """The filters that the official front end convolves with, by formula: windowed cosines and negative sines, mel."""
    bins, samples = torch.arange(htsat.N_FFT // 2 + 1)[:, None], torch.arange(htsat.N_FFT)
    angle = 2 * math.pi / htsat.N_FFT * (bins * samples % htsat.N_FFT).double()
    window = encoder.window.double()
    waves = (window * angle.cos(), -window * angle.sin())
    filters = (*(wave[:, None].float() for wave in waves), encoder.mel)
    return dict(zip(FRONT_END_TOLERANCE, filters, strict=True))


def attention_masks(encoder: htsat.Htsat) -> dict[str, Tensor]:
    """The masks of shifted windows, which the official state dict contains although they follow from the shape."""
    return {
        name: block.get_attn_mask(height, width, torch.float32, "cpu")
        for name, block, (height, width) in _shifted_blocks(encoder)
    }


def _shifted_blocks(encoder: htsat.Htsat) -> Iterator[tuple[str, Any, tuple[int, int]]]:
    """Name of the mask, block and resolution of every block whose shifted windows have a mask."""
    clap = encoder.clap
    for stage, (layer, resolution) in enumerate(zip(clap.layers, clap.input_resolutions, strict=True)):
        for number, block in enumerate(layer.blocks):
            if number % 2 and min(resolution) > block.window_size:
                yield f"{HTSAT}layers.{stage}.blocks.{number}.attn_mask", block, resolution


def from_official(official: Mapping[str, Tensor], config: Mapping[str, Any], source: Path) -> MellowModule:
    """Our module with the official weights.

    Args:
        official: State dict under the official names, all of which may begin with `module.`.
        config: Sizes, like `RELEASED` of `families/mellow.py`.
        source: Names the file in error messages.
    Raises:
        ModelError: if tensors are missing or unexpected, shapes differ, the front end is another one, or the head is
            not the embedding table.
    """
    if official and all(name.startswith("module.") for name in official):
        official = {name.removeprefix("module."): value for name, value in official.items()}
    with torch.device("meta"):
        module = MellowModule(config)
    shapes = official_shapes(module)
    mismatches = [
        (name, tuple(value.shape), shapes[name])
        for name, value in official.items()
        if name in shapes and tuple(value.shape) != shapes[name]
    ]
    missing, unexpected = shapes.keys() - official.keys(), official.keys() - shapes.keys()
    checkpoint.check_tensors(source, missing, unexpected, checkpoint.describe_mismatches(mismatches), LABEL)
    for name, value in front_end(module.encoder).items():
        difference = float((official[name].float() - value).abs().max())
        if not difference <= FRONT_END_TOLERANCE[name]:
            raise ModelError(
                f"{source}: {name} is off by {difference:.2g}; this model listens through another front end"
            )
    if not torch.equal(official[HEAD], official[EMBEDDING]):
        raise ModelError(f"{source}: {HEAD} is not the embedding table; only tied weights can be converted")
    tensors = {}
    for name in module.state_dict():
        source_name, third = official_name(name)
        stacked = official[source_name]
        tensors[name] = (stacked if third is None else stacked.chunk(len(STACKED))[third]).clone()
    return module_with_weights(config, tensors, source)


def official_state_dict(model: Mellow) -> dict[str, Tensor]:
    """The way back: a model's weights (LoRA merged in) as the official code loads them. AudioSet's clip head is zero;
    neither the official model nor ours reads it."""
    shapes = official_shapes(model.module)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items() if ".htsat.head." in name}
    tensors |= front_end(model.module.encoder) | attention_masks(model.module.encoder)
    thirds: dict[str, list[Tensor]] = {}
    for name, value in checkpoint.merged_state_dict(model.module).items():
        official, _ = official_name(name)
        thirds.setdefault(official, []).append(value)
    tensors |= {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in thirds.items()}
    return tensors | {HEAD: tensors[EMBEDDING]}


def release(model: Mellow, ckpt: Path) -> None:
    """Write a model as the official code reads it: its whole state dict in one file.

    Raises:
        DataError: if it cannot be written.
    """
    tensors = {name: value.detach().cpu().clone() for name, value in official_state_dict(model).items()}
    checkpoint.write_torch_file(ckpt, tensors)


@torch.no_grad()
def reset_for_training(module: MellowModule, folder: Path, seed: int) -> None:
    """Put a module where the paper's training starts, in place: the encoder stays, the decoder is the base model's, the
    connector is initialised at random (Xavier, zero biases).

    Args:
        module: The converted module.
        folder: SmolLM2-135M as published, in safetensors; read as float32.
        seed: Seed of the connector's weights.
    Raises:
        ModelError: if the folder contains no such decoder.
    """
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.safetensors_files(folder):
        tensors |= load_file(file)
    tensors = {
        name.removeprefix("model."): value.float() for name, value in tensors.items() if name != "lm_head.weight"
    }
    needed = module.decoder.state_dict()
    missing, unexpected = needed.keys() - tensors.keys(), tensors.keys() - needed.keys()
    mismatches = checkpoint.shape_mismatches(tensors, needed)
    checkpoint.check_tensors(folder, missing, unexpected, mismatches, "SmolLM2-135M")
    module.decoder.load_state_dict(tensors)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.connector.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            parameter.fill_(float(name == "layer_norm.weight"))


def released_config(tokenizer_folder: Path) -> dict[str, Any]:
    """Sizes of the model, those of its decoder as the folder of SmolLM2 states them.

    Args:
        tokenizer_folder: Folder of SmolLM2; without config.json the released sizes are taken.
    Raises:
        ModelError: if its config.json is not that of SmolLM2's kind of model.
    """
    path = tokenizer_folder / "config.json"
    if not path.exists():
        return RELEASED
    content = checkpoint.read_config(tokenizer_folder, ("llama",), "SmolLM2")
    stated = LlamaConfig.from_dict(content).to_dict()
    return RELEASED | {"decoder": {name: stated[name] for name in RELEASED["decoder"]}}


def convert(
    source: Path, tokenizer_folder: Path, out: Path, *, template: str = "repaired",
    config: Mapping[str, Any] = RELEASED, fresh_seed: int | None = None,
) -> Mellow:  # fmt: skip
    """Read the official checkpoint and write the folder, which appears only when it is complete.

    Args:
        source: `v0.ckpt` or `v0_s.ckpt`.
        tokenizer_folder: SmolLM2's tokenizer files.
        out: Folder to write; must not exist, or be empty.
        template: Template that the folder names; see `TEMPLATES` of `families/mellow.py`.
        config: Sizes.
        fresh_seed: None keeps the trained weights; a seed starts anew with the decoder of `tokenizer_folder`, see
            `reset_for_training`.
    Returns:
        The model.
    Raises:
        ModelError: see `from_official`; and if the file is no checkpoint or contains code, or `out` is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ModelError(f"{out}: already exists; choose another --out or delete it")
    tokenizer = checkpoint.read_tokenizer(tokenizer_folder, str(config["placeholder"]))
    if tokenizer.token_to_id(END_TOKEN) != config["decoder"]["eos_token_id"]:
        raise ModelError(
            f"{tokenizer_folder}: {END_TOKEN} is not token {config['decoder']['eos_token_id']}; give SmolLM2's"
        )
    module = from_official(_read(source), config, source)
    if fresh_seed is not None:
        reset_for_training(module, tokenizer_folder, fresh_seed)
    model = Mellow(module, config, tokenizer, template=template)
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


def _read(source: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint file, read without running anything in it."""
    tensors = checkpoint.read_torch_file(source)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"{source}: holds {type(tensors).__name__}, not a state dict of tensors; give v0.ckpt itself")
    return tensors


@click.command(help="Convert the released Mellow checkpoint once.")
@click.argument("source", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path), help="Folder with SmolLM2's tokenizer.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--template", default="repaired", show_default=True, type=click.Choice(list(TEMPLATES)),
    help="How prompts are built.",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Start training anew: the decoder of --tokenizer, a new connector.")
@click.option("--seed", default=0, show_default=True, help="Seed of the new connector's weights.")
def main(source: Path, tokenizer: Path, out: Path, template: str, fresh: bool, seed: int) -> None:
    """The command line of this file; exit code 2 for an error in the user's input."""
    try:
        config = released_config(tokenizer)
        model = convert(source, tokenizer, out, template=template, config=config, fresh_seed=seed if fresh else None)
    except EarwiseError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error
    parameters = sum(value.numel() for value in model.module.parameters())
    click.echo(json.dumps({"out": str(out), "parameters": parameters, "template": template}))


if __name__ == "__main__":
    main()
