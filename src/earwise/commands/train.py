"""`earwise train`: a recipe from its first stage to its last, measured before and after where it says so.

Everything that can be wrong with recipe and data is looked for before a model is loaded: manifests, missing and broken files, styles, rewards.
"""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from earwise.commands.evaluate import spread
from earwise.commands.loading import json_option, note, open_model, progress, result
from earwise.errors import AudioError, ConfigError, DataError

if TYPE_CHECKING:
    from earwise.config import GrpoStage, Recipe, SftStage
    from earwise.models.base import AudioLM


@click.command("train", short_help="Train by a recipe: SFT, GRPO, any number of stages.")
@click.argument("arguments", nargs=-1, metavar="[RECIPE.yaml] [KEY=VALUE]...")
@click.option("--profile", "-p", help="Scale of the recipe: a name under its `profiles:`, for example cpu.")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the run. [default: runs/RECIPE or runs/RECIPE-PROFILE]",
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue a stopped run from its folder alone."
)
@click.option(
    "--plan",
    is_flag=True,
    help="Print the resolved recipe, rows, trained parameters and a memory estimate; train nothing.",
)
@click.option(
    "--eval/--no-eval",
    "measured",
    default=True,
    show_default=True,
    help="Measure as the recipe's `eval:` says, before and after.",
)
@json_option
def command(
    arguments: tuple[str, ...],
    profile: str | None,
    out: Path | None,
    resume: Path | None,
    plan: bool,
    measured: bool,
    as_json: bool,
) -> None:
    """Train by RECIPE.yaml; KEY=VALUE changes a single setting (dotted keys, list elements by number, * for all).

    \b
    earwise train recipes/r1-aqa.yaml --profile cpu --plan
    earwise train recipes/r1-aqa.yaml --profile cpu --out runs/r1
    earwise train recipes/r1-aqa.yaml stages.0.max_steps=10 stages.0.optimizer.lr=1e-5
    earwise train --resume runs/r1

    The run's folder holds recipe.json, metrics.jsonl, rollouts.jsonl, a folder a stage, and `final`, the trained model.
    """
    from earwise.config import load_recipe
    from earwise.train import run

    started = perf_counter()
    if resume is not None:
        if arguments or profile or out or plan:
            raise ConfigError(
                f"--resume {resume} takes the recipe from that folder; leave out recipe, profile, settings, --out and --plan"
            )
        folder, recipe, base = resume, *_recorded(resume)
        preflight(recipe, base)
    else:
        path, overrides = _split(arguments)
        recipe = load_recipe(path, profile=profile, overrides=overrides)
        folder, base = out or Path("runs") / "-".join(filter(None, (recipe.recipe, profile))), path.parent
        rows = preflight(recipe, base)
        if plan:
            _print_plan(recipe, rows, as_json)
            return
        if (folder / "recipe.json").exists():
            raise ConfigError(
                f"{folder}: already holds a run; continue it with --resume {folder}, or choose another --out"
            )
    try:
        before = _measure(recipe, base, folder, "before", None) if measured else []
        final = run.resume(folder, say=note) if resume is not None else run.start(recipe, folder, base, say=note)
        after = _measure(recipe, base, folder, "after", final) if measured else []
    except KeyboardInterrupt:
        how = f"earwise train --resume {folder}" if (folder / "recipe.json").exists() else "the same command"
        raise KeyboardInterrupt(f"interrupted; finished work is kept, continue with {how}") from None
    pairs = list(zip(recipe.eval, before, after, strict=True)) if measured else []
    if as_json:
        evals = [{"manifest": one.manifest, "before": first, "after": last} for one, first, last in pairs]
        result({"final": str(final), "out": str(folder), "seconds": round(perf_counter() - started, 1), "eval": evals})
        return
    for one, first, last in pairs:
        click.echo(f"{one.manifest}: {_shown(first)} -> {_shown(last)}")
    click.echo(str(final))


def preflight(recipe: "Recipe", base: Path) -> list[list[int]]:
    """Look for what would stop the run later.

    Args:
        recipe: Resolved recipe.
        base: Folder that its manifests start from.
    Returns:
        Rows with an answer of each manifest of each stage.
    Raises:
        ConfigError: for an unknown style or reward.
        DataError: for a bad manifest, or rows that a style cannot use.
        AudioError: naming manifest, row and file, unless bad rows are to be skipped.
    """
    from earwise.config import SftStage
    from earwise.prompts import THINKING, question_text
    from earwise.rewards import load_reward

    rows = []
    for stage in recipe.stages:
        for style in stage.data.styles:
            question_text("", (), style)
        if not isinstance(stage, SftStage):
            for name in stage.rewards:
                load_reward(name)
        counts = []
        for source in stage.data.mixture:
            examples = [
                example
                for example in _read(source.manifest, base, listen=stage.data.on_bad_row == "stop")
                if example.answer
            ]
            if not examples:
                raise DataError(
                    f"{source.manifest}: no row has an answer to train on; build questions with `earwise build labels`"
                )
            thinking = [style for style in stage.data.styles if style in THINKING]
            if isinstance(stage, SftStage) and thinking and (lacking := [e.id for e in examples if not e.reasoning]):
                raise DataError(
                    f"{source.manifest}: row {lacking[0]!r} has no reasoning for style {thinking[0]!r} ({len(lacking)} such rows); add it, or use style answer"
                )
            counts.append(len(examples))
        rows.append(counts)
    for one in recipe.eval:
        question_text("", (), one.style)
        _read(one.manifest, base, listen=True)
    return rows


_looked_at: set[Path] = set()


def _read(name: str, base: Path, *, listen: bool) -> Any:
    """A manifest's examples, their files looked at by their headers."""
    from earwise.audio import probe
    from earwise.data import manifest
    from earwise.train.run import manifest_path

    path = manifest_path(name, base)
    examples = manifest.read(path, check_files=listen)
    for example in examples if listen else ():
        for clip in example.audio_paths:
            if clip not in _looked_at:
                try:
                    probe(clip)
                except AudioError as error:
                    raise AudioError(f"{path}: row {example.id!r}: {error}, or set data.on_bad_row: skip") from error
                _looked_at.add(clip)
    return examples


def _split(arguments: tuple[str, ...]) -> tuple[Path, list[str]]:
    """The recipe, and the settings that change it."""
    recipes = [argument for argument in arguments if "=" not in argument]
    if len(recipes) != 1:
        raise ConfigError(
            f"give one recipe, for example recipes/r1-aqa.yaml, or --resume DIR; got {', '.join(recipes) or 'none'}"
        )
    return Path(recipes[0]), [argument for argument in arguments if "=" in argument]


def _recorded(folder: Path) -> "tuple[Recipe, Path]":
    """The recipe of a stopped run, and the folder that its manifests start from."""
    import json

    from earwise.config import check_recipe

    at = folder / "recipe.json"
    try:
        recorded = json.loads(at.read_text(encoding="utf-8"))
        return check_recipe(recorded["recipe"], str(at)), Path(recorded["base"])
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: no recipe.json here; give the --out folder of an earlier `earwise train`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{at}: is no recipe of a run ({error}); start the run anew") from error


def _measure(recipe: "Recipe", base: Path, folder: Path, when: str, final: Path | None) -> list[dict[str, Any]]:
    """The recipe's `eval:` into `folder/eval/WHEN-N`; what is finished is not asked again."""
    if not recipe.eval:
        return []
    from earwise.engine.base import Decoding
    from earwise.engine.local import LocalEngine
    from earwise.evaluate.run import evaluate_with_controls
    from earwise.models.base import load

    model = load(recipe.model.name, recipe.model.weights) if final is None else load(str(final))
    engine = LocalEngine(model)
    found = []
    for number, one in enumerate(recipe.eval):
        note(f"measuring {one.manifest} {when} training")
        metrics = evaluate_with_controls(
            engine,
            spread(_read(one.manifest, base, listen=True), one.limit),
            folder / "eval" / f"{when}-{number}",
            blind=("silence",),
            seed=recipe.seed,
            style=one.style,
            decoding=Decoding(max_new_tokens=one.max_new_tokens),
            on_progress=progress(),
        )
        found.append(_headline(metrics))
    return found


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, blind accuracy and format of a run."""
    silence = metrics["blind"]["silence"]
    return {
        "n": metrics["n"],
        "accuracy": metrics["accuracy"]["official"]["accuracy"],
        "blind_accuracy": silence["accuracy"]["official"]["accuracy"] if "accuracy" in silence else None,
        "format": metrics["format"]["accuracy"] if metrics["format"] else None,
    }


def _shown(row: dict[str, Any]) -> str:
    extra = "".join(
        f", {name.replace('_accuracy', '')} {row[name]:.3f}"
        for name in ("blind_accuracy", "format")
        if row[name] is not None
    )
    return f"{row['accuracy']:.3f} (n {row['n']}{extra})"


def _print_plan(recipe: "Recipe", rows: list[list[int]], as_json: bool) -> None:
    """The resolved recipe, then per stage what it trains on, how much of the model, and about how much memory."""
    import yaml

    from earwise.train.trainable import prepare

    open_model(recipe.model.name) if recipe.model.weights is None else None
    stages = []
    for number, (stage, counts) in enumerate(zip(recipe.stages, rows, strict=True)):
        model = _fresh(recipe)
        prepare(model, stage.trainable)
        parts = {group: _count(model, prefixes) for group, prefixes in model.groups.items()}
        stages.append(
            {
                "stage": f"{number} {stage.name or stage.kind}",
                "steps": stage.max_steps,
                "rows": {source.manifest: count for source, count in zip(stage.data.mixture, counts, strict=True)},
                "parameters": sum(p.numel() for p in model.module.parameters()),
                "trained": parts | {"all": sum(parts.values())},
                "memory_gb": memory_estimate(model, stage),
            }
        )
    if as_json:
        result({"recipe": recipe.model_dump(mode="json"), "stages": stages})
        return
    click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).rstrip())
    for row in stages:
        click.echo(f"\nstage {row['stage']}: {row['steps']} steps")
        click.echo("  rows      " + ", ".join(f"{name} {count}" for name, count in row["rows"].items()))
        trained = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in row["trained"].items())
        click.echo(f"  trained   {trained} of {row['parameters'] / 1e6:.1f}M parameters")
        memory = ", ".join(f"{name} {size:.2f}" for name, size in row["memory_gb"].items())
        click.echo(f"  memory    about {sum(row['memory_gb'].values()):.1f} GB ({memory})")


def memory_estimate(model: "AudioLM", stage: "SftStage | GrpoStage") -> dict[str, float]:
    """Upper estimate of a stage's memory in GB, part by part; float32, `pack_tokens` tokens a pass, 1 GB for the libraries themselves.

    Activations: inputs and outputs of all linear layers of the decoder; scores over the vocabulary at a quarter of
    the tokens (512 at most at a time), three times.
    """
    from torch import nn

    from earwise.config import GrpoStage

    parameters = list(model.module.named_parameters())
    trained = [p for _, p in parameters if p.requires_grad]
    direct = (
        [p for name, p in parameters if p.requires_grad and ".lora_" not in name]
        if isinstance(stage, GrpoStage)
        else []
    )
    decoder = [
        m
        for name, m in model.module.named_modules()
        if name.startswith(model.groups["decoder"]) and isinstance(m, nn.Linear)
    ]
    widths = sum(layer.in_features + layer.out_features for layer in decoder)
    vocabulary = max((p.shape[0] for name, p in parameters if "embed_tokens" in name), default=0)
    sizes = {
        "weights": sum(p.numel() * p.element_size() for _, p in parameters),
        "gradients and optimizer": sum(12 * p.numel() for p in trained),
        "reference": sum(4 * p.numel() for p in direct),
        "activations": 4 * stage.pack_tokens * widths + 3 * 4 * vocabulary * min(512, stage.pack_tokens // 4),
        "libraries": 1e9,
    }
    return {name: round(size / 1e9, 3) for name, size in sizes.items() if size}


def _fresh(recipe: "Recipe") -> "AudioLM":
    from earwise.models.base import load

    return load(recipe.model.name, recipe.model.weights)


def _count(model: "AudioLM", prefixes: tuple[str, ...]) -> int:
    return sum(
        p.numel() for name, p in model.module.named_parameters() if p.requires_grad and name.startswith(prefixes)
    )
