"""Pause tokens: where the model is unsure of its next token, a token without meaning stands in its place.

The model computes one more column of hidden states per pause token before it goes on. Where a pause stands depends on
the completion so far and on the next-token distribution alone, so batches and draft tokens change nothing. The tokens
stay in `Completion.token_ids` and are left out of its text.

Sources: pause tokens, a run of them at a time: Goyal et al. (arXiv:2310.02226, section 3). Inserted while sampling
where the entropy is high, at most a few times: HyPeR (arXiv:2604.14806), released code JOY-SWang/HyPeR@f7c95ac,
`grpo_trainer_deepconf_hs.py`. Deviations: 1. the threshold is a number of nats that the caller gives, not a quantile of
what the batch has shown so far, on which the result would depend; 2. no hidden text follows a pause (the released code
opens a hidden span and has no way out of it); 3. the token after a pause is always sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from earwise.engine.base import PauseParams
from earwise.errors import ConfigError
from earwise.models.base import AudioLM


@dataclass(frozen=True, slots=True)
class PauseRule:
    """Where a pause token is put.

    Attributes:
        token_id: Id of the pause token.
        params: Threshold, budget and length of a pause.
    """

    token_id: int
    params: PauseParams

    def applies(self, token_ids: Sequence[int], entropy: float) -> bool:
        """Whether the next token is a pause token.

        Args:
            token_ids: Tokens of the completion so far.
            entropy: Entropy of the next token at temperature 1, in nats.
        """
        length = self.params.tokens_per_pause
        run = 0
        while run < len(token_ids) and token_ids[-1 - run] == self.token_id:
            run += 1
        if run:
            return run % length != 0
        num_pauses = token_ids.count(self.token_id) // length
        return entropy >= self.params.entropy and num_pauses < self.params.max_pauses

    def visible(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens without pause tokens."""
        return [token for token in token_ids if token != self.token_id]


def pause_rule(model: AudioLM, params: PauseParams) -> PauseRule:
    """The rule for a model; see `pause_token_id`."""
    return PauseRule(pause_token_id(model, params.token), params)


def pause_token_id(model: AudioLM, token: str) -> int:
    """Id of the pause token of a model.

    Args:
        model: The model, for its tokenizer and its embedding table.
        token: Text of the token; empty for the first row of the embedding table behind those of the tokenizer.
    Raises:
        ConfigError: if the tokenizer has no such token, or it already has a meaning, or no row is unused.
    """
    tokenizer = model.tokenizer
    if not token:
        first_unused = max(tokenizer.backend.get_vocab(with_added_tokens=True).values()) + 1
        num_rows = _embedding_rows(model)
        if first_unused >= num_rows:
            raise ConfigError(
                f"{model.name} has no unused row in its embedding table ({num_rows} rows); name a pause token that it "
                f"has and does not use, for example {_example(model)}"
            )
        return int(first_unused)
    token_id = tokenizer.backend.token_to_id(token)
    if token_id is None:
        raise ConfigError(
            f"pause token {token!r} is no token of {model.name}; name one that it has and does not use, for example "
            f"{_example(model)}"
        )
    if token_id in (*model.eos_ids, tokenizer.placeholder_id):
        raise ConfigError(f"pause token {token!r} ends answers of {model.name}, or stands for its sound")
    return int(token_id)


def _embedding_rows(model: AudioLM) -> int:
    """Number of rows of the decoder's embedding table, the largest one of the model."""
    return max(module.num_embeddings for module in model.module.modules() if isinstance(module, nn.Embedding))


def _example(model: AudioLM) -> str:
    """A special token of a model that neither ends answers nor stands for sound."""
    taken = (*model.eos_ids, model.tokenizer.placeholder_id)
    added = model.tokenizer.backend.get_added_tokens_decoder()
    return next((repr(token.content) for number, token in added.items() if number not in taken), "none")
