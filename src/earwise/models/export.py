"""Exporting a model for use elsewhere: all weights, LoRA alone as PEFT writes it, or the file of the official code.

`export` is what `earwise export` calls. The folder appears only when it is complete.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file

from earwise.config.resolve import resolve_entry
from earwise.errors import ConfigError, DataError, ModelError
from earwise.files import remove_abandoned, temporary_path, write_json
from earwise.models import base, checkpoint, hub, lora_checkpoint, registry
from earwise.models.base import AudioLM
from earwise.models.detect import MARKER, PEFT_CONFIG, family_of, fetch_published, find_checkpoint
from earwise.models.embedded import base_weights, preload
from earwise.models.lora_checkpoint import PeftAdapter
from earwise.models.parts.lora import first_ranks
from earwise.models.precision import lora_beside

Format = Literal["merged", "peft", "official"]
ParameterNames = Literal["published", "transformers5"]
FORMATS = get_args(Format)
PARAMETER_NAMES = get_args(ParameterNames)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MERGED_FILE = "merged.safetensors"
TEXT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Name of the embedded model's decoder on model hubs."""
ADAPTER_CARD = """---
library_name: peft
base_model: {base}
---
LoRA of an audio-language model of the family `{family}`, exported by earwise {version}; alpha equals r, so
that B @ A is added as it stands. Read it with PEFT's `PeftModel.from_pretrained`, vLLM's `--lora-modules`, or
`earwise ask clip.ogg "What is it?" --model .` (base_model_name_or_path must then be a folder here).
"""
MODEL_CARD = """---
library_name: earwise
pipeline_tag: audio-text-to-text
---
# {name}

An audio-language model of the family `{family}`, exported by earwise {version} from `{source}`
(weights {revision}). It takes clips of up to {max_s:g} s at {sample_rate} Hz, about
{tokens_per_s:g} tokens a second.

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
MERGED_SECTION = """
## Without earwise

`merged.safetensors` holds every weight ({dtype}) as `encoder.*`, `connector.*` and `decoder.*`; nothing else needs to
be added to them. In the embedded family the encoder is transformers' `WhisperEncoder` (sizes in `encoder.json`), the
decoder its `LlamaModel` (`decoder.json`; the output head is the embedding table), the connector
`{connector}`, and `tokenizer.json` is read by the `tokenizers` library:

```python
from safetensors.torch import load_file
state = load_file("merged.safetensors")
decoder = {{name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}}
```
"""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        format: `merged` writes all weights with LoRA merged in, `peft` LoRA alone, `official` the file that the
            released code of SALMONN or Mellow loads.
        dtype: Dtype of merged weights, a key of `DTYPES`; None keeps the one that the model is loaded in.
        parameter_names: Parameter names in a `peft` export: `published` as in released checkpoints (vLLM,
            transformers 4), or `transformers5`.
        base: Base model that a `peft` export names; None takes the one that training started from.
    """

    format: Format = "merged"
    dtype: str | None = None
    parameter_names: ParameterNames = "published"
    base: str | None = None


def export(
    model: str, out: Path, options: ExportOptions = ExportOptions(), notify: Callable[[str], None] = lambda _: None
) -> dict[str, str]:
    """Write a model to a folder that `--model FOLDER` takes, and that other programs read without earwise.

    Args:
        model: Name of a family or of a model on a hub, a folder with a checkpoint or a training run, or
            `module:function`.
        out: Folder to write; it may exist, but must be empty.
        options: Format and its details.
        notify: Called with lines about progress.
    Returns:
        Facts about the export: `model`, and `revision` of its weights or the `base` of its LoRA.
    Raises:
        ConfigError: if `out` contains something already.
        ModelError: if there is no such model, or it cannot be exported in this format.
        DataError: if the folder cannot be written.
    """
    # A family named for its LoRA alone is refused below, without fetching anything.
    published = None if options.format == "peft" and registry.find(model) else fetch_published(model)
    model = str(published.folder) if published is not None else model
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out}: already exists; choose another --out or delete it")
    part = temporary_path(out)
    remove_abandoned(out.parent)
    try:
        if options.format == "peft":
            facts = _write_adapter(model, part, options, notify)
        elif options.format == "official":
            facts = _write_official(model, part, notify)
        else:
            facts = _write_merged(model, part, options.dtype, notify)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except Exception as error:
        # safetensors has an error class of its own for a full disk.
        if isinstance(error, OSError) or "os error" in str(error):
            raise DataError(f"{out}: cannot be written ({error}); free some space or choose another folder") from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return facts


def _write_merged(model: str, folder: Path, dtype: str | None, notify: Callable[[str], None]) -> dict[str, str]:
    """Write all weights and a model card."""
    is_embedded = family_of(model).startswith("embedded")
    base_folder = base_weights.base_folder(notify) if is_embedded else None
    loaded = base.load(model)
    if dtype is not None and base_folder is None:
        loaded.module.to(DTYPES[dtype])
    notify(f"writing all weights ({dtype or 'as they are'})")
    beside = [lora_beside.attached(loaded.module, own=own) for own in (False, True)]
    if any(beside) and dtype != "float32":
        notify("merging LoRA into weights of lower precision than float32 rounds it; --dtype float32 keeps all of it")
    loaded.save(folder)
    if base_folder is not None:
        _write_embedded_whole(loaded, folder, dtype or "float32", base_folder)
    elif (folder / "config.json").exists():
        checkpoint.add_older_config_keys(folder)
    card = _model_card(loaded, hub.cached_name(Path(model)) or Path(model).name, folder, dtype or "float32")
    (folder / "README.md").write_text(card, encoding="utf-8")
    return {"model": loaded.name, "revision": loaded.revision}


def _write_embedded_whole(model: AudioLM, folder: Path, dtype: str, base_folder: Path) -> None:
    """Write what the embedded model's `save` leaves out, so that others can use it: all parameters under `encoder.`,
    `connector.` and `decoder.`, the tokenizer and the sizes."""
    tensors = {
        name: value.to(DTYPES[dtype]).contiguous().cpu()
        for name, value in checkpoint.merged_state_dict(model.module).items()
        if not name.startswith("head.")  # the embedding table once more
    }
    metadata = {"family": model.name, "revision": model.revision, "earwise": version("earwise")}
    save_file(tensors, folder / MERGED_FILE, metadata=metadata)
    for name in ("encoder.json", "decoder.json", "tokenizer.json"):
        shutil.copyfile(base_folder / name, folder / name)


def _write_official(model: str, folder: Path, notify: Callable[[str], None]) -> dict[str, str]:
    """Write the file that the family's own released code loads."""
    name = family_of(model)
    family = registry.find(name)
    if family is None or family.official is None:
        official = [family.name for family in registry.FAMILIES if family.official is not None]
        raise ModelError(
            f"{model}: the family {name} has no file of its own kind (that is for {' and '.join(official)}); "
            "use --format merged"
        )
    loaded = base.load(model)
    notify(f"writing {family.official.file_name}")
    write = resolve_entry({name: family.official.writer}, name, "official format")
    write(loaded, folder / family.official.file_name)
    return {"model": loaded.name, "revision": loaded.revision}


def _write_adapter(model: str, folder: Path, options: ExportOptions, notify: Callable[[str], None]) -> dict[str, str]:
    """Write LoRA alone; no model is loaded."""
    family, weights = find_checkpoint(Path(model)) if Path(model).is_dir() else (model, None)
    if family.startswith("embedded"):
        adapter = _embedded_adapter(family, weights)
        family = "embedded"
        notify("the adapter does not contain the connector; --format merged writes it (trained.safetensors)")
    elif weights is None:
        raise ModelError(f"{model}: a family has no LoRA of its own; name the folder of a run that trained one")
    else:
        adapter = lora_checkpoint.read_beside(weights)
        if (weights / PEFT_CONFIG).is_file():
            adapter = replace(adapter, base=lora_checkpoint.whole_base(str(weights)))
    if options.parameter_names == "published" or family == "embedded":
        names = registry.parameter_names(family)
        adapter = lora_checkpoint.rename_parameters(adapter, names, drop_others=family == "embedded")
    adapter = replace(adapter, base=options.base or adapter.base)
    lora_checkpoint.write(folder, adapter)
    write_json(folder / MARKER, {"family": family})
    card = ADAPTER_CARD.format(base=adapter.base, family=family, version=version("earwise"))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return {"model": family, "base": adapter.base}


def _embedded_adapter(family: str, weights: Path | None) -> PeftAdapter:
    """What the embedded model's stages added to its text model, as one LoRA.

    Raises:
        ModelError: if its decoder is not that text model with LoRA added, so that LoRA alone would give another model.
    """
    if family == "embedded-blank":
        raise ModelError(
            f"{family}: nothing of it was trained, it has no LoRA; name the folder of a run that trained one"
        )
    path = (weights or preload.ASSETS) / "trained.safetensors"
    tensors, metadata = preload.tensors(path)
    matrices = {name: value for name, value in tensors.items() if ".lora_" in name}
    changed = [name for name in tensors if name.startswith("decoder.") and name not in matrices]
    if changed:
        raise ModelError(
            f"{path}: {len(changed)} weights of its decoder were drawn at random or trained in full, so that LoRA over "
            f"{TEXT_MODEL} would be another model; use --format merged"
        )
    if family == "embedded-aligned":
        matrices = first_ranks(matrices, int(metadata[preload.ALIGNED_RANK]))
    return PeftAdapter(matrices, {}, TEXT_MODEL)


def _model_card(model: AudioLM, source: str, folder: Path, dtype: str) -> str:
    """The model card, from the model's own attributes."""
    counts = {
        part: sum(value.numel() for name, value in model.module.named_parameters() if name.startswith(prefixes))
        for part, prefixes in model.parameter_prefixes.items()
    }
    merged = ""
    if (folder / MERGED_FILE).exists():
        connector = type(model.module.connector)
        merged = MERGED_SECTION.format(dtype=dtype, connector=f"{connector.__module__}.{connector.__name__}")
    return MODEL_CARD.format(
        name=model.name,
        family=json.loads((folder / MARKER).read_text(encoding="utf-8"))["family"],
        version=version("earwise"),
        source=source,
        revision=model.revision,
        max_s=model.spec.max_s,
        sample_rate=model.spec.sample_rate,
        tokens_per_s=model.spec.tokens_per_s,
        parts="\n".join(f"| {part} | {count / 1e6:.1f}M |" for part, count in counts.items()),
        merged=merged,
    )
