"""`earwise export`: write a model for use elsewhere; the writers are in `models/export.py`."""

from pathlib import Path
from typing import Any

import click

from earwise.commands.loading import json_option, model_option, note, print_json, refuse_existing
from earwise.commands.paths import FILE
from earwise.errors import ModelError


@click.command("export", short_help="Write a model, or its LoRA alone, for use elsewhere.")
@model_option
@click.option("--out", "-o", required=True, type=FILE, help="Folder to write; must not hold anything yet.")
@click.option(
    "--format",
    default="merged",
    show_default=True,
    type=click.Choice(("merged", "peft", "official")),
    help="All weights, LoRA merged in; LoRA alone, as PEFT writes it; what SALMONN's or Mellow's own code loads.",
)
@click.option(
    "--dtype",
    default=None,
    type=click.Choice(("float32", "bfloat16", "float16")),
    help="Dtype of the weights.  [default: as the model is loaded]",
)
@click.option(
    "--names",
    default="published",
    show_default=True,
    type=click.Choice(("published", "transformers5")),
    help="Parameter names in a peft export: as in released checkpoints (vLLM, transformers 4), or as in "
    "transformers 5.",
)
@click.option("--base", default=None, help="Base model that a peft export names.  [default: where training started]")
@json_option
def command(model: str, out: Path, as_json: bool, names: Any, **options: Any) -> None:
    """Write MODEL to a folder that `--model FOLDER` takes, and that others can read without earwise.

    \b
    earwise export --model runs/r1-aqa --out my-model
    earwise ask clip.ogg "What is it?" --model my-model
    earwise export --model runs/r1-aqa --out my-lora --format peft --base Qwen/Qwen2-Audio-7B-Instruct

    merged holds all weights: for families of transformers a checkpoint that its own class (4 and 5) and vLLM read; for
    the embedded model what was trained, and `merged.safetensors` beside it. peft holds adapter_config.json and
    adapter_model.safetensors. official is for the two families whose released code is their own.
    """
    from earwise.engine.remote.address import is_remote
    from earwise.models.export import ExportOptions, export

    refuse_existing(out)
    if is_remote(model):
        raise ModelError(f"{model}: the weights of a model on a server are not here; name a folder or a family")
    facts = export(model, out, ExportOptions(parameter_names=names, **options), note)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    if as_json:
        print_json({"out": str(out), **facts, "files": files})
    else:
        for name, size in files.items():
            click.echo(f"{out / name}  {size / 1e6:.1f} MB")
