"""Random numbers of sampling, and what is drawn with them.

A sample's number at its k-th token depends on the seed, its prompt's key, its own place among the prompt's samples and
k: not on what else is in the batch, who has ended, or how many tokens a pass computes.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from earwise.engine.base import Decoding


class Draws:
    """Uniform numbers of one prompt.

    Args:
        seed: Of the decoding.
        key: Of the prompt.
        n: Its samples.
    """

    def __init__(self, seed: int, key: str, n: int) -> None:
        digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        self._n = n
        self._numbers: list[Tensor] = []

    def at(self, token: int, samples: Sequence[int]) -> Tensor:
        """Numbers in [0, 1) of some samples for their `token`-th token, `(samples,)`, float64."""
        while len(self._numbers) <= token:
            self._numbers.append(torch.rand(self._n, generator=self._generator, dtype=torch.float64))
        numbers = self._numbers[token]
        return numbers if len(samples) == self._n else numbers[list(samples)]


def drawn(logprobs: Tensor, numbers: Tensor, decoding: Decoding) -> Tensor:
    """Tokens by inversion: the first one whose cumulated weight is above the uniform number.

    Args:
        logprobs: Of the next token, `(rows, vocab)`.
        numbers: Uniform, `(rows, samples)`, float64.
        decoding: Temperature, top-k, top-p.
    Returns:
        Token ids `(rows, samples)`.
    """
    total = _weights(logprobs, decoding).double().cumsum(-1)
    found = torch.searchsorted(total, numbers.to(total.device) * total[:, -1:], right=True)
    return found.clamp_max(logprobs.shape[-1] - 1)


def _weights(logprobs: Tensor, decoding: Decoding) -> Tensor:
    """Sampling probabilities after temperature, top-k and top-p (the smallest set of likeliest tokens that reaches
    p)."""
    scaled = logprobs / decoding.temperature
    if decoding.top_k:
        floor = scaled.topk(min(decoding.top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    weights = torch.softmax(scaled, -1)
    if decoding.top_p < 1:
        ordered, order = weights.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= decoding.top_p
        weights = weights.scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return weights
