"""A recipe from its first stage to its last: load, train, write; resumable from what lies in the folder."""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from earwise.config import GrpoStage, Recipe, SftStage, Source, Where, check_recipe
from earwise.data.manifest import read
from earwise.errors import ConfigError, DataError
from earwise.files import append_jsonl, write_json
from earwise.models.base import AudioLM, load
from earwise.models.ears import Ears
from earwise.train import grpo, loop, sft
from earwise.train.batches import Sounds
from earwise.train.trainable import prepare
from earwise.types import Example

STARTER = Path(__file__).parents[1] / "assets" / "starter"
Say = Callable[[str], None]


def manifest_path(name: str, base: Path) -> Path:
    """Where a manifest lies: `starter:train` is bundled, anything else is relative to `base`."""
    if name.startswith("starter:"):
        path = STARTER / f"{name.removeprefix('starter:')}.jsonl"
        if not path.exists():
            raise ConfigError(f"manifest {name!r}: the bundled ones are starter:train and starter:val")
        return path
    return base / name


def start(recipe: Recipe, out: Path, base: Path, *, say: Say = lambda _: None) -> Path:
    """Run a recipe into an empty folder.

    Args:
        recipe: Resolved recipe.
        out: Folder of the run: recipe.json, metrics.jsonl, rollouts.jsonl, one folder a stage, `final`.
        base: Folder that relative manifests start from.
        say: Progress.
    Returns:
        `out / "final"`, the folder of the trained model.
    Raises:
        ConfigError: if `out` already holds a run.
    """
    if (out / "recipe.json").exists():
        raise ConfigError(f"{out}: already holds a run; continue it with --resume {out}, or choose another --out")
    resolved = {
        "recipe": recipe.model_dump(mode="json"),
        "base": str(base.resolve()),
        "earwise": version("earwise"),
        "torch": version("torch"),
    }
    write_json(out / "recipe.json", resolved)
    return _stages(recipe, out, base, say)


def resume(out: Path, *, say: Say = lambda _: None) -> Path:
    """Continue a run from its folder alone; a finished run is returned as it is."""
    at = out / "recipe.json"
    if not at.exists():
        raise ConfigError(f"{out}: no recipe.json here; give the --out folder of an earlier `earwise train`")
    resolved = json.loads(at.read_text(encoding="utf-8"))
    return _stages(check_recipe(resolved["recipe"], str(at)), out, Path(resolved["base"]), say)


def _stages(recipe: Recipe, out: Path, base: Path, say: Say) -> Path:
    weights: Path | None = None
    for number, stage in enumerate(recipe.stages):
        folder = out / f"stage-{number}-{stage.name or stage.kind}"
        if not (folder / "final" / "earwise.json").exists():
            model = load(recipe.model.name, recipe.model.weights) if weights is None else load(str(weights))
            _stage(model, stage, recipe.seed + number, folder, out, base, say)
        weights = folder / "final"
    final = out / "final"
    if weights is not None and not final.exists():
        final.symlink_to(weights.relative_to(out))
    return final


def _stage(
    model: AudioLM, stage: SftStage | GrpoStage, seed: int, folder: Path, out: Path, base: Path, say: Say
) -> None:
    sources = [(_examples(source, base), source.weight) for source in stage.data.mixture]
    torch.manual_seed(seed)  # peft draws LoRA's start from the global generator; nothing else here does
    prepare(model, stage.trainable)
    ears = Ears(model, keep_mb=2048, batch=1)  # alone, so that a resumed run hears each clip bit for bit as before
    sounds = Sounds(model, long_audio=stage.data.long_audio, on_bad_row=stage.data.on_bad_row)
    if isinstance(stage, SftStage):
        resumed = (folder / "checkpoint").exists()
        chosen = stage.model_copy(update={"start": "none"}) if resumed else stage
        work = sft.work(model, chosen, sources, ears, sounds, seed, say)
    else:
        work = grpo.work(
            model, stage, sources, ears, sounds, seed, lambda row: append_jsonl(out / "rollouts.jsonl", row)
        )
    loop.run(
        model,
        work,
        optimizer_config=stage.optimizer,
        steps=stage.max_steps,
        out=folder,
        log=out / "metrics.jsonl",
        ears=ears,
        max_minutes=stage.max_minutes,
        say=say,
    )
    for path, reason in sounds.skipped.items():
        say(f"skipped {path}: {reason}")
    model.save(folder / "final.part")
    (folder / "final.part").rename(folder / "final")


def select(rows: Sequence[Example], where: Where) -> list[Example]:
    """Rows whose fields have these values."""
    return [row for row in rows if all(getattr(row, key) == value for key, value in where.items())]


def _examples(source: Source, base: Path) -> list[Example]:
    path = manifest_path(source.manifest, base)
    rows = read(path)
    examples = [row for row in select(rows, source.where) if row.answer]
    if not examples:
        wanted = f" with {dict(source.where)}" if source.where else ""
        raise DataError(
            f"{path}: none of {len(rows)} rows{wanted} has an answer to train on; "
            "build questions with `earwise build labels`"
        )
    return examples
