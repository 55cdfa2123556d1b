"""The next tokens of all samples of a pass, drawn from its logits, with what is measured where they are drawn."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from earwise.engine.base import SamplingParams
from earwise.engine.sampling.rng import sample_tokens

MIN_LOGPROB = -1e4
"""Log-probability that stands for that of an impossible token in sums over p log p, so that 0 times it is 0."""


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """What was drawn at every row of a pass.

    Attributes:
        tokens: Token of each sample of a row, in the order of the row's samples; rows with fewer samples than the
            widest are padded.
        logprobs: Their natural-log probabilities at temperature 1.
        entropies: Entropy of the next token at each row at temperature 1, in nats; empty where no pauses are made.
        confidences: Confidence at each row (see `Completion.confidences`); empty where it was not asked for.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    entropies: list[float]
    confidences: list[float]


def draw_tokens(
    logits: Tensor,
    uniforms: Tensor | None,
    width: int,
    sampling_params: SamplingParams,
    pauses: Callable[[list[float]], tuple[list[bool], int]] | None,
) -> DrawnTokens:
    """Draw the next tokens.

    Args:
        logits: Next-token logits, `(rows, vocab)`.
        uniforms: Uniform random numbers, `(rows, width)`, float64; None: greedily.
        width: Largest number of samples of a row.
        sampling_params: Temperature, top-k, top-p, and what is measured.
        pauses: Called with the entropy at each row; returns the rows whose next token is the pause token, and its id.
            None: no pauses are made.
    """
    logprobs = torch.log_softmax(logits.float(), -1)
    if uniforms is None:
        tokens = logprobs.argmax(-1)[:, None].expand(-1, width)
    else:
        tokens = sample_tokens(logprobs, uniforms, sampling_params)
    entropies: list[float] = []
    if pauses is not None:
        entropies = (-(logprobs.exp() * logprobs.clamp_min(MIN_LOGPROB)).sum(-1)).tolist()
        makes_pause, pause_id = pauses(entropies)
        tokens = tokens.masked_fill(torch.tensor(makes_pause, device=tokens.device)[:, None], pause_id)
    top_k = min(sampling_params.confidence_top_k, logprobs.shape[-1])
    confidences = (-logprobs.topk(top_k, -1).values.mean(-1)).tolist() if top_k else []
    return DrawnTokens(tokens.tolist(), logprobs.gather(-1, tokens).tolist(), entropies, confidences)
