"""How fast a run is: durations for a person to read, and the share of the hardware's peak (MFU). No torch.

Model FLOPs utilisation as in PaLM (arXiv:2204.02311, appendix B): the floating-point operations that the step's tokens
need, divided by those that the devices could do in its time. Sampling, the encoder and everything else that takes time
counts as time and not as work, so the figure is low where a stage samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

PEAK_TFLOPS: Mapping[str, float] = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Part of a device's name -> dense bfloat16 peak in 10^12 operations per second (NVIDIA's data sheets); the first that
occurs in the name counts."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """What a step's work is measured against.

    Attributes:
        decoder_parameters: Parameters of the decoder.
        trains_decoder: Whether all weights of the decoder have gradients; with LoRA, or frozen, only activations do.
        peak_flops: Operations per second of all devices at their peak.
    """

    decoder_parameters: int
    trains_decoder: bool
    peak_flops: float

    def mfu(self, tokens: float, seconds: float) -> float:
        """Share of the peak that a step reaches.

        Two operations per token and parameter in the forward pass, two for the gradients of activations, two for those
        of weights.

        Args:
            tokens: Distinct tokens of the step's forward passes, of all processes.
            seconds: Duration of the step.

        >>> Throughput(7_000_000_000, True, 989e12).mfu(8192, 1.0)
        0.3478907987866532
        """
        per_token = (6 if self.trains_decoder else 4) * self.decoder_parameters
        return per_token * tokens / seconds / self.peak_flops


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a device in operations per second; None for one that is not in the table.

    >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("a processor")
    (989000000000000.0, None)
    """
    tflops = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in device_name), None)
    return None if tflops is None else tflops * 1e12


def duration_text(seconds: float) -> str:
    """A duration for a person to read, in at most two units.

    >>> [duration_text(seconds) for seconds in (4.2, 75, 7_380, 200_000)]
    ['4.2 s', '1 min 15 s', '2 h 3 min', '2 d 7 h']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {whole_seconds} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
