"""Where a manifest lies that a recipe or a command names."""

from pathlib import Path

from earwise.errors import ConfigError

STARTER = Path(__file__).parents[1] / "assets" / "starter"


def manifest_path(name: str, base: Path) -> Path:
    """`starter:train` and `starter:val` are bundled, anything else is relative to `base`.

    Raises:
        ConfigError: for another name that begins with `starter:`.
    """
    if name.startswith("starter:"):
        path = STARTER / f"{name.removeprefix('starter:')}.jsonl"
        if not path.exists():
            raise ConfigError(f"manifest {name!r}: the bundled ones are starter:train and starter:val")
        return path
    return base / name
