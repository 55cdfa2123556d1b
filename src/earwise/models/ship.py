"""Put what `recipes/embedded.yaml` trained into the package, in float16: `python -m earwise.models.ship RUN`.

`aligned.safetensors` holds connector and LoRA of the first stage; `tuned.safetensors` only the LoRA that the second stage added (its connector is
frozen), so that both together stay under 40 MB.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from earwise.errors import ModelError
from earwise.models.embedded import ASSETS


def added(aligned: dict[str, Tensor], tuned: dict[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA of `tuned` without the part that it inherited from `aligned`.

    Raises:
        ModelError: if the connector was trained in the second stage.
    """
    for name, value in aligned.items():
        if name.startswith("connector.") and not value.equal(tuned[name]):
            raise ModelError(f"{name} differs between the stages; the second stage must keep the connector frozen")
    out = {}
    for name, value in tuned.items():
        if name.endswith(".lora_A"):
            out[name] = value[aligned[name].shape[0] :].contiguous()
        elif name.endswith(".lora_B"):
            out[name] = value[:, aligned[name].shape[1] :].contiguous()
    return out


def main() -> None:
    """Read a finished run of the recipe and write the package's assets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    aligned = load_file(run / "stage-0-align" / "final" / "trained.safetensors")
    tuned = run / "stage-1-tune" / "final" / "trained.safetensors"
    ASSETS.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in aligned.items()}, ASSETS / "aligned.safetensors")
    if tuned.exists():
        save_file({name: value.half() for name, value in added(aligned, load_file(tuned)).items()}, ASSETS / "tuned.safetensors")


if __name__ == "__main__":
    main()
