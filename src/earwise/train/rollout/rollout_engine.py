"""Who samples a policy's completions: this process, or a server with weights of its own.

A server (`sampler:` in the recipe, an address as in `--model`) was started with weights that the policy soon leaves
behind. What it drew is then learnt from with importance ratios against its own log-probabilities, clipped as between
several updates of one rollout (`losses.grpo_loss`); so it must tell token ids and log-probabilities, as vLLM does.
How far policy and server have come apart shows in the log as `ratio_mean`; `train/refresh.py` sends newer weights.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from earwise.engine.base import Engine
from earwise.engine.local import LocalEngine
from earwise.errors import EngineError
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.train.policy import Micro
from earwise.types import Completion


def sampler(address: str | None, model: AudioLM, encoder_cache: EncoderCache, *, trees: int, log: Path | None = None) -> Engine:
    """An engine for rollouts.

    Args:
        address: Of a server that hears; None samples here, from the policy itself.
        model: The policy.
        ears: Shared with the update, where sampling is done here.
        trees: Prompts sampled together here.
        log: Where a server's prompts and answers are kept.
    Raises:
        EngineError: if the server does not answer, or was not shown to hear.
    """
    if address is None:
        return LocalEngine(model, encoder_cache=encoder_cache, trees=trees)
    from earwise.engine.remote.probe import open_remote_engine  # brings the HTTP client

    return open_remote_engine(address, log=log)


def check_drawn(model: AudioLM, groups: Sequence[Sequence[Completion]], server: str) -> None:
    """Refuse what cannot be learnt from.

    Raises:
        EngineError: if a completion has no token ids or log-probabilities, or its ids say something else to this
            model than the server's text.
    """
    for group in groups:
        for one in group:
            if not one.token_ids or len(one.token_ids) != len(one.logprobs):
                raise EngineError(
                    f"{server}: {len(one.token_ids)} token ids and {len(one.logprobs)} log-probabilities came with an "
                    "answer; rollouts need both: serve the model with vLLM, or leave `sampler` out"
                )
        first = group[0]
        if model.detokenize(first.token_ids).strip() != first.text.strip():
            raise EngineError(
                f"{server}: its tokens say {model.detokenize(first.token_ids)[:40]!r} here and {first.text[:40]!r} "
                f"there; serve {model.name}, whose tokens they are to be"
            )


def drawn_logprobs(completions: Sequence[Completion], micro: Micro, start: int) -> Tensor:
    """The sampler's log-probabilities, `(branches, tokens)` as `Policy` gives them, 0 at padding.

    Args:
        completions: Of all branches of the step, in order.
        micro: One forward pass of the step.
        start: Number of its first branch.
    """
    mask = micro.forest.loss_mask
    out = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for row in range(len(out)):
        values = completions[start + row].logprobs
        out[row, : len(values)] = torch.tensor(values, device=mask.device)
    return out
