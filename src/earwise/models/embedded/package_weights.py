"""Write the trained part of the embedded model into the package, in float16.

Run as `python -m earwise.models.embedded.package_weights MODEL`, where MODEL is the folder of the trained model. One
file holds both stages: the second stage trains LoRA alone, on top of the first, and its connector contains that of the
first. So the model of the first stage is that part of the connector, and the first LoRA ranks. All later ranks together
are reduced to those that matter most, so that the file stays small.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from earwise.errors import ModelError
from earwise.files import atomic_write
from earwise.models.detect import MARKER
from earwise.models.embedded.preload import ALIGNED_RANK, ASSETS, MIX, stored_tensors
from earwise.models.parts import lora

LATER_RANK = 56
"""LoRA ranks that are kept of all that was trained after the first stage."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a trained model and the model of the first stage, and write the file into the package."""
    parser = argparse.ArgumentParser(description="write the trained part of the embedded model into the package")
    parser.add_argument("model", type=Path, help="folder of the trained model, for example runs/embedded/final")
    parser.add_argument("--aligned", type=Path, help="folder of the first stage's model; without it, the shipped one")
    parser.add_argument("--rank", type=int, default=LATER_RANK, help="LoRA ranks to keep of what came after it")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    options = parser.parse_args(arguments)
    write_package(options.model, options.aligned or ASSETS, options.rank, options.out)


def write_package(model: Path, aligned: Path, rank: int, out: Path) -> None:
    """Write a trained model as the package has it.

    Args:
        model: Folder of the trained model.
        aligned: Folder of the first stage's model, or of a packaged one that says how many ranks are that stage's.
        rank: LoRA ranks to keep of what came after the first stage.
        out: Folder to write to; may be `aligned`.
    Raises:
        ModelError: if a later stage changed something of the first, or a file is missing.
    """
    first, metadata = stored_tensors(aligned / "trained.safetensors")
    trained, _ = stored_tensors(model / "trained.safetensors")
    first_rank = int(metadata.get(ALIGNED_RANK) or next(len(first[name]) for name in first if name.endswith("lora_A")))
    matrices = {name: value for name, value in trained.items() if ".lora_" in name}
    rest = {name: value for name, value in trained.items() if name not in matrices}
    first_ranks = lora.first_ranks(matrices, first_rank)
    now = first_ranks | {name.replace(f"connector.{MIX}", "connector."): value for name, value in rest.items()}
    for name, value in (
        first | lora.first_ranks({n: v for n, v in first.items() if ".lora_" in n}, first_rank)
    ).items():
        if name in now and not torch.equal(value.half(), now[name].half()):
            raise ModelError(f"{model}: a later stage changed {name} of the first stage; train only new LoRA there")
    later = lora.reduce_ranks(lora.ranks_after(matrices, first_rank), rank)
    stored = {
        name: value.half().contiguous()
        for name, value in (rest | lora.concatenate_ranks(first_ranks, later)).items()
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "trained.safetensors", "wb") as file:
        file.write(save(stored, metadata={ALIGNED_RANK: str(first_rank)}))
    shutil.copy(model / MARKER, out / MARKER)


if __name__ == "__main__":
    main()
