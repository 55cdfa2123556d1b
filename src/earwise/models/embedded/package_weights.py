"""Write the trained part of the embedded model, as recipe `embedded` trained it, into the package in float16.

Run as `python -m earwise.models.embedded.package_weights RUN`. One file holds both stages: the second stage trains LoRA
alone, on top of the first, so the model of the first stage is the connector and the first LoRA ranks.
"""

import argparse
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file

from earwise.models.embedded.preload import ALIGNED_RANK, ASSETS
from earwise.models.parts import lora


def main() -> None:
    """Read a finished run of the recipe and write the file in the package's assets."""
    parser = argparse.ArgumentParser(description="write the trained part of the embedded model into the package")
    parser.add_argument("run", type=Path, help="folder of a finished `earwise train embedded`")
    run: Path = parser.parse_args().run
    aligned = load_file(run / "stage-0-align" / "final" / "trained.safetensors")
    tuned = load_file(run / "final" / "trained.safetensors")
    rank = next(len(value) for name, value in aligned.items() if name.endswith("lora_A"))
    first_stage = lora.first_ranks({name: value for name, value in tuned.items() if name.startswith("decoder.")}, rank)
    first_stage |= {name: value for name, value in tuned.items() if name.startswith("connector.")}
    changed = [name for name, value in aligned.items() if not torch.equal(value, first_stage[name])]
    if changed:
        raise click.ClickException(
            f"{run}: the last stage changed {changed[0]} of the first stage; train only LoRA in the last stage"
        )
    ASSETS.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half() for name, value in tuned.items()},
        ASSETS / "trained.safetensors",
        metadata={ALIGNED_RANK: str(rank)},
    )


if __name__ == "__main__":
    main()
