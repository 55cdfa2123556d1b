"""Several channels to one: their mean, unless they cancel each other, or the first.

In a recording whose second channel is the first one turned upside down (a balanced line read as stereo, a faulty cable)
the mean is silence. Then the loudest channel is used, and said once.
"""

import logging
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from earwise.types import Waveform

LOG = logging.getLogger("earwise.audio")
Channel = Literal["mean", "first"]
"""What several channels become: their mean, or the first of them."""
CHANNELS: tuple[Channel, ...] = ("mean", "first")
CANCELLED_POWER = 0.01
"""Channels cancel each other if their mean has less than this share of their power (-20 dB). Independent channels keep
a half of it, a sound on one channel of two keeps a half too."""

Block = NDArray[np.float32]
"""Samples of all channels, `(samples, channels)`."""


class Mixer:
    """Mixes the channels of blocks, and measures whether they cancel each other.

    Args:
        channel: `mean`, or the number of a channel.
    """

    def __init__(self, channel: Literal["mean"] | int) -> None:
        self._channel = channel
        self._mean_power = self._channels_power = 0.0

    def mix(self, block: Block) -> Waveform:
        """The mono samples of a block `(samples, channels)`."""
        if self._channel != "mean":
            return np.ascontiguousarray(block[:, self._channel])
        mono = mean_of_channels(block)
        if block.shape[1] > 1:
            self._mean_power += float(np.vdot(mono, mono))
            self._channels_power += float(np.vdot(block, block)) / block.shape[1]
        return mono

    @property
    def cancels(self) -> bool:
        """Whether the mean of the channels has lost nearly all of their sound."""
        return self._mean_power < CANCELLED_POWER * self._channels_power


def mean_of_channels(block: Block) -> Waveform:
    """Mean of all channels, `(samples,)`. For two channels a sum is faster than numpy's mean, with the same bits."""
    if block.shape[1] == 2:
        mono = block[:, 0] + block[:, 1]
        mono *= np.float32(0.5)  # in place: a second array of this size costs as much as the sum
        return mono
    return block[:, 0].copy() if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def loudest_channel(blocks: Iterable[Block]) -> int:
    """Number of the channel with the most power over all blocks."""
    power = np.zeros(1)
    for block in blocks:
        block_power = np.square(block, dtype=np.float64).sum(axis=0)
        size = max(len(power), len(block_power))
        power = np.pad(power, (0, size - len(power))) + np.pad(block_power, (0, size - len(block_power)))
    return int(power.argmax())


_CANCELLING: list[str] = []
"""The first file of this process whose channels cancel each other, once one was decoded."""


def warn_of_cancelling(name: str) -> None:
    """Say once in a process, for the first such file, that channels cancel each other."""
    if not _CANCELLING:
        _CANCELLING.append(name)
        LOG.warning(
            "%s: its channels cancel each other (antiphase), so the loudest is used and not their mean; the same is "
            "done for all such files (`first` always takes the first channel)",
            name,
        )
