"""`make demo`: from nothing to a model that hears, learns by reinforcement, and the proof, in minutes on two cores.

Above everything but the command line. Parts in order: base weights, a few questions to the default model, the start of
the run measured, a short GRPO run (R1-AQA's recipe, `cpu` profile), the same measurement after it with blind controls,
one page. What is finished is kept: a demo that was stopped goes on where it stopped; one that is complete is done anew.
"""

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from earwise.apps.recipe_eval import headline, measure
from earwise.audio import decode
from earwise.config.recipe import EvalConfig, Recipe, load_recipe
from earwise.data import manifest
from earwise.engine.base import Decoding, Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import ConfigError, EarwiseError
from earwise.evaluate.results import read_run
from earwise.files import write_json
from earwise.models.base import load
from earwise.models.embedded import base_weights
from earwise.prompts import prompt_turns
from earwise.report import write_report
from earwise.train import run as training
from earwise.types import Example

RECIPE = Path("recipes/r1-aqa.yaml")
PROFILE = "cpu"
ASKED = 2  # clips of each category that the default model is asked about first
STARTED, DONE = "started.json", "demo.json"


def run(out: Path, recipe_path: Path = RECIPE) -> dict[str, Any]:
    """Run the demo into `out`, or what is left of it.

    Args:
        out: Folder of the demo; a complete one, or one begun with another recipe, is replaced.
        recipe_path: Recipe with a profile `cpu` and one entry under `eval:`.
    Returns:
        The closing line's object: `accuracy_before`, `accuracy_after`, `blind_accuracy` (after, under silence), `n`,
        `report`, `format_before`, `format_after`, `seconds` (of this process).
    Raises:
        EarwiseError: as its parts do.
    """
    started = perf_counter()
    recipe = load_recipe(recipe_path, profile=PROFILE)
    if len(recipe.eval) != 1:
        raise ConfigError(
            f"{recipe_path}: the demo wants one entry under eval:, profile {PROFILE} has {len(recipe.eval)}"
        )
    base = recipe_path.parent
    _begin(out, recipe)
    _say("1/6 base weights")
    base_weights.base_folder(_say)
    _say("2/6 the default model hears")
    _questions(recipe.eval[0], base)
    _say("3/6 where the run starts")
    start = LocalEngine(load(recipe.model.name, recipe.model.weights))
    before = headline(measure(recipe.eval[0], base, start, out / "before", seed=recipe.seed, blind=(), say=_say))
    del start  # its memory is wanted by the training
    _say("4/6 GRPO")
    folder = out / "train"
    final = (
        training.resume(folder, say=_say)
        if (folder / "recipe.json").exists()
        else training.start(recipe, folder, base, say=_say)
    )
    _say("5/6 after the run, with blind controls")
    trained = LocalEngine(load(str(final)))
    after = headline(measure(recipe.eval[0], base, trained, out / "after", seed=recipe.seed, say=_say))
    _say("6/6 report")
    runs = [read_run(out / "before", "before"), read_run(out / "after", "after")]
    report = write_report(out / "report.html", runs, [folder / "metrics.jsonl"], title="R1-AQA on the embedded model")
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


def _begin(out: Path, recipe: Recipe) -> None:
    """Make the folder, keeping what an interrupted demo of the same recipe, model and version left in it."""
    text = json.dumps([version("earwise"), recipe.model_dump(mode="json"), _weights_mark()], sort_keys=True)
    mark = {"demo": hashlib.sha256(text.encode()).hexdigest()}
    try:
        same = json.loads((out / STARTED).read_text(encoding="utf-8")) == mark
    except (OSError, ValueError):
        same = False
    if same and not (out / DONE).exists():
        _say(f"{out}: going on with a demo that was stopped")
        return
    if out.exists():
        if not (out / STARTED).exists():
            raise ConfigError(f"{out}: is no folder of a demo; choose another --out or delete it")
        shutil.rmtree(out)
    write_json(out / STARTED, mark)


def _weights_mark() -> list[str]:
    """Hashes of the trained parts that the package carries."""
    from earwise.models.embedded.preload import ASSETS

    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(ASSETS.glob("*.safetensors"))]


def _questions(one: EvalConfig, base: Path) -> None:
    """Ask the default model openly about a few clips of each category, and show the truth beside its answer."""
    engine = LocalEngine(load("embedded"))
    for example in _varied(manifest.select(manifest.read(training.manifest_path(one.manifest, base)), one.where)):
        waves = tuple(decode(path, engine.sample_rate, max_s=engine.max_audio_s) for path in example.audio_paths)
        began = perf_counter()
        prompt = Prompt(prompt_turns(replace(example, choices=()), "open"), waves, example.id)
        completion = engine.generate([prompt], Decoding(max_new_tokens=one.max_new_tokens))[0][0]
        took = perf_counter() - began
        clips = ", ".join(path.name for path in example.audio_paths)
        click.echo(f"{clips}: {example.question}")
        click.echo(f"    {completion.text.strip()}   (truth: {example.answer[0]}; {took:.2f} s)")


def _varied(examples: list[Example]) -> list[Example]:
    """A few multiple-choice examples of each category, from different places of the list."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        if example.answer and len(example.choices) > 2:
            groups.setdefault(example.category, []).append(example)
    places = [(2 * number + 1) / (2 * ASKED) for number in range(ASKED)]
    return [members[int(place * len(members))] for members in groups.values() for place in places]


def _say(line: str) -> None:
    click.echo(line, err=True)


def main() -> int:
    """Run from a shell: `python -m earwise.apps.demo --out DIR`. The last line of stdout is the result as JSON."""
    parser = argparse.ArgumentParser(
        prog="earwise.apps.demo", description="The demo: hear, learn by reinforcement, measure."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo [runs/demo]")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help=f"recipe with a profile {PROFILE} [{RECIPE}]")
    given = parser.parse_args()
    try:
        result = run(given.out, given.recipe)
    except EarwiseError as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        return 2
    except KeyboardInterrupt:
        _say("interrupted; finished work is kept, the same command goes on from there")
        return 130
    click.echo(json.dumps({"demo": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
