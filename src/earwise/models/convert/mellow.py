"""The released Mellow checkpoint (`v0.ckpt`, a pickled state dict) -> the folder that `mellow.load` reads.

    python -m earwise.models.convert.mellow v0.ckpt --tokenizer SMOLLM2_FOLDER --out DIR [--template compat] [--fresh]

Run once, by hand. `--fresh` keeps the encoder only, for training as the paper does. The pickle is read by torch's
restricted reader, so it cannot run code. Every key is accounted for: it becomes a tensor of ours (`origin`), is fixed
and checked (the filters of the front end, the tied head), or is known and left out (attention masks that the shape
decides; AudioSet's clip head, which Mellow does not read).

Source: papers/mellow.md section 2; names and shapes of soham97/mellow@349f9b2.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file
from torch import Tensor

from earwise.errors import EarwiseError, ModelError
from earwise.models import checkpoint
from earwise.models.families.mellow import END, RELEASED, TEMPLATES, WHAT, Mellow, MellowModule, filled
from earwise.models.parts import htsat

HTSAT = "audio_encoder.base.htsat."
HEAD, EMBEDDING = "caption_decoder.lm.lm_head.weight", "caption_decoder.lm.model.embed_tokens.weight"
# Ours -> official, in this order.
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
STACKED = ("query", "key", "value")  # thirds of one official matrix
FRONT_END = {  # how far released filters may be from ours: float32 rounding of other code
    f"{HTSAT}spectrogram_extractor.stft.conv_real.weight": 1e-5,
    f"{HTSAT}spectrogram_extractor.stft.conv_imag.weight": 1e-5,
    f"{HTSAT}logmel_extractor.melW": 1e-7,
}


def origin(name: str) -> tuple[str, int | None]:
    """The official name of one of our tensors, and which third of it ours is (None: all of it).

    >>> origin("encoder.clap.layers.0.blocks.1.attention.self.key.bias")
    ('audio_encoder.base.htsat.layers.0.blocks.1.attn.qkv.bias', 1)
    """
    part = next((at for at, kind in enumerate(STACKED) if f".attention.self.{kind}." in name), None)
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name, part


def official_shapes(module: MellowModule) -> dict[str, tuple[int, ...]]:
    """Every key of the official state dict of such a model, with its shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in module.state_dict().items():
        official, part = origin(name)
        shapes[official] = tuple(value.shape) if part is None else (len(STACKED) * value.shape[0], *value.shape[1:])
    clap, classes = module.encoder.clap, module.encoder.classes
    for stage, (layer, (height, width)) in enumerate(zip(clap.layers, clap.input_resolutions, strict=True)):
        for number, block in enumerate(layer.blocks):
            if number % 2 and min(height, width) > block.window_size:  # shifted windows that do not see each other
                places = block.window_size**2
                shapes[f"{HTSAT}layers.{stage}.blocks.{number}.attn_mask"] = (height * width // places, places, places)
    shapes |= {f"{HTSAT}head.weight": (classes, classes), f"{HTSAT}head.bias": (classes,)}
    shapes |= {name: tuple(value.shape) for name, value in front_end(module.encoder).items()}
    return shapes | {HEAD: shapes[EMBEDDING]}


def front_end(encoder: htsat.Htsat) -> dict[str, Tensor]:
    """The filters that the official front end convolves with, by formula: windowed cosines and negative sines, mel."""
    bins, at = torch.arange(htsat.N_FFT // 2 + 1)[:, None], torch.arange(htsat.N_FFT)
    angle = 2 * math.pi / htsat.N_FFT * (bins * at % htsat.N_FFT).double()
    window = encoder.window.double()
    waves = (window * angle.cos(), -window * angle.sin())
    values = (*(wave[:, None].float() for wave in waves), encoder.mel)
    return dict(zip(FRONT_END, values, strict=True))


def converted(official: Mapping[str, Tensor], config: Mapping[str, Any], source: Path) -> MellowModule:
    """Our module with the official weights.

    Args:
        official: State dict under the official names, or all of them behind `module.`.
        config: As `mellow.RELEASED`.
        source: Named in errors.
    Raises:
        ModelError: if keys are missing or unexpected, shapes differ, the front end is another one, or the head is not
            the embedding table.
    """
    if official and all(name.startswith("module.") for name in official):
        official = {name.removeprefix("module."): value for name, value in official.items()}
    with torch.device("meta"):
        module = MellowModule(config)
    wanted = official_shapes(module)
    misshapen = [
        (name, tuple(value.shape), wanted[name])
        for name, value in official.items()
        if name in wanted and tuple(value.shape) != wanted[name]
    ]
    missing, unexpected = wanted.keys() - official.keys(), official.keys() - wanted.keys()
    checkpoint.check_keys(source, missing, unexpected, checkpoint.misshapen(misshapen), WHAT)
    for name, value in front_end(module.encoder).items():
        off = float((official[name].float() - value).abs().max())
        if not off <= FRONT_END[name]:
            raise ModelError(f"{source}: {name} is off by {off:.2g}; this model listens through another front end")
    if not torch.equal(official[HEAD], official[EMBEDDING]):
        raise ModelError(f"{source}: {HEAD} is not the embedding table; only tied weights can be converted")
    state = {}
    for name in module.state_dict():
        source_name, part = origin(name)
        whole = official[source_name]
        state[name] = (whole if part is None else whole.chunk(len(STACKED))[part]).clone()
    return filled(config, state, source)


def official_state(model: Mellow) -> dict[str, Tensor]:
    """The way back: a model's weights (LoRA merged in) as the official code loads them. AudioSet's clip head is zero;
    neither the official model nor ours reads it."""
    ours = checkpoint.merged_state(model.module)
    shapes = official_shapes(model.module)
    state = {name: torch.zeros(shape) for name, shape in shapes.items() if ".htsat.head." in name}
    state |= front_end(model.module.encoder) | attention_masks(model.module.encoder)
    parts: dict[str, list[Tensor]] = {}
    for name, value in ours.items():
        official, _ = origin(name)
        parts.setdefault(official, []).append(value)
    state |= {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in parts.items()}
    return state | {HEAD: state[EMBEDDING]}


def release(model: Mellow, ckpt: Path) -> None:
    """Write a model as the official code reads it: its whole state dict in one file.

    Raises:
        DataError: if it cannot be written.
    """
    state = {name: value.detach().cpu().clone() for name, value in official_state(model).items()}
    checkpoint.write_torch(ckpt, state)


@torch.no_grad()
def begin_anew(module: MellowModule, folder: Path, seed: int) -> None:
    """Put a module where the paper's training starts, in place: the encoder stays, the decoder is the base model's, the
    connector is drawn anew (Xavier, zero biases).

    Args:
        module: Converted.
        folder: SmolLM2-135M as published, in safetensors; read as float32.
        seed: Of the connector.
    Raises:
        ModelError: if the folder holds no such decoder.
    """
    state: dict[str, Tensor] = {}
    for shard in checkpoint.safetensors_shards(folder):
        state |= load_file(shard)
    state = {name.removeprefix("model."): value.float() for name, value in state.items() if name != "lm_head.weight"}
    wanted = module.decoder.state_dict()
    misshapen = [
        (name, tuple(value.shape), tuple(wanted[name].shape))
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    missing, unexpected = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    checkpoint.check_keys(folder, missing, unexpected, checkpoint.misshapen(misshapen), "SmolLM2-135M")
    module.decoder.load_state_dict(state)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.connector.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            parameter.fill_(float(name == "layer_norm.weight"))


def convert(
    source: Path, tokenizer_folder: Path, out: Path, *, template: str = "repaired",
    config: Mapping[str, Any] = RELEASED, fresh_seed: int | None = None,
) -> Mellow:  # fmt: skip
    """Read the official checkpoint and write the folder, all or nothing.

    Args:
        source: `v0.ckpt` or `v0_s.ckpt`.
        tokenizer_folder: SmolLM2's tokenizer files.
        out: Must not exist, or be empty.
        template: What the folder says of itself; see `mellow.TEMPLATES`.
        config: Sizes.
        fresh_seed: None keeps what was trained; a seed starts anew with the decoder of `tokenizer_folder`, see
            `begin_anew`.
    Returns:
        The model.
    Raises:
        ModelError: see `converted`; and if the file is no checkpoint or holds code, or `out` holds something.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ModelError(f"{out}: already exists; choose another --out or delete it")
    tokenizer = checkpoint.tokenizer(tokenizer_folder, str(config["placeholder"]))
    if tokenizer.token_to_id(END) != config["decoder"]["eos_token_id"]:
        raise ModelError(f"{tokenizer_folder}: {END} is not token {config['decoder']['eos_token_id']}; give SmolLM2's")
    module = converted(_read(source), config, source)
    if fresh_seed is not None:
        begin_anew(module, tokenizer_folder, fresh_seed)
    model = Mellow(module, config, tokenizer, template=template)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
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
    state = checkpoint.read_torch(source)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{source}: holds {type(state).__name__}, not a state dict of tensors; give v0.ckpt itself")
    return state


def attention_masks(encoder: htsat.Htsat) -> dict[str, Tensor]:
    masks = {}
    for stage, (layer, (height, width)) in enumerate(
        zip(encoder.clap.layers, encoder.clap.input_resolutions, strict=True)
    ):
        for number, block in enumerate(layer.blocks):
            if number % 2 and min(height, width) > block.window_size:
                masks[f"{HTSAT}layers.{stage}.blocks.{number}.attn_mask"] = block.get_attn_mask(
                    height, width, torch.float32, "cpu"
                )
    return masks


@click.command(help="Convert the released Mellow checkpoint once.")
@click.argument("source", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path), help="Folder with SmolLM2's tokenizer.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--template", default="repaired", show_default=True, type=click.Choice(list(TEMPLATES)))
@click.option("--fresh", is_flag=True, help="Start training anew: the decoder of --tokenizer, a new connector.")
@click.option("--seed", default=0, show_default=True, help="Of the new connector.")
def main(source: Path, tokenizer: Path, out: Path, template: str, fresh: bool, seed: int) -> None:
    """The command line of this file; exit code 2 for the user's input."""
    try:
        model = convert(source, tokenizer, out, template=template, fresh_seed=seed if fresh else None)
    except EarwiseError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error
    parameters = sum(value.numel() for value in model.module.parameters())
    click.echo(json.dumps({"out": str(out), "parameters": parameters, "template": template}))


if __name__ == "__main__":
    main()
