"""The engine that samples the policy's completions: this process, or a server with weights of its own.

A rollout server (`rollout_server:` in the recipe) was started with weights that the policy soon leaves behind. Its
completions are trained on with importance ratios against the server's own log-probabilities, clipped as between several
updates of one rollout (`losses.grpo_loss`). The server must therefore return token ids and log-probabilities, as vLLM
does. `ratio_mean` in the log shows how far policy and server differ; `weight_sync.py` sends newer weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from earwise.engine.base import Engine, Prompt
from earwise.engine.local import LocalEngine
from earwise.errors import EngineError
from earwise.forest import TokenPath
from earwise.models.base import AudioLM
from earwise.models.encoder_cache import EncoderCache
from earwise.models.prompt_encoding import conversation_path
from earwise.training.policy import MicroBatch
from earwise.types import Completion

KINDS_WITH_TOKEN_PROMPTS = ("vllm",)
"""Kinds of servers that may take prompts as token ids."""


def open_rollout_engine(
    address: str | None, model: AudioLM, encoder_cache: EncoderCache, *, batch_size: int, log: Path | None = None
) -> Engine:
    """Open the engine for rollouts.

    A server that takes token ids gets those of the policy; otherwise one that returns the ids of prompts is held to
    those of the policy.

    Args:
        address: Address of a server that accepts audio; None to sample from the policy in this process.
        model: The policy.
        encoder_cache: Encoder states that sampling in this process shares with the update.
        batch_size: Number of prompts that are sampled together in this process.
        log: File for the prompts and answers of a server.
    Raises:
        EngineError: if the server does not answer, or could not be shown to use the audio.
    """
    if address is None:
        return LocalEngine(model, encoder_cache=encoder_cache, batch_size=batch_size)
    from earwise.engine.remote import token_prompts  # imports the HTTP client, as the next two
    from earwise.engine.remote.client import run_coroutine
    from earwise.engine.remote.probe import open_remote_engine

    engine = open_remote_engine(address, log=log)
    engine.prompt_check = partial(check_prompt, model)
    if engine.kind in KINDS_WITH_TOKEN_PROMPTS and run_coroutine(token_prompts.are_accepted(engine.address)):
        engine.token_prompts = token_prompts.TokenPrompts(partial(encode_prompt, model), model.tokenizer.decode)
    return engine


def encode_prompt(model: AudioLM, prompt: Prompt) -> list[int]:
    """Token ids of a prompt with one audio placeholder for each clip, which a server replaces by as many as it takes.

    Args:
        model: The policy.
        prompt: The prompt.
    """
    path = _prompt_path(model, prompt)
    return [
        token
        for place, (token, clip) in enumerate(zip(path.ids, path.clips, strict=True))
        if clip < 0 or place == 0 or path.clips[place - 1] != clip
    ]


def _prompt_path(model: AudioLM, prompt: Prompt) -> TokenPath:
    """The tokens of a prompt as the policy is trained on them."""
    num_samples = [len(waveform) for waveform in prompt.waveforms]
    return conversation_path(model, prompt.turns, range(len(num_samples)), num_samples, generate=True)


def check_prompt(model: AudioLM, prompt: Prompt, server_ids: Sequence[int]) -> str | None:
    """Compare the token ids of a prompt on the server with those that the policy is trained on.

    Args:
        model: The policy.
        prompt: The prompt.
        server_ids: Its token ids on the server, with one audio placeholder per audio token.
    Returns:
        What differs and the remedy; None if all ids are equal.
    """
    ids = _prompt_path(model, prompt).ids
    if tuple(server_ids) == ids:
        return None
    place = next(
        (number for number, pair in enumerate(zip(ids, server_ids, strict=False)) if pair[0] != pair[1]),
        min(len(ids), len(server_ids)),
    )
    here, there = (model.tokenizer.backend.decode(list(part[place : place + 8]), False) for part in (ids, server_ids))
    return (
        f"the server reads the prompt as {len(server_ids)} tokens, the policy as {len(ids)}; token {place} begins "
        f"{there!r} there and {here!r} here; serve the same checkpoint with its own chat template, "
        "or start vLLM with --enable-scale-out, so that it takes token ids"
    )


def accept_sampled(model: AudioLM, groups: Sequence[Sequence[Completion]], server: str) -> list[list[Completion]]:
    """Completions of a server as the policy is trained on them: their token ids decide, and their text is what the
    policy's tokenizer makes of these ids.

    Texts are compared only in whole characters. A completion may be cut inside a character of several bytes, and every
    program writes such an end in its own way.

    Args:
        model: The policy.
        groups: Completions of each prompt.
        server: Address of the server, for error messages.
    Raises:
        EngineError: if a completion has no token ids or log-probabilities, or its ids decode to another text with the
            policy's tokenizer.
    """
    return [[_accept(model, completion, server) for completion in group] for group in groups]


def _accept(model: AudioLM, completion: Completion, server: str) -> Completion:
    """One completion of a server; see `accept_sampled`."""
    if not completion.token_ids or len(completion.token_ids) != len(completion.logprobs):
        raise EngineError(
            f"{server}: a completion came with {len(completion.token_ids)} token ids and "
            f"{len(completion.logprobs)} log-probabilities; rollouts need both: serve the model with vLLM, or "
            "leave `rollout_server` out"
        )
    decoded = model.tokenizer.decode(completion.token_ids)
    if whole_characters(decoded) != whole_characters(completion.text):
        raise EngineError(
            f"{server}: its token ids decode to {decoded[:40]!r} here, but its text is {completion.text[:40]!r}; serve "
            f"{model.name}, so that both sides have the same tokenizer"
        )
    return replace(completion, text=decoded)


def whole_characters(text: str) -> str:
    """A text without the marks of bytes that are no character (U+FFFD) and without white space at its ends.

    >>> whole_characters("犬が吠\ufffd\ufffd ") == whole_characters("犬が吠")
    True
    """
    return text.replace("\ufffd", "").strip()


def sampled_logprobs(
    completions: Sequence[Completion], micro_batch: MicroBatch[Any], first_branch: int
) -> Float[Tensor, "branches tokens"]:
    """The engine's log-probabilities of a micro-batch's completions, arranged as `Policy` returns them.

    Args:
        completions: Completions of all branches of the step, in order.
        micro_batch: One forward pass of the step.
        first_branch: Number of its first branch among those of the step.
    Returns:
        Natural-log probabilities (nats), 0 at padding.
    """
    loss_mask = micro_batch.forest.loss_mask
    logprobs = torch.zeros(loss_mask.shape, dtype=torch.float32, device=loss_mask.device)
    for row, trained in enumerate(loss_mask.any(1).tolist()):
        if trained:  # else a completion that is masked
            values = completions[first_branch + row].logprobs
            logprobs[row, : len(values)] = torch.tensor(values, device=loss_mask.device)
    return logprobs
