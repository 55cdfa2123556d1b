"""A recipe from its first stage to its last: load, train, write; resumable from what lies in the folder."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from earwise.algorithms.curriculum import Band, within
from earwise.config.recipe import Recipe, check_recipe
from earwise.config.stages import CompressStage, DpoStage, GrpoStage, SftStage, Source, Stage
from earwise.data.index import Rows, open_rows
from earwise.data.manifest_path import STARTER as STARTER
from earwise.data.manifest_path import manifest_path as manifest_path
from earwise.errors import ConfigError, DataError
from earwise.files import alone, append_jsonl, building, seen_from, write_json
from earwise.models import lora_checkpoint
from earwise.models.base import AudioLM, load
from earwise.models.embedded.model import Embedded
from earwise.models.encoder_cache import EncoderCache
from earwise.models.parts.recompute import recompute_layers
from earwise.train import checkpoints, trainer
from earwise.train.batches import Sounds
from earwise.train.distributed import parallel
from earwise.train.logging import sample_log
from earwise.train.logging.tracking import Mirror, check
from earwise.train.policy import FOREST_TOLERANCE
from earwise.train.profiler import Clock, settled_on
from earwise.train.stages import compress, dpo, grpo, sft
from earwise.train.trainable import encoder_trains, prepare

SAMPLES = "rollouts.jsonl"
Say = Callable[[str], None]


def start(recipe: Recipe, out: Path, base: Path, *, profile: bool = False, say: Say = lambda _: None) -> Path:
    """Run a recipe into an empty folder.

    Args:
        recipe: Resolved recipe.
        out: Folder of the run: recipe.json, metrics.jsonl, rollouts.jsonl, one folder a stage, `final`.
        base: Folder that relative manifests start from.
        profile: Measure and say where a step's time goes.
        say: Progress.
    Returns:
        `out / "final"`, the folder of the trained model.
    Raises:
        ConfigError: if `out` already holds a run, another process is at work there, or a tracker cannot be opened.
    """
    check(recipe.trackers)
    parallel.begin()
    if (out / "recipe.json").exists():
        raise ConfigError(f"{out}: already holds a run; continue it with --resume {out}, or choose another --out")
    resolved = {
        "recipe": recipe.model_dump(mode="json"),
        "base": str(base.resolve()),
        "earwise": version("earwise"),
        "torch": version("torch"),
    }
    parallel.wait()  # until all have seen that the folder is free
    if parallel.main():
        write_json(out / "recipe.json", resolved)
    return _stages(recipe, out, base, profile, say)


def resume(out: Path, *, track: Sequence[str] = (), profile: bool = False, say: Say = lambda _: None) -> Path:
    """Continue a run from its folder alone, shown in the trackers of `track` too; a finished run is returned as it
    is."""
    parallel.begin()
    at = out / "recipe.json"
    if not at.exists():
        raise ConfigError(f"{out}: no recipe.json here; give the --out folder of an earlier `earwise train`")
    resolved = json.loads(at.read_text(encoding="utf-8"))
    recipe = check_recipe(resolved["recipe"], str(at)).shown_in(track)
    check(recipe.trackers)
    return _stages(recipe, out, Path(resolved["base"]), profile, say)


def model_of(recipe: Recipe, weights: Path | None = None) -> AudioLM:
    """The model that a recipe starts from, or what its stages have made of it.

    Args:
        recipe: Resolved recipe; its seed decides what the model has drawn at random.
        weights: Folder of a stage's model; None is the start.
    """
    chosen = recipe.model
    if weights is not None:
        return load(str(weights), dtype=chosen.dtype, trim=chosen.trim)
    connector = None if chosen.connector is None else chosen.connector.model_dump()
    decoder_start = None if chosen.decoder_start == "pretrained" else chosen.decoder_start
    seed = None if connector is None and decoder_start is None else recipe.seed
    return load(
        chosen.name, chosen.weights, dtype=chosen.dtype, trim=chosen.trim, connector=connector,
        decoder_start=decoder_start, seed=seed,
    )  # fmt: skip


def _stages(recipe: Recipe, out: Path, base: Path, profile: bool, say: Say) -> Path:
    with alone(out) if parallel.main() else nullcontext():
        return _stages_alone(recipe, out, base, profile, say if parallel.main() else _silent)


def _stages_alone(recipe: Recipe, out: Path, base: Path, profile: bool, say: Say) -> Path:
    weights: Path | None = None
    if parallel.main():
        for half in (*out.glob(".*.part"), *out.glob("stage-*/.*.part")):
            if half.is_file():  # what a kill left of a file that was being written
                half.unlink()
    for number, stage in enumerate(recipe.stages):
        folder = out / f"stage-{number}-{stage.name or stage.kind}"
        if not (folder / "final" / "earwise.json").exists():
            model = model_of(recipe, weights)
            started_from = str(weights.resolve()) if weights else recipe.model.weights or recipe.model.name
            settings = recipe.model_dump(mode="json", exclude={"stages", "eval", "trackers"})
            settings["stage"] = stage.model_dump(mode="json")
            mirror = Mirror(recipe.trackers if parallel.main() else (), out, folder.name, settings, say)
            try:
                _stage(model, stage, recipe.seed + number, folder, out, base, profile, say, started_from, mirror)
            finally:
                mirror.close()
        weights = folder / "final"
    final = out / "final"
    if weights is not None and not final.exists() and parallel.main():
        final.symlink_to(weights.relative_to(out))
    return final


def _stage(
    model: AudioLM,
    stage: Stage,
    seed: int,
    folder: Path,
    out: Path,
    base: Path,
    profile: bool,
    say: Say,
    started_from: str,
    mirror: Mirror,
) -> None:
    opened: dict[Path, Rows] = {}
    preferred = isinstance(stage, DpoStage) and stage.negatives == "rows"
    sources = [(_examples(source, base, opened, say, preferred), source.weight) for source in stage.data.mixture]
    if stage.curriculum.order == "banded":
        band = Band(**stage.curriculum.band.model_dump())
        sources = [(rows.take(within(rows, band)), weight) for rows, weight in sources]
    torch.manual_seed(seed)  # peft draws LoRA's start from the global generator; nothing else here does
    prepare(model, stage.trainable)
    if stage.checkpoint_activations:
        recompute_layers(model.module)
    clock = settled_on(next(model.module.parameters()).device) if profile else Clock()
    # Alone, so that a resumed run hears each clip bit for bit as before.
    # Nothing is kept where the encoder trains: a clip that comes back must be heard anew.
    encoder_cache = EncoderCache(model, keep_mb=0 if encoder_trains(model) else 2048, batch=1, watch=clock.phase("hear"))
    sounds = Sounds(model, long_audio=stage.data.long_audio, on_bad_row=stage.data.on_bad_row)

    def keep(row: dict[str, Any]) -> None:
        if parallel.main():
            row = {"stage": folder.name} | row | {"audio": [seen_from(Path(clip), out) for clip in row["audio"]]}
            append_jsonl(out / SAMPLES, row)
            mirror.sample(row)

    if isinstance(stage, SftStage):
        chosen = stage.model_copy(update={"start": "none"}) if checkpoints.checkpoints(folder) else stage
        work = sft.work(model, chosen, sources, encoder_cache, sounds, seed, say, clock)
    elif isinstance(stage, DpoStage):
        work = dpo.work(model, stage, sources, encoder_cache, sounds, seed, clock)
    elif isinstance(stage, CompressStage):
        held_out = _examples(stage.held_out, base, opened, say) if stage.held_out else []
        some = sample_log.evenly(held_out, stage.held_out_limit)
        work = compress.work(model, stage, sources, some, encoder_cache, sounds, seed, keep, say, clock)
    else:
        work = grpo.work(model, stage, sources, encoder_cache, sounds, seed, keep, folder / "sampler", say, clock)
    if not isinstance(stage, GrpoStage) and not (isinstance(stage, CompressStage) and stage.held_out):
        work = sample_log.shown(work, model, stage, sources, encoder_cache, sounds, keep, clock, say)
    trainer.run(
        model,
        work,
        optimizer_config=stage.optimizer,
        steps=stage.max_steps,
        out=folder,
        log=out / "metrics.jsonl",
        encoder_cache=encoder_cache,
        samples=out / SAMPLES,
        watch=mirror.step,
        max_minutes=stage.max_minutes,
        max_bad_steps=stage.max_bad_steps if stage.on_bad_loss == "skip" else 0,
        keep_checkpoints=stage.keep_checkpoints,
        clock=clock,
        profile=profile,
        tolerance=FOREST_TOLERANCE[next(model.module.parameters()).dtype],
        say=say,
    )
    if sounds.long:
        how = {"truncate": "only their beginning was heard", "chunk": "heard piece by piece"}[stage.data.long_audio]
        say(f"{len(sounds.long)} clips last longer than the {model.spec.max_s:g} s that {model.name} hears: {how}")
    for path, reason in sounds.skipped.items():
        say(f"skipped {path}: {reason}")
    if parallel.main():
        with building(folder / "final") as part:
            model.save(part)
            if not isinstance(model, Embedded):  # what that one saves is the adapter
                lora_checkpoint.keep(lora_checkpoint.trained(model.module, started_from), part)
    parallel.wait()


def _silent(line: str) -> None:
    """What processes beside the first say."""


def _examples(source: Source, base: Path, opened: dict[Path, Rows], say: Say, preferred: bool = False) -> Rows:
    """A source's rows with an answer (or with a preference); a manifest that several sources name is opened once."""
    path = manifest_path(source.manifest, base)
    if path not in opened:
        opened[path] = open_rows(path, say=say)
    examples = opened[path].select(source.where, answered=not preferred, preferred=preferred)
    if not examples:
        wanted = f" with {dict(source.where)}" if source.where else ""
        what, how = ("`rejected`", "preferences") if preferred else ("an answer to train on", "labels")
        raise DataError(f"{path}: none of {len(opened[path])} rows{wanted} has {what}; build some: earwise build {how}")
    return examples
