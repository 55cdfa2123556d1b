"""Weights that are random but answer in the formats of the recipes, with an option drawn at random.

A model with plain random weights never writes an answer: all rewards are zero, every question of a corpus is dropped as
unsolved, and a rehearsal would not see what happens behind a reward. So each token's direction in the embedding table
is added to the rows of the output head that belong to the tokens that may follow it in some reply. Everything else of
the model is random, its audio encoder too.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from torch import Tensor, nn

OPTIONS = ("a dog", "a car", "rain", "a horn")
"""Options of the rehearsal's questions, one of which is right each time."""
TAGS = tuple(
    f"<{slash}{name}>"
    for name in ("answer", "think", "planning", "caption", "reasoning", "summary")
    for slash in ("", "/")
)
SECTIONS = "<planning>listen</planning><caption>noise</caption><reasoning>fits</reasoning><summary>so</summary>"
REPLIES = (
    *(f"<answer>{option}</answer>" for option in OPTIONS),
    *(f"<think>because it is loud, it must be</think>\n<answer>{option}</answer>" for option in OPTIONS),
    f"<think>{SECTIONS}</think>\n<answer>{OPTIONS[0]}</answer>",
)
STRENGTH = 1.5
"""Length of a token's direction in the head's rows of its successors. With a norm before the head the score of such a
successor is about the square root of the width."""


def train_tokenizer(texts: Iterable[str], special: Sequence[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer as the released ones are: special tokens first, and one token for each tag.

    Args:
        texts: Texts that it is trained on.
        special: Special tokens, whose ids are their places.
        size: Largest number of tokens.
    """
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(TAGS), special_tokens=list(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


@torch.no_grad()
def randomize(module: nn.Module, seed: int, scale: float = 1.0) -> None:
    """Draw all weights anew, large enough that every layer matters.

    Args:
        module: The model, changed in place.
        seed: Seed of the weights.
        scale: Size of what a layer adds, relative to its input.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.05 * noise)
        elif "embed" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(scale * noise * parameter[0].numel() ** -0.5)


@torch.no_grad()
def prefer_replies(embeddings: Tensor, head: Tensor, tokenizer: Tokenizer, start: str, end: str) -> None:
    """Make a model's head continue a prompt with one of `REPLIES`.

    Args:
        embeddings: Token embeddings, `(vocabulary, dim)`.
        head: Output head, `(vocabulary, dim)`, changed in place.
        tokenizer: The model's tokenizer.
        start: Text whose last token stands before every reply.
        end: Token that ends an answer.
    """
    first, last = tokenizer.encode(start).ids[-1], tokenizer.token_to_id(end)
    pairs = set()
    for reply in REPLIES:
        ids = [first, *tokenizer.encode(reply).ids, last]
        pairs |= set(pairwise(ids))
    for before, after in sorted(pairs):
        head[after] += STRENGTH * embeddings[before] / embeddings[before].norm()
