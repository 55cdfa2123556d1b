"""Put what `recipes/embedded.yaml` trained into the package, in float16: `python -m earwise.models.ship RUN`."""

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file

from earwise.models.embedded import ASSETS


def main() -> None:
    """Read a finished run of the recipe and write the package's asset."""
    parser = argparse.ArgumentParser(description="write the trained part of the embedded model into the package")
    parser.add_argument("run", type=Path, help="folder of a finished `earwise train recipes/embedded.yaml`")
    run: Path = parser.parse_args().run
    state = load_file(run / "final" / "trained.safetensors")
    ASSETS.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in state.items()}, ASSETS / "trained.safetensors")


if __name__ == "__main__":
    main()
