"""Schema of the hardware that a profile of a recipe is meant for; input of the memory planner. No torch."""

from typing import Literal

from pydantic import Field

from earwise.config.strict import Strict


class HardwareConfig(Strict):
    """GPUs that a recipe is trained on."""

    gpus: int = Field(1, gt=0)
    """Number of GPUs, each with a process of its own."""
    gpu_memory_gb: float = Field(80.0, gt=0)
    """Memory of each GPU in gigabytes (10^9 bytes)."""
    engine: Literal["ddp", "fsdp2"] = "ddp"
    """How processes share the weights: `ddp` holds all of them in each, `fsdp2` divides the decoder's layers. It is
    chosen when a run is launched; see `earwise recipe --path`."""
