"""The demo: ask the default model, train it by reinforcement, evaluate it before and after, in minutes on two cores.

Above everything but the command line; `earwise demo` and `make demo` call it. Steps: base weights -> a few questions to
the default model -> evaluation before training -> a short GRPO run (R1-AQA's recipe, profile `cpu`) -> the same
evaluation after training, with blind controls -> one page. An interrupted demo is continued, a finished one replaced.
"""

import argparse
import hashlib
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from earwise.apps.recipe_eval import evaluate_entry, headline_figures
from earwise.audio_model import AudioModel
from earwise.config.control.run_control import EvalConfig
from earwise.config.recipe import Recipe, load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES
from earwise.data import manifest
from earwise.data.manifest_path import manifest_path
from earwise.engine.base import SamplingParams
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError, EarwiseError
from earwise.evaluation.results import read_run
from earwise.files import write_json
from earwise.models.base import load
from earwise.models.embedded import base_weights
from earwise.report import write_report
from earwise.training import run as training
from earwise.types import Example

RECIPE = Path(PACKAGED_RECIPES / "r1-aqa.yaml")
PROFILE = "cpu"
CLIPS_PER_CATEGORY = 2
"""Clips of each category that the default model is asked about first."""
STARTED, DONE = "started.json", "demo.json"


def run(out: Path, recipe_path: Path = RECIPE) -> dict[str, Any]:
    """Run the demo into `out`, or what is left of it.

    Args:
        out: Folder of the demo; a finished demo in it, or one of another recipe, is replaced.
        recipe_path: Recipe with a profile `cpu` and one entry under `eval:`.
    Returns:
        `accuracy_before`, `accuracy_after`, `blind_accuracy` (after training, under silence), `n`, `report`,
        `format_before`, `format_after`, `seconds` (of this call).
    Raises:
        EarwiseError: if a step fails; finished steps are kept.
    """
    started = perf_counter()
    recipe = load_recipe(recipe_path, profile=PROFILE)
    if len(recipe.eval) != 1:
        raise ConfigError(
            f"{recipe_path}: the demo needs one entry under eval:, profile {PROFILE} has {len(recipe.eval)}"
        )
    entry, base = recipe.eval[0], recipe_path.parent
    _prepare_folder(out, recipe)
    _note("1/6 base weights")
    base_weights.base_folder(_note)
    _note("2/6 questions to the default model")
    _ask_default_model(entry, base)
    _note("3/6 evaluation before training")
    start_engine = LocalEngine(load(recipe.model.name, recipe.model.weights))
    before_metrics = evaluate_entry(entry, base, start_engine, out / "before", seed=recipe.seed, blind=(), notify=_note)
    del start_engine  # frees its memory for training
    _note("4/6 GRPO")
    final = _train(recipe, out / "train", base)
    _note("5/6 evaluation after training, with blind controls")
    trained_engine = LocalEngine(load(str(final)))
    after_metrics = evaluate_entry(entry, base, trained_engine, out / "after", seed=recipe.seed, notify=_note)
    _note("6/6 report")
    runs = [read_run(out / "before", "before"), read_run(out / "after", "after")]
    log = out / "train" / "metrics.jsonl"
    report = write_report(out / "report.html", runs, [log], title="R1-AQA on the embedded model")
    before, after = headline_figures(before_metrics), headline_figures(after_metrics)
    result = {
        "accuracy_before": before["accuracy"],
        "accuracy_after": after["accuracy"],
        "blind_accuracy": after["blind_accuracy"],
        "n": after["n"],
        "report": str(report),
        "format_before": before["format"],
        "format_after": after["format"],
        "seconds": round(perf_counter() - started, 1),
    }
    write_json(out / DONE, result)
    return result


def _train(recipe: Recipe, folder: Path, base: Path) -> Path:
    """Train, or continue an interrupted training; returns the folder of the trained model."""
    if (folder / "recipe.json").exists():
        return training.resume(folder, notify=_note)
    return training.start(recipe, folder, base, notify=_note)


def _prepare_folder(out: Path, recipe: Recipe) -> None:
    """Make the folder; an interrupted demo of the same recipe, model and version in it is kept.

    Raises:
        ConfigError: if the folder exists and is not that of a demo.
    """
    text = json.dumps([version("earwise"), recipe.model_dump(mode="json"), _packaged_weights_hashes()], sort_keys=True)
    record = {"demo": hashlib.sha256(text.encode()).hexdigest()}
    try:
        is_same = json.loads((out / STARTED).read_text(encoding="utf-8")) == record
    except (OSError, ValueError):
        is_same = False
    if is_same and not (out / DONE).exists():
        _note(f"{out}: continuing an interrupted demo")
        return
    if out.exists():
        if not (out / STARTED).exists():
            raise ConfigError(f"{out}: is not the folder of a demo; choose another --out or delete it")
        shutil.rmtree(out)
    write_json(out / STARTED, record)


def _packaged_weights_hashes() -> list[str]:
    """SHA-256 of the trained weights that the package contains."""
    from earwise.models.embedded.preload import ASSETS

    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(ASSETS.glob("*.safetensors"))]


def _ask_default_model(entry: EvalConfig, base: Path) -> None:
    """Ask the default model open questions about a few clips of each category, and print the gold answer beside its
    answer."""
    model = AudioModel(LocalEngine(load("embedded")), _note)
    sampling_params = SamplingParams(max_new_tokens=entry.max_new_tokens)
    examples = manifest.select(
        manifest.read(manifest_path(entry.manifest, base), require_audio=not entry.allow_text_only), entry.where
    )
    for example in _examples_of_each_category(examples):
        started = perf_counter()
        answer = model.ask(example.clips, example.question, sampling_params=sampling_params)
        seconds = perf_counter() - started
        click.echo(f"{', '.join(path.name for path in example.audio_paths)}: {example.question}")
        click.echo(f"    {answer.text.strip()}   (truth: {example.answer[0]}; {seconds:.2f} s)")


def _examples_of_each_category(examples: list[Example]) -> list[Example]:
    """`CLIPS_PER_CATEGORY` multiple-choice examples of each category, evenly spaced over the list."""
    by_category: dict[str, list[Example]] = {}
    for example in examples:
        if example.answer and len(example.choices) > 2:
            by_category.setdefault(example.category, []).append(example)
    places = [(2 * number + 1) / (2 * CLIPS_PER_CATEGORY) for number in range(CLIPS_PER_CATEGORY)]
    return [members[int(place * len(members))] for members in by_category.values() for place in places]


def _note(line: str) -> None:
    """Print a line about progress to stderr."""
    click.echo(line, err=True)


def main() -> int:
    """Run from a shell: `python -m earwise.apps.demo --out DIR`. The last line of stdout is the result as JSON."""
    parser = argparse.ArgumentParser(
        prog="earwise.apps.demo",
        description="Ask the default model, train it by reinforcement, evaluate it before and after.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo [runs/demo]")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help=f"recipe with a profile {PROFILE} [{RECIPE}]")
    arguments = parser.parse_args()
    try:
        result = run(arguments.out, arguments.recipe)
    except EarwiseError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        return 2
    except KeyboardInterrupt:
        _note("interrupted; finished work is kept, the same command continues from there")
        return 130
    click.echo(json.dumps({"demo": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
