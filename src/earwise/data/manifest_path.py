"""Resolves the manifest names that recipes and commands accept: paths, `starter:train` and `starter:val`."""

from pathlib import Path

from earwise.errors import ConfigError

STARTER = Path(__file__).parents[1] / "assets" / "starter"


def manifest_path(name: str, base: Path) -> Path:
    """File of a manifest.

    Args:
        name: `starter:train` or `starter:val` for the bundled starter set, or a path.
        base: Folder that a relative path starts from.
    Raises:
        ConfigError: for any other name that begins with `starter:`.
    """
    if name.startswith("starter:"):
        path = STARTER / f"{name.removeprefix('starter:')}.jsonl"
        if not path.exists():
            raise ConfigError(f"manifest {name!r}: the bundled ones are starter:train and starter:val")
        return path
    return base / name
