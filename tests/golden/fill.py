"""Formula weights, test sounds and tensor records, shared by the golden tests of all model families.

The README of the golden files defines all three: a weight is a function of its official name and index, a sound is a
function of five numbers, and a record holds a tensor's shape, its moments and up to 256 of its values.
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
TOLERANCE_FACTOR = 4
"""Allowed difference, in multiples of the recorded difference between the official float32 and float64 results."""


def formula_weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """The weight with this official name and shape, float32."""
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


def formula_sound(audio: Record, rate: int) -> Waveform:
    """A test sound of `audio["seconds"]` seconds at `rate` Hz: two tones, a sweep and pseudo-random noise."""
    index = np.arange(num_samples(audio["seconds"], rate), dtype=np.int64)
    t = index / rate
    envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t)
    tones = 0.3 * np.sin(2 * np.pi * audio["f1"] * t) + 0.2 * np.sin(2 * np.pi * audio["f2"] * t + 0.5)
    sweep = 0.15 * np.sin(2 * np.pi * (audio["f3"] * t + 0.5 * audio["c"] * t * t))
    noise = 0.02 * (((index * index * index + 31 * index) % 65537) / 32768 - 1)
    return (envelope * (tones + sweep) + noise).astype(np.float32)


def assert_matches_record(tensor: Tensor, record: Record, tolerance: float, name: str) -> None:
    """Compare a tensor with its record: shape, up to 256 values, norm, mean and largest absolute value.

    Args:
        tensor: The tensor.
        record: Its record in a golden file.
        tolerance: Allowed absolute difference of a value.
        name: Name of the tensor, for the messages.
    """
    assert list(tensor.shape) == record["shape"], name
    flat = tensor.detach().double().flatten()
    count = min(len(flat), 256)
    sampled = flat[torch.arange(count) * len(flat) // count]
    distance = float((sampled - torch.tensor(record["values"], dtype=torch.float64)).abs().max())
    assert distance <= tolerance, f"{name}: {distance:.3g} > {tolerance:.3g}"
    assert abs(float(flat.norm()) - record["norm"]) <= tolerance * len(flat) ** 0.5, name
    assert abs(float(flat.mean()) - record["mean"]) <= tolerance, name
    assert abs(float(flat.abs().max()) - record["absmax"]) <= tolerance, name
