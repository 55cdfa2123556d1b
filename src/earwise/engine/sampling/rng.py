"""Sampling with random numbers that belong to a sample and a position, so that batching never changes a result.

The k-th token of a sample is drawn with one uniform number that depends on the seed, the prompt's key, the sample's
index among the prompt's samples, and k. It does not depend on the other prompts in the batch, on which samples have
finished, or on how many tokens one forward pass computes. That is what makes greedy and random decoding batch
invariant, and what lets `engine.sampling.draft` verify draft tokens without changing the distribution.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from earwise.engine.base import SamplingParams


class UniformDraws:
    """The uniform random numbers of all samples of one prompt.

    Args:
        seed: Seed of the sampling parameters.
        key: Key of the prompt.
        n: Number of samples of the prompt.
    """

    def __init__(self, seed: int, key: str, n: int) -> None:
        digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        self._n = n
        self._rows: list[Tensor] = []
        """One row of `n` numbers per completion position, generated when it is first needed."""

    def numbers_at(self, position: int, samples: Sequence[int]) -> Tensor:
        """The numbers of some samples for one position of their completions.

        Args:
            position: Index of the token in the completion, from 0.
            samples: Indices of the samples among the prompt's `n`.
        Returns:
            Numbers in [0, 1), `(samples,)`, float64.
        """
        while len(self._rows) <= position:
            self._rows.append(torch.rand(self._n, generator=self._generator, dtype=torch.float64))
        row = self._rows[position]
        return row if len(samples) == self._n else row[list(samples)]


def sample_tokens(logprobs: Tensor, uniforms: Tensor, sampling_params: SamplingParams) -> Tensor:
    """Draw tokens by inverse transform sampling: the first token whose cumulative probability exceeds the uniform.

    Args:
        logprobs: Next-token log-probabilities, `(rows, vocab)`.
        uniforms: Uniform random numbers, `(rows, samples)`, float64.
        sampling_params: Temperature, top-k and top-p.
    Returns:
        Token ids, `(rows, samples)`.
    """
    cumulative = _probabilities(logprobs, sampling_params).double().cumsum(-1)
    # Scaled by the total, since top-k and top-p leave probabilities that do not add up to one.
    tokens = torch.searchsorted(cumulative, uniforms.to(cumulative.device) * cumulative[:, -1:], right=True)
    return tokens.clamp_max(logprobs.shape[-1] - 1)


def _probabilities(logprobs: Tensor, sampling_params: SamplingParams) -> Tensor:
    """Token probabilities after temperature, top-k and top-p, without renormalisation.

    Top-p keeps the smallest set of likeliest tokens whose probabilities reach p.
    """
    scaled = logprobs / sampling_params.temperature
    if sampling_params.top_k:
        threshold = scaled.topk(min(sampling_params.top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, -torch.inf)
    probabilities = torch.softmax(scaled, -1)
    if sampling_params.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling_params.top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return probabilities
