"""What a folder that is named as a model contains: our checkpoint, a training run, or a published checkpoint. No torch.

Used by `models/base.py` before it loads anything, and by commands that need to know the family first.
"""

import json
from pathlib import Path

from earwise.errors import ModelError
from earwise.models import hub, registry

MARKER = "earwise.json"
"""File that every checkpoint of ours contains; it names the family."""
RUN_RECIPE = "recipe.json"
"""File that marks the folder of a training run."""
PEFT_CONFIG = "adapter_config.json"
"""PEFT's own name for the settings of a LoRA."""
FLOAT32_FOLDER = "float32"
"""Folder inside a checkpoint of lower precision with exact values of what was trained (`float32_values.py`)."""


def find_checkpoint(folder: Path) -> tuple[str, Path]:
    """The family of a folder's model, and the folder that contains its weights (for a training run: `RUN/final`).

    Raises:
        ModelError: if the folder contains no model, saying what it seems to be and what to name instead.
    """
    if (folder / MARKER).is_file():
        return _read(folder / MARKER, "family"), folder
    if (folder / "final" / MARKER).is_file():
        return _read(folder / "final" / MARKER, "family"), folder / "final"
    if (folder / RUN_RECIPE).is_file():
        raise ModelError(f"{folder}: a training run that is not finished; continue it: earwise train --resume {folder}")
    if (folder / "config.json").is_file():
        model_type, families = _read(folder / "config.json", "model_type"), registry.model_types()
        if model_type not in families:
            raise ModelError(f"{folder}: config.json says model_type {model_type!r}, none of {', '.join(families)}")
        return families[model_type], folder
    if (folder / PEFT_CONFIG).is_file():
        base = _read(folder / PEFT_CONFIG, "base_model_name_or_path")
        if (base_folder := adapter_base(folder, base)) is not None:
            return find_checkpoint(base_folder)[0], folder
        if hub.is_hub_name(base):
            return family_of(_with_revision(folder, base)), folder
        raise ModelError(
            f"{folder}: an adapter whose base model {base} is no folder here; put the base checkpoint's folder into "
            f"its {PEFT_CONFIG}, or name the family in a recipe (model: {{name: FAMILY, weights: {folder}}})"
        )
    raise ModelError(
        f"{folder}: holds no model ({MARKER} or config.json); name a family (see `earwise models`), a folder that "
        "`earwise train` or `earwise export` wrote, or a released checkpoint"
    )


def adapter_base(folder: Path, base: str) -> Path | None:
    """The folder of the base model of an adapter; None if the base is no folder here.

    Args:
        folder: The adapter's folder.
        base: Name of its base model, which may be a path relative to the working directory or to the folder.
    Raises:
        ModelError: if the adapter, or an adapter that it is added to, is its own base.
    """
    visited = [folder.resolve()]
    first = current = next((path for path in (Path(base), folder / base) if path.is_dir()), None)
    while current is not None:
        if current.resolve() in visited:
            raise ModelError(
                f"{folder}: an adapter whose base model {base!r} leads back to {current.resolve()}; put the base "
                f"checkpoint's folder into its {PEFT_CONFIG}"
            )
        visited.append(current.resolve())
        if (current / "config.json").is_file() or not (current / PEFT_CONFIG).is_file():
            break
        next_base = _read(current / PEFT_CONFIG, "base_model_name_or_path")
        current = next((path for path in (Path(next_base), current / next_base) if path.is_dir()), None)
    return first


def family_of(name: str) -> str:
    """The family of a model as `--model` names it: that of the checkpoint for a folder or a model of a hub, of which
    only the config is fetched, and only if it is none of the published ones; else the name itself.

    Raises:
        ModelError: if the folder contains no model, or the hub's model cannot be fetched.
    """
    if Path(name).is_dir():
        return find_checkpoint(Path(name))[0]
    if not hub.is_hub_name(name):
        return name
    published = registry.family_of_published(hub.split_name(name)[0])
    return published or find_checkpoint(hub.fetch(name, files=hub.CONFIG_FILES).folder)[0]


def fetch_published(name: str) -> hub.HubModel | None:
    """Fetch the checkpoint of a model that is named as on a hub, or of a family whose own is on one; None for others.

    Raises:
        ModelError: if it is neither in the cache nor can it be fetched.
    """
    family = registry.find(name)
    if family is not None and family.hub:
        return hub.fetch(family.hub)
    return hub.fetch(name) if hub.is_hub_name(name) and not Path(name).is_dir() else None


def display_name(family: str, folder: Path) -> str:
    """A name that distinguishes two checkpoints of one family: the last two folders of the run.

    >>> display_name("embedded", Path("/a/runs/first/final"))
    'embedded (runs/first)'
    >>> display_name("embedded", Path("/a/runs/first/stage-0-sft/final"))
    'embedded (first/stage-0-sft)'
    """
    parts = folder.absolute().parts
    parts = parts[:-1] if parts[-1] == "final" else parts
    return f"{family} ({'/'.join(parts[1:][-2:])})"


def _with_revision(folder: Path, base: str) -> str:
    """The hub name of an adapter's base model with the revision that its config gives."""
    content = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    return hub.with_revision(base, content.get("revision"))


def _read(path: Path, key: str) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: does not say the {key} ({error}); export or train the model again") from error
