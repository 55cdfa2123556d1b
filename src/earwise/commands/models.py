"""`earwise models`: the model families with their sizes, limits, and the memory of each use.

The list comes from the table of families and imports neither torch nor transformers; a folder or a user's own model is
measured (`models/memory/measured_sizes.py`).
"""

from typing import Any

import click

from earwise.commands.loading import json_option, open_model, print_json
from earwise.commands.paths import NAME_OR_PATH
from earwise.errors import ModelError

GB = 1e9
DTYPES = ("float32", "bfloat16")


@click.command("models", short_help="List the model families, or describe one: sizes, limits, memory.")
@click.argument("model", type=NAME_OR_PATH, required=False)
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Dtype of the weights for the memory.  [default: as published]"
)
@json_option
def command(model: str | None, dtype: str | None, as_json: bool) -> None:
    """List what `--model` takes by name; or describe MODEL: a family, a checkpoint's folder, or file.py:function.

    \b
    earwise models
    earwise models qwen2_audio
    earwise models runs/r1-aqa/final --json

    Memory is computed, not measured: to answer one prompt about 30 s of audio; to train LoRA (r 16 in the decoder, and
    the connector), or connector and decoder in full, with AdamW at 1024 packed tokens. See
    docs/reference/models.md.
    """
    from earwise.models.memory.describe import describe_families, describe_model
    from earwise.models.memory.lookup import find_sizes

    if model is None:
        families = describe_families(dtype)
        if as_json:
            print_json(families)
        else:
            _print_families(families)
        return
    _refuse_server(model)
    family, published = find_sizes(model, open_model)
    rows = [describe_model(family, sizes, dtype) for sizes in published]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        _print_model(row)
    click.echo(_free_memory_line())


def _refuse_server(model: str) -> None:
    from earwise.engine.remote.address import is_remote

    if is_remote(model):
        raise ModelError(f"{model}: a server does not tell how large its model is; `earwise doctor` asks what it can")


def _print_families(families: dict[str, dict[str, Any]]) -> None:
    from earwise.models import registry

    click.echo(f"{'--model':21}{'published as':37}{'size':>7}{'clips':>9}{'tokens':>8}   memory, GB: {'answer':>6}"
               f"{'LoRA':>7}{'full':>7}")  # fmt: skip
    for name, family in families.items():
        click.echo(f"{name:21}{family['about']}")
        if registry.get(name).variant_of:
            continue
        for row in family["published"]:
            answer, lora, full = (row["memory_gb"][use]["peak"] for use in ("answer", "lora", "full"))
            click.echo(
                f"{'':21}{row['weights']:37}{row['parameters']['all'] / 1e9:6.2f}B{_length(row['max_audio_s']):>9}"
                f"{row['audio_tokens_per_s']:6.1f}/s   {'':12}{answer:6.1f}{lora:7.1f}{full:7.1f}"
            )
    click.echo("\nA folder with a trained model, file.py:function and a server (URL#NAME) work too; more about "
               "one: earwise models NAME")  # fmt: skip


def _print_model(row: dict[str, Any]) -> None:
    parts = ", ".join(f"{part} {count / 1e6:.1f}M" for part, count in row["parameters"].items() if part != "all")
    shape = row["decoder"]
    window = f", whole windows of {row['window_s']:g} s however short the clip" if row["window_s"] else ""
    click.echo(f"{row['family']}  {row['weights']}  {row['parameters']['all'] / 1e9:.2f}B parameters: {parts}")
    click.echo(f"  clips     up to {_length(row['max_audio_s'])} at {row['sample_rate']} Hz, "
               f"{row['audio_tokens_per_s']:g} tokens a second{window}")  # fmt: skip
    click.echo(f"  decoder   {shape['layers']} layers, {shape['width']} wide, {shape['heads']} heads over "
               f"{shape['kv_heads']}, vocabulary {shape['vocabulary']}")  # fmt: skip
    click.echo(f"  LoRA      {', '.join(shape['lora_target_modules'])}")
    click.echo(f"  memory    GB, weights in {row['dtype']}")
    for use, memory in row["memory_gb"].items():
        parts = ", ".join(f"{part} {size:.2f}" for part, size in memory.items() if part != "peak")
        click.echo(f"    {use:20}{memory['peak']:7.1f}   {parts}")


def _length(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _free_memory_line() -> str:
    from earwise.models.memory.estimate import free_memory

    free_bytes = free_memory()
    if free_bytes is None:
        return "this machine: free memory is not known here"
    return f"this machine: {free_bytes / GB:.1f} GB free"
