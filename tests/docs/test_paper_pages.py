"""The commands of the papers' pages, from downloads to the table, run on small files in the published formats.

Builders run as they stand but for what a laptop cannot have: counts are smaller, a template stands in for the teacher,
the embedded model for a 7B model. Training runs with `--plan`, which opens every manifest. Afterwards every manifest
that the recipe names, in any arm, is there. `make rehearse` runs the same commands whole.
"""

import re
import shlex
from pathlib import Path

import pytest

from earwise import cli
from earwise.config.recipe import load_recipe
from earwise.config.recipe_files import find_recipe
from earwise.config.variants import take_definitions
from published_files import write_downloads

PAGES = Path(__file__).parents[2] / "docs" / "papers"
SECTION = re.compile(r"^##+ From downloads to the table\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
RECIPES = {
    "r1-aqa": ("r1-aqa",),
    "sari": ("sari",),
    "mellow": ("mellow",),
    "xs-cot": ("xs-cot",),
    "qwen2-audio": ("qwen2-audio",),
    "others": ("ke-omni-r", "cesar", "audio-thinker"),
    "later": ("hyper", "audiomcq", "audio-r1", "gkd"),
}
LOADED_FROM_A_HUB = ("--model", "--captioner", "--policy")
"""Options that name a large model; the embedded one takes its place."""
ELSEWHERE = ("earwise.models.convert", "earwise table")
"""Converters of released weights, which tests/unit/models runs, and tables, which tests/unit/apps makes."""
SERVICES = ("--teacher", "--teacher-model")


def commands(page: str) -> list[str]:
    """The command lines of a page's section, with continuation lines joined."""
    section = SECTION.search((PAGES / f"{page}.md").read_text(encoding="utf-8"))
    assert section, page
    blocks = re.findall(r"^```console\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def small(command: str) -> list[str]:
    """The arguments of `earwise` for a command of a page, at the size of a test; empty for another program."""
    words = shlex.split(command)
    if "-m" in words and "earwise" in words:  # accelerate launch ... -m earwise train, torchrun ...
        words = words[words.index("earwise") :]
    if words[0] != "earwise" or words[1] == "table":
        return []
    arguments = [re.sub(r"=\d{3,}$", "=2", word) for word in words[1:]]
    for option in SERVICES:
        if option in arguments:
            del arguments[arguments.index(option) : arguments.index(option) + 2]
    for option in LOADED_FROM_A_HUB:
        if option in arguments:
            arguments[arguments.index(option) + 1] = "embedded"
    if "--captioner" in arguments:  # with the template teacher, captions come from labels
        del arguments[arguments.index("--captioner") : arguments.index("--captioner") + 2]
        arguments += ["--sft", "2", "--rl", "4", "--attempts", "2", "--max-new-tokens", "8", "--keep-unsolved"]
    for option, value in (("--max-new-tokens", "8"), ("--limit", "4"), ("--val-share", "0.3")):
        if option in arguments and arguments[0] in ("evaluate", "build"):
            arguments[arguments.index(option) + 1] = value
    if arguments[0] == "train" and "--plan" not in arguments:
        arguments.append("--plan")
    if arguments[0] == "evaluate":
        arguments += [] if "--limit" in arguments else ["--limit", "2"]
        arguments += [] if "--no-controls" in arguments else ["--no-controls"]
    return arguments


def manifests(recipe_name: str) -> set[str]:
    """Manifests that a recipe names in the profile `paper`, without and with each of its arms."""
    import yaml

    path, _ = find_recipe(recipe_name)
    arms = take_definitions(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))["arms"]
    names = set()
    for arm in (None, *(arm for arm in arms if not arm.startswith("cpu-"))):
        recipe = load_recipe(recipe_name, profile="paper", arm=arm)
        for stage in recipe.stages:
            held_out = getattr(stage, "held_out", None)
            entries = (*stage.data.mixture, stage.eval_dataset, held_out)
            names |= {entry.manifest for entry in entries if entry is not None}
        names |= {entry.manifest for entry in recipe.eval}
    return names


@pytest.mark.weights
@pytest.mark.parametrize("page", RECIPES)
def test_commands_from_downloads_to_the_table(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_downloads(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = commands(page)
    assert len(lines) > 5
    for command in lines:
        arguments = small(command)
        if not arguments:
            assert any(name in command for name in ELSEWHERE), command
            continue
        if arguments[0] == "train":
            assert "paper" in arguments or "one-gpu" in arguments or "24gb" in arguments, command
        code = cli.run(arguments)
        assert code == 0, f"{command}\n-> earwise {shlex.join(arguments)}\n{capfd.readouterr().err[-3000:]}"
    for name in RECIPES[page]:
        missing = {manifest for manifest in manifests(name) if not (tmp_path / "data" / manifest).is_file()}
        assert not missing, f"{name}: no command of the page builds {sorted(missing)}"
