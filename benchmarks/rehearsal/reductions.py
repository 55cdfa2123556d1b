"""What the rehearsal makes smaller than published, and nothing else: rows, steps, processes, widths and addresses.

`reduced` changes a page's command in these places only; `other_differences` compares the recipe that a run recorded
with the published one and finds whatever else differs.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from earwise.config.recipe import Recipe, load_recipe
from earwise.config.recipe_files import find_recipe
from rehearsal.page_commands import PageCommand
from rehearsal.services import PUBLISHED_ADDRESS

STEPS, PROCESSES, ROWS, HELD_OUT_SHARE = 2, 2, 4, 0.3
REDUCTIONS = {
    "model": "widths, layers and vocabulary of every model (in its files: the commands name models as published)",
    "rows": "hand-made files of a few rows; counts in builders and `--limit` accordingly, held-out share 0.3",
    "steps": f"{STEPS} optimizer steps a stage, without warm-up, evaluated and saved after each where the recipe does",
    "processes": f"{PROCESSES} processes on the CPU for any number of GPUs",
    "address": "the address of language models: a stand-in on this machine",
}
"""Name -> what is smaller or elsewhere."""
REDUCED_SETTINGS = ("max_steps", "warmup_steps", "save_steps", "eval_steps", "server")
"""Last keys of recipe settings that may differ from the published ones."""
SARI_COUNTS = ("--sft", "2", "--rl", "6")
_PATTERNS = (
    ("processes", r"(--num_processes|--nproc-per-node) \d+", rf"\1 {PROCESSES}"),
    ("rows", r"(\.jsonl)=\d{3,}", rf"\1={ROWS}"),
    ("rows", r"(--limit) \d+", rf"\1 {ROWS}"),
    ("rows", r"(--val-share) [\d.]+", rf"\1 {HELD_OUT_SHARE}"),
)


def reduced(command: PageCommand, address: str) -> tuple[str, list[str]]:
    """A command of a page at the size of the rehearsal.

    Args:
        command: The command.
        address: Address of the stand-in for language models.
    Returns:
        The line for a shell, and the names of the reductions in it.
    """
    line, names = command.line, []
    for name, pattern, replacement in _PATTERNS:
        changed = re.sub(pattern, replacement, line)
        names += [name] if changed != line else []
        line = changed
    if PUBLISHED_ADDRESS in line:
        line = line.replace(PUBLISHED_ADDRESS, address)
        names.append("address")
    if command.earwise[:2] == ("build", "sari"):
        line += f" {shlex.join(SARI_COUNTS)}"
        names.append("rows")
    if command.is_training:
        line += "".join(f" {shlex.quote(setting)}" for setting in reduced_settings(published(command), address))
        names.append("steps")
    return line, list(dict.fromkeys(names))


def published(command: PageCommand) -> Recipe:
    """The recipe that a training command of a page starts, with the settings that the page itself changes."""
    arguments = command.earwise
    path, _ = find_recipe(arguments[1])
    overrides = [word for word in arguments[2:] if "=" in word and not word.startswith("-")]
    return load_recipe(path, profile=command.option("--profile"), arm=command.option("--arm"), overrides=overrides)


def reduced_settings(recipe: Recipe, address: str) -> Iterator[str]:
    """Settings that shorten every stage of a recipe, and send its judge to the stand-in."""
    for number, stage in enumerate(recipe.stages):
        yield f"stages.{number}.max_steps={STEPS}"
        if stage.optimizer.warmup_steps:
            yield f"stages.{number}.optimizer.warmup_steps=0"
        for name in ("save_steps", "eval_steps"):
            if getattr(stage, name, None):
                yield f"stages.{number}.{name}=1"
        judge = getattr(stage, "judge", None)
        if judge is not None and PUBLISHED_ADDRESS in judge.server:
            yield f"stages.{number}.judge.server={judge.server.replace(PUBLISHED_ADDRESS, address)}"


def other_differences(recorded: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Settings of a run that differ from the published recipe and are no reduction.

    Args:
        recorded: `recipe` in the run's recipe.json.
        recipe: The published one.
    """
    here, there = dict(flattened(recorded)), dict(flattened(recipe.model_dump(mode="json")))
    for key in [key for key in here if key.endswith("weights")]:
        name, at, commit = str(here[key]).partition("@")
        if at and re.fullmatch("[0-9a-f]{40}", commit) and there.get(key, name) == name:
            here[key] = there[key] = name  # the published weights, with the commit that was used
    keys = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
    return sorted(key for key in keys if key.rpartition(".")[2] not in REDUCED_SETTINGS)


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings and lists under dotted keys; empty ones and None count as absent.

    >>> dict(flattened({"a": [{"b": 1}, 2], "c": None}))
    {'a.0.b': 1, 'a.1': 2}
    """
    if isinstance(value, Mapping):
        pairs = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        if value is not None:
            yield prefix, value
        return
    for key, inner in pairs:
        yield from flattened(inner, f"{prefix}.{key}" if prefix else key)
