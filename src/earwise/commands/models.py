"""`earwise models`: which families there are, how large, what they hear, and how much memory each use of them needs.

The list comes from a declared table and imports neither torch nor transformers; a folder or a model of one's own is
measured (`models/shapes.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.loading import json_option, open_model, result
from earwise.errors import ModelError

if TYPE_CHECKING:
    from earwise.models.memory.estimate import Memory
    from earwise.models.memory.published_sizes import Sizes

GB = 1e9
DTYPES = ("float32", "bfloat16")


@click.command("models", short_help="List the model families, or tell of one: sizes, limits, memory.")
@click.argument("model", required=False)
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the weights, for the memory. [default: as published]")
@json_option
def command(model: str | None, dtype: str | None, as_json: bool) -> None:
    """List what `--model` takes by name; or tell of MODEL: a family, a checkpoint's folder, or module:function.

    \b
    earwise models
    earwise models qwen2_audio
    earwise models runs/r1-aqa/final --json

    Memory is computed, not measured: to answer one prompt about 30 s of sound; to train LoRA (r 16 in the decoder, and
    the connector), or connector and decoder in full, by AdamW at 1024 packed tokens. See docs/models.md.
    """
    if model is None:
        _list(dtype, as_json)
        return
    found = [_row(sizes, dtype) for sizes in sizes_of(model)]
    if as_json:
        result(found)
        return
    for row in found:
        _tell(row)
    click.echo(_machine())


def sizes_of(model: str) -> "tuple[Sizes, ...]":
    """Sizes of a family's published models, of a checkpoint's folder, or of a model that has to be loaded.

    Raises:
        ModelError: if there is no such model, or it does not say how large it is.
    """
    from earwise.engine.remote.address import is_remote
    from earwise.models.memory import published_sizes as sizes

    if Path(model).is_dir():
        from earwise.models.memory import config_shapes

        return (config_shapes.of_folder(Path(model)),)
    if found := sizes.of_family(model):
        return found
    if is_remote(model):
        raise ModelError(f"{model}: a server does not tell how large its model is; `earwise doctor` asks what it can")
    if ":" not in model:
        raise ModelError(
            f"model {model!r} is none of {', '.join(sizes.FAMILIES)}; or give a checkpoint folder or module:function"
        )
    from earwise.models.memory import config_shapes

    return (config_shapes.of_model(open_model(model)),)


def uses(sizes: "Sizes", dtype: str | None) -> "dict[str, Memory]":
    """Memory of the usual uses of a model."""
    from earwise.config.stages import TrainableConfig
    from earwise.models.memory import estimate as memory

    lora, full = TrainableConfig(), TrainableConfig(decoder="full")
    plain = {name: memory.training(sizes, how, dtype=dtype) for name, how in (("lora", lora), ("full", full))}
    again = {
        f"{name}, checkpointed": memory.training(sizes, how, dtype=dtype, checkpoint=True)
        for name, how in (("lora", lora), ("full", full))
    }
    return {"answer": memory.answering(sizes, dtype=dtype)} | plain | again


def _row(sizes: "Sizes", dtype: str | None) -> dict[str, Any]:
    says = sizes.says
    return {
        "family": sizes.family,
        "weights": sizes.weights,
        "dtype": dtype or sizes.dtype,
        "parameters": {
            "all": sizes.parameters, "encoder": sizes.encoder, "connector": sizes.connector, "decoder": sizes.decoder,
        },
        "sample_rate": sizes.sample_rate,
        "max_audio_s": round(sizes.max_s, 2),
        "audio_tokens_per_s": sizes.tokens_per_s,
        "window_s": sizes.window_s,
        "decoder": {
            "layers": says.layers, "width": says.width, "heads": says.heads, "kv_heads": says.kv_heads,
            "vocabulary": says.vocab,
        },
        "memory_gb": {
            use: {"peak": round(memory.peak / GB, 2)}
            | {part: round(size / GB, 3) for part, size in memory.parts.items()}
            for use, memory in uses(sizes, dtype).items()
        },
    }  # fmt: skip


def _list(dtype: str | None, as_json: bool) -> None:
    from earwise.models.memory import published_sizes as sizes

    families: dict[str, dict[str, Any]] = {
        name: {"about": about, "published": [_row(one, dtype) for one in sizes.of_family(name)]}
        for name, about in sizes.FAMILIES.items()
    }
    if as_json:
        result(families)
        return
    click.echo(f"{'--model':17}{'published as':37}{'size':>7}{'hears':>9}{'tokens':>8}   memory, GB: {'answer':>6}"
               f"{'LoRA':>7}{'full':>7}")  # fmt: skip
    for name, family in families.items():
        click.echo(f"{name:17}{family['about']}")
        if name in sizes.ALIASES:
            continue
        for row in family["published"]:
            need = row["memory_gb"]
            peaks = [need[use]["peak"] for use in ("answer", "lora", "full")]
            click.echo(
                f"{'':17}{row['weights']:37}{row['parameters']['all'] / 1e9:6.2f}B{_length(row['max_audio_s']):>9}"
                f"{row['audio_tokens_per_s']:6.1f}/s   {'':12}{peaks[0]:6.1f}{peaks[1]:7.1f}{peaks[2]:7.1f}"
            )
    click.echo("\nA folder with a trained model, module:function and a server (URL#NAME) work as well; more of one: "
               "earwise models NAME")  # fmt: skip


def _tell(row: dict[str, Any]) -> None:
    parts = ", ".join(f"{part} {count / 1e6:.1f}M" for part, count in row["parameters"].items() if part != "all")
    shape = row["decoder"]
    window = f", whole windows of {row['window_s']:g} s however short the clip" if row["window_s"] else ""
    click.echo(f"{row['family']}  {row['weights']}  {row['parameters']['all'] / 1e9:.2f}B parameters: {parts}")
    click.echo(f"  hears     up to {_length(row['max_audio_s'])} at {row['sample_rate']} Hz, "
               f"{row['audio_tokens_per_s']:g} tokens a second{window}")  # fmt: skip
    click.echo(f"  decoder   {shape['layers']} layers, {shape['width']} wide, {shape['heads']} heads over "
               f"{shape['kv_heads']}, vocabulary {shape['vocabulary']}")  # fmt: skip
    click.echo(f"  memory    GB, weights in {row['dtype']}")
    for use, need in row["memory_gb"].items():
        shown = ", ".join(f"{part} {size:.2f}" for part, size in need.items() if part != "peak")
        click.echo(f"    {use:20}{need['peak']:7.1f}   {shown}")


def _length(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _machine() -> str:
    from earwise.models.memory.estimate import free_memory

    free = free_memory()
    return "this machine: free memory is not known here" if free is None else f"this machine: {free / GB:.1f} GB free"
