"""Finds the file of a recipe: a recipe of the package by its name, a user's own by its path.

`load_recipe` and the commands find a recipe here. The packaged recipes are the YAML files in `earwise/recipes`; their
manifests are relative to the working folder, because the package itself holds no data. In a recipe file of the user
manifests are relative to that file.
"""

import difflib
from pathlib import Path

from earwise.errors import ConfigError

PACKAGED_RECIPES = Path(__file__).parents[1] / "recipes"
LAUNCH_CONFIGS = PACKAGED_RECIPES / "engines"
"""Configuration files for `accelerate launch`."""


def packaged_recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in PACKAGED_RECIPES.glob("*.yaml"))


def launch_configs() -> list[str]:
    """Names of the configurations for `accelerate launch` in the package."""
    return sorted(path.stem for path in LAUNCH_CONFIGS.glob("*.yaml"))


def find_packaged(name: str) -> Path:
    """The YAML file of a packaged recipe, or of a launch configuration.

    Raises:
        ConfigError: if there is none of that name; the message suggests the nearest.
    """
    if name in packaged_recipes():
        return PACKAGED_RECIPES / f"{name}.yaml"
    if name in launch_configs():
        return LAUNCH_CONFIGS / f"{name}.yaml"
    names = [*packaged_recipes(), *launch_configs()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    raise ConfigError(f"recipe {name!r} is not in the package; {hint}")


def find_recipe(name: str | Path) -> tuple[Path, Path]:
    """The file of a recipe, and the folder that its manifests start from.

    Args:
        name: Name of a packaged recipe (`r1-aqa`), or path of a YAML file.
    Returns:
        Path of the YAML file; the working folder for a packaged recipe (by name or by path), else the file's folder.
    Raises:
        ConfigError: if there is neither such a file nor such a packaged recipe.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path, Path() if path.resolve().parent == PACKAGED_RECIPES.resolve() else path.parent
    if path.name == str(name) and not path.suffix and str(name) not in launch_configs():
        return find_packaged(path.name), Path()
    remedy = "give the path of a YAML file, or the name of a packaged recipe (`earwise recipe` lists them)"
    if path.stem in packaged_recipes():
        remedy = f"the recipe of the package is named by {path.stem!r} alone"
    raise ConfigError(f"{name}: no such file; {remedy}")
