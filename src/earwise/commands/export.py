"""`earwise export` and `earwise models`: a model to hand on, and which families there are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earwise.commands.loading import json_option, model_option, note, open_model, refuse_existing, result
from earwise.errors import DataError

if TYPE_CHECKING:
    from earwise.models.base import AudioLM

DTYPES = ("float32", "bfloat16", "float16")


@click.command("export", short_help="Write a model in safetensors, with a model card.")
@model_option
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder to write; must not hold anything yet."
)
@click.option(
    "--merged/--no-merged", default=True, show_default=True, help="Also write all weights in one file, LoRA merged in."
)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="Of the merged weights.")
@json_option
def command(model: str, out: Path, merged: bool, dtype: str, as_json: bool) -> None:
    """Write MODEL to a folder that `--model FOLDER` takes, and that others can read without earwise.

    \b
    earwise export --model runs/r1-aqa/final --out my-model
    earwise ask clip.ogg "What is it?" --model my-model

    Holds `trained.safetensors` (what was trained), `earwise.json` (the family), `merged.safetensors` (all weights), the
    tokenizer and sizes, and README.md, the model card.
    """
    import shutil

    refuse_existing(out)
    loaded = open_model(model)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        loaded.save(part)
        if merged:
            note(f"writing all weights ({dtype})")
            _write_merged(loaded, part, dtype)
        (part / "README.md").write_text(_card(loaded, model, part, dtype), encoding="utf-8")
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except Exception as error:
        if isinstance(error, OSError) or "os error" in str(error):  # safetensors' own class for the same
            raise DataError(f"{out}: cannot be written ({error}); free some space or choose another folder") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    if as_json:
        result({"out": str(out), "model": loaded.name, "revision": loaded.revision, "files": files})
    else:
        for name, size in files.items():
            click.echo(f"{out / name}  {size / 1e6:.1f} MB")


def _write_merged(model: "AudioLM", folder: Path, dtype: str) -> None:
    """All parameters under `encoder.`, `connector.`, `decoder.`; tokenizer and sizes where there are such."""
    import shutil
    from importlib.metadata import version

    import torch
    from safetensors.torch import save_file

    from earwise.commands.loading import fetch_base

    kind = getattr(torch, dtype)
    state = {name: value.detach().to(kind).contiguous().cpu() for name, value in model.module.state_dict().items()}
    save_file(
        state,
        folder / "merged.safetensors",
        metadata={"family": model.name, "revision": model.revision, "earwise": version("earwise")},
    )
    if base := fetch_base(str(folder)):
        for name in ("encoder.json", "decoder.json", "tokenizer.json"):
            shutil.copyfile(base / name, folder / name)


def _card(model: "AudioLM", source: str, folder: Path, dtype: str) -> str:
    """The model card, from what the model says of itself."""
    from importlib.metadata import version

    counts = {
        group: sum(p.numel() for name, p in model.module.named_parameters() if name.startswith(prefixes))
        for group, prefixes in model.groups.items()
    }
    family = json.loads((folder / "earwise.json").read_text(encoding="utf-8"))["family"]
    parts = "\n".join(f"| {group} | {count / 1e6:.1f}M |" for group, count in counts.items())
    merged = ""
    if (folder / "merged.safetensors").exists():
        merged = f"""
## Without earwise

`merged.safetensors` holds every weight ({dtype}) as `encoder.*`, `connector.*` and `decoder.*`; nothing else needs to
be added to them. In the embedded family the encoder is transformers' `WhisperEncoder` (sizes in `encoder.json`), the
decoder its `LlamaModel` (`decoder.json`; the output head is the embedding table), the connector
`earwise.models.parts.projector.LayerMix`, and `tokenizer.json` is read by the `tokenizers` library:

```python
from safetensors.torch import load_file
state = load_file("merged.safetensors")
decoder = {{name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}}
```
"""
    return f"""---
library_name: earwise
pipeline_tag: audio-text-to-text
---
# {model.name}

An audio-language model of the family `{family}`, exported by earwise {version("earwise")} from `{Path(source).name}`
(weights {model.revision}). It hears up to {model.spec.max_s:g} s at {model.spec.sample_rate} Hz, about
{model.spec.tokens_per_s:g} tokens a second.

| part | parameters |
|---|---|
{parts}

## Use

```
pip install earwise
earwise ask clip.ogg "What do you hear?" --model .
```
```python
from earwise.engine.local import LocalEngine
from earwise.models.base import load
engine = LocalEngine(load("."))
```
{merged}
## Limits

Measure it on sounds of your own before you rely on it (`earwise evaluate`, with its blind controls). Weights keep the
licences of the parts they were made from and of the data they were trained on.
"""


@click.command("models", short_help="List the model families.")
@json_option
def models(as_json: bool) -> None:
    """List what `--model` takes by name; a folder with a trained model and module:function work as well."""
    from earwise.models.base import MODELS

    rows = {name: {"target": target, "about": _about(target)} for name, target in MODELS.items()}
    if as_json:
        result(rows)
        return
    for name, row in rows.items():
        click.echo(f"{name:18} {row['about']}")


def _about(target: str) -> str:
    """First line of what the loader says of itself; why not, if its module is not there."""
    import importlib

    module, _, function = target.partition(":")
    try:
        words = getattr(importlib.import_module(module), function).__doc__ or ""
    except (ImportError, AttributeError) as error:
        return f"not available here ({error})"
    return " ".join(words.strip().split("\n\n")[0].split())
