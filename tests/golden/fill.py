"""Formula weights, test sounds and stage records shared by the golden tests of all model families.

The golden files' README defines all three: a weight is a function of its official name and index, a sound of five
numbers, and a record keeps a tensor's shape, its moments and up to 256 of its values.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earwise.audio import num_samples
from earwise.types import Waveform

Record = Mapping[str, Any]
SLACK = 4  # times the recorded distance of the official float32 from float64


def filled(name: str, shape: Sequence[int]) -> np.ndarray:
    """The weight of that official name and shape, float32."""
    offset, scale = 0.0, 0.02
    if name.endswith("running_var"):
        offset, scale = 100.0, 50.0
    elif name.endswith("weight_g") or (len(shape) == 1 and name.endswith("weight")):
        offset, scale = 1.0, 0.05
    elif len(shape) > 1:
        scale = float(np.prod(shape[1:])) ** -0.5
    k = np.arange(int(np.prod(shape)), dtype=np.int64)
    angle = zlib.crc32(name.encode()) % 1000 + 0.37 * k + 2.3 * ((k * k) % 1013)
    return (offset + scale * np.sin(angle)).astype(np.float32).reshape(tuple(shape))


def wave(audio: Record, rate: int) -> Waveform:
    """A test sound of `audio["seconds"]` seconds at `rate` Hz: two tones, a sweep and a pseudo-random floor."""
    i = np.arange(num_samples(audio["seconds"], rate), dtype=np.int64)
    t = i / rate
    slow = 0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t)
    tones = 0.3 * np.sin(2 * np.pi * audio["f1"] * t) + 0.2 * np.sin(2 * np.pi * audio["f2"] * t + 0.5)
    sweep = 0.15 * np.sin(2 * np.pi * (audio["f3"] * t + 0.5 * audio["c"] * t * t))
    floor = 0.02 * (((i * i * i + 31 * i) % 65537) / 32768 - 1)
    return (slow * (tones + sweep) + floor).astype(np.float32)


def check(got: Tensor, want: Record, tolerance: float, what: str) -> None:
    """Compare a tensor with its record: shape, up to 256 values, norm, mean and largest absolute value."""
    assert list(got.shape) == want["shape"], what
    flat = got.detach().double().flatten()
    count = min(len(flat), 256)
    picked = flat[torch.arange(count) * len(flat) // count]
    distance = float((picked - torch.tensor(want["values"], dtype=torch.float64)).abs().max())
    assert distance <= tolerance, f"{what}: {distance:.3g} > {tolerance:.3g}"
    assert abs(float(flat.norm()) - want["norm"]) <= tolerance * len(flat) ** 0.5, what
    assert abs(float(flat.mean()) - want["mean"]) <= tolerance, what
    assert abs(float(flat.abs().max()) - want["absmax"]) <= tolerance, what
