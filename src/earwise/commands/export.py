"""`earwise export`: a model to hand on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from earwise.commands.loading import json_option, model_option, note, open_model, refuse_existing, result
from earwise.errors import DataError, ModelError

if TYPE_CHECKING:
    from earwise.models.base import AudioLM
    from earwise.models.lora_checkpoint import Adapter

DTYPES = ("float32", "bfloat16", "float16")
OFFICIAL = {  # family -> the file that its official code loads, and who writes it
    "salmonn": ("salmonn.pth", "earwise.models.convert.salmonn:release"),
    "mellow": ("mellow.ckpt", "earwise.models.convert.mellow:release"),
}
TEXT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the embedded model's decoder, as others call it


@click.command("export", short_help="Write a model, or its LoRA alone, for use elsewhere.")
@model_option
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder to write; must not hold anything yet."
)
@click.option(
    "--format",
    "form",
    default="merged",
    show_default=True,
    type=click.Choice(("merged", "peft", "official")),
    help="All weights, LoRA merged in; LoRA alone, as PEFT writes it; what SALMONN's or Mellow's own code loads.",
)
@click.option(
    "--dtype", default=None, type=click.Choice(DTYPES), help="Of the weights.  [default: as the model is loaded]"
)
@click.option(
    "--names",
    default="published",
    show_default=True,
    type=click.Choice(("published", "transformers5")),
    help="Of parameters in a peft export: as in released checkpoints (vLLM, transformers 4), or as in transformers 5.",
)
@click.option("--base", default=None, help="Base model that a peft export names.  [default: where training started]")
@json_option
def command(model: str, out: Path, form: str, dtype: str | None, names: str, base: str | None, as_json: bool) -> None:
    """Write MODEL to a folder that `--model FOLDER` takes, and that others can read without earwise.

    \b
    earwise export --model runs/r1-aqa --out my-model
    earwise ask clip.ogg "What is it?" --model my-model
    earwise export --model runs/r1-aqa --out my-lora --format peft --base Qwen/Qwen2-Audio-7B-Instruct

    merged holds all weights: for families of transformers a checkpoint that its own class (4 and 5) and vLLM read; for
    the embedded model what was trained, and `merged.safetensors` beside it. peft holds adapter_config.json and
    adapter_model.safetensors. official is for the two families whose released code is their own.
    """
    import shutil

    refuse_existing(out)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        if form == "peft":
            facts = _write_adapter(model, part, names, base)
        elif form == "official":
            facts = _write_official(model, part)
        else:
            facts = _write_model(model, part, dtype)
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
        result({"out": str(out), **facts, "files": files})
    else:
        for name, size in files.items():
            click.echo(f"{out / name}  {size / 1e6:.1f} MB")


def _write_model(model: str, folder: Path, dtype: str | None) -> dict[str, str]:
    """All weights, and a model card; returns what is to be said of them."""
    import torch

    from earwise.commands.loading import fetch_base
    from earwise.models import checkpoint

    loaded = open_model(model)
    base = fetch_base(model)
    if dtype is not None and base is None:
        loaded.module.to(getattr(torch, dtype))
    note(f"writing all weights ({dtype or 'as they are'})")
    loaded.save(folder)
    if base is not None:
        _write_whole(loaded, folder, dtype or "float32", base)
    elif (folder / "config.json").exists():
        checkpoint.older_config(folder)
    (folder / "README.md").write_text(_card(loaded, model, folder, dtype or "float32"), encoding="utf-8")
    return {"model": loaded.name, "revision": loaded.revision}


def _write_official(model: str, folder: Path) -> dict[str, str]:
    """The one file that a family's own released code loads; returns what is to be said of it."""
    from earwise.config.resolve import entry
    from earwise.models.detect import checkpoint

    family = checkpoint(Path(model))[0] if Path(model).is_dir() else model
    if family not in OFFICIAL:
        raise ModelError(
            f"{model}: the family {family} has no file of its own kind (that is for {' and '.join(OFFICIAL)}); "
            "use --format merged"
        )
    name, writer = OFFICIAL[family]
    loaded = open_model(model)
    note(f"writing {name}")
    entry({family: writer}, family, "official format")(loaded, folder / name)
    return {"model": loaded.name, "revision": loaded.revision}


def _write_whole(model: "AudioLM", folder: Path, dtype: str, base: Path) -> None:
    """For a model whose `save` holds only what was trained: all parameters under `encoder.`, `connector.`, `decoder.`,
    tokenizer and sizes."""
    import shutil
    from importlib.metadata import version

    import torch
    from safetensors.torch import save_file

    from earwise.models import checkpoint

    kind = getattr(torch, dtype)
    state = {
        name: value.to(kind).contiguous().cpu()
        for name, value in checkpoint.merged_state(model.module).items()
        if not name.startswith("head.")  # the embedding table once more
    }
    save_file(
        state,
        folder / "merged.safetensors",
        metadata={"family": model.name, "revision": model.revision, "earwise": version("earwise")},
    )
    for name in ("encoder.json", "decoder.json", "tokenizer.json"):
        shutil.copyfile(base / name, folder / name)


def _write_adapter(model: str, folder: Path, names: str, base: str | None) -> dict[str, str]:
    """LoRA alone, no model is loaded; returns what is to be said of it."""
    from dataclasses import replace

    from earwise.files import write_json
    from earwise.models import lora_checkpoint
    from earwise.models.detect import checkpoint

    family, weights = checkpoint(Path(model)) if Path(model).is_dir() else (model, None)
    if family.startswith("embedded"):
        found, family, names = _embedded_adapter(family, weights), "embedded", "published"
        note("the connector is no part of it: what hears is in trained.safetensors of --format merged")
    elif weights is None:
        raise ModelError(f"{model}: a family has no LoRA of its own; name the folder of a run that trained one")
    else:
        found = lora_checkpoint.kept(weights)
    if names == "published":
        found = lora_checkpoint.renamed(
            found, lora_checkpoint.PUBLISHED.get(family, ()), drop_others=family == "embedded"
        )
    found = replace(found, base=base or found.base)
    lora_checkpoint.write(folder, found)
    write_json(folder / "earwise.json", {"family": family})
    (folder / "README.md").write_text(_adapter_card(family, found.base), encoding="utf-8")
    return {"model": family, "base": found.base}


def _embedded_adapter(family: str, weights: Path | None) -> "Adapter":
    """What the embedded model's stages added to its text model, all in one.

    Raises:
        ModelError: if its decoder is not that text model with something added, so that LoRA alone would be another's.
    """
    from earwise.models.embedded import preload
    from earwise.models.lora_checkpoint import Adapter
    from earwise.models.parts.lora import first_ranks

    if family == "embedded-blank":
        raise ModelError(
            f"{family}: nothing of it was trained, it has no LoRA; name the folder of a run that trained one"
        )
    path = (weights or preload.ASSETS) / "trained.safetensors"
    state, marks = preload.tensors(path)
    added = {name: value for name, value in state.items() if ".lora_" in name}
    own = [name for name in state if name.startswith("decoder.") and name not in added]
    if own:
        raise ModelError(
            f"{path}: {len(own)} weights of its decoder were drawn at random or trained in full, so that LoRA over "
            f"{TEXT_MODEL} would be another model; use --format merged"
        )
    if family == "embedded-aligned":
        added = first_ranks(added, int(marks[preload.ALIGNED_RANK]))
    return Adapter(added, {}, TEXT_MODEL)


def _adapter_card(family: str, base: str) -> str:
    from importlib.metadata import version

    return f"""---
library_name: peft
base_model: {base}
---
LoRA of an audio-language model of the family `{family}`, exported by earwise {version("earwise")}; alpha equals r, so
that B @ A is added as it stands. Read it with PEFT's `PeftModel.from_pretrained`, vLLM's `--lora-modules`, or
`earwise ask clip.ogg "What is it?" --model .` (base_model_name_or_path must then be a folder here).
"""


def _class(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__name__}"


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
`{_class(model.module.connector)}`, and `tokenizer.json` is read by the `tokenizers` library:

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
