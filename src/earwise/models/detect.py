"""What a folder that somebody names as a model holds: our checkpoint, a training run, or a released one. No torch.

Before `models/base.py` loads anything, and wherever a command needs to know the family first.
"""

import json
from pathlib import Path

from earwise.errors import ModelError

MARKER = "earwise.json"
RUN = "recipe.json"
ADAPTER = "adapter_config.json"  # LoRA as PEFT writes it
# `model_type` of a released checkpoint's config.json -> our family.
MODEL_TYPES = {
    "qwen2_audio": "qwen2_audio",
    "qwen2_5_omni": "qwen25_omni",
    "qwen2_5_omni_thinker": "qwen25_omni",
    "qwen3_omni_moe": "qwen3_omni",
    "qwen3_omni_moe_thinker": "qwen3_omni",
    "audioflamingo3": "audio_flamingo3",
    "voxtral": "voxtral",
    "granite_speech": "granite_speech",
    "phi4_multimodal": "phi4_multimodal",
    "gemma3n": "gemma3n",
    "salmonn": "salmonn",
    "mellow": "mellow",
}


def checkpoint(folder: Path) -> tuple[str, Path]:
    """The family of a folder's model, and the folder that holds its weights (of a training run: `RUN/final`).

    Raises:
        ModelError: if it is none of these, saying what it seems to be and what to name instead.
    """
    if (folder / MARKER).is_file():
        return _read(folder / MARKER, "family"), folder
    if (folder / "final" / MARKER).is_file():
        return _read(folder / "final" / MARKER, "family"), folder / "final"
    if (folder / RUN).is_file():
        raise ModelError(f"{folder}: a training run that is not finished; continue it: earwise train --resume {folder}")
    if (folder / "config.json").is_file():
        kind = _read(folder / "config.json", "model_type")
        if kind not in MODEL_TYPES:
            raise ModelError(f"{folder}: config.json says model_type {kind!r}, none of {', '.join(MODEL_TYPES)}")
        return MODEL_TYPES[kind], folder
    if (folder / ADAPTER).is_file():
        base = _read(folder / ADAPTER, "base_model_name_or_path")
        for path in (Path(base), folder / base):
            if path.is_dir():
                return checkpoint(path)[0], folder
        raise ModelError(
            f"{folder}: an adapter whose base model {base} is no folder here; put the base checkpoint's folder into "
            f"its {ADAPTER}, or name the family in a recipe (model: {{name: FAMILY, weights: {folder}}})"
        )
    raise ModelError(
        f"{folder}: holds no model ({MARKER} or config.json); name a family (see `earwise models`), a folder that "
        "`earwise train` or `earwise export` wrote, or a released checkpoint"
    )


def named(family: str, folder: Path) -> str:
    """A name that tells two checkpoints of one family apart: the last two folders of the run.

    >>> named("embedded", Path("/a/runs/first/final")), named("embedded", Path("/a/runs/first/stage-0-sft/final"))
    ('embedded (runs/first)', 'embedded (first/stage-0-sft)')
    """
    parts = folder.absolute().parts
    parts = parts[:-1] if parts[-1] == "final" else parts
    return f"{family} ({'/'.join(parts[1:][-2:])})"


def _read(path: Path, key: str) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: does not say the {key} ({error}); export or train the model again") from error
