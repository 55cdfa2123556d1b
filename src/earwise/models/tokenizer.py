"""The tokenizer of a model: text to token ids and back, and the ids of the special tokens that the other parts need.

Every family has one as `AudioLM.tokenizer`; prompts, sampling and losses never call the `tokenizers` library directly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from earwise.errors import ModelError

FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """A checkpoint's tokenizer with the special tokens of one model.

    Attributes:
        backend: The tokenizer as it was read; `save` writes this one.
        placeholder_id: Id of the token that audio embeddings replace.
        eos_ids: Ids of the tokens that end a completion; training writes the first.
        opening: Token that may stand at the start of a text. The text behind it is tokenised by itself, so that its
            first word is cut as at the start of a line. "" for families without such a token.
        encoding_backend: Tokenizer for `encode` where it has to differ from `backend`; None uses `backend`.
    """

    backend: Tokenizer
    placeholder_id: int
    eos_ids: tuple[int, ...]
    opening: str = ""
    encoding_backend: Tokenizer | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, which may contain special tokens; nothing is added before or after it."""
        body = text.removeprefix(self.opening)
        ids: list[int] = (self.encoding_backend or self.backend).encode(body, add_special_tokens=False).ids
        opening_id = self.backend.token_to_id(self.opening) if body != text else None
        return ids if opening_id is None else [opening_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder that exists."""
        self.backend.save(str(folder / FILE))


def check_special_tokens(backend: Tokenizer, needed: Sequence[str], model_name: str, remedy: str) -> dict[str, int]:
    """The ids of tokens that a model cannot do without.

    Args:
        backend: The checkpoint's tokenizer.
        needed: The tokens' texts.
        model_name: Begins the error message.
        remedy: Ends the error message: which tokenizer to use instead.
    Returns:
        Each token's text -> its id.
    Raises:
        ModelError: naming the tokens that the tokenizer does not have.
    """
    ids = {token: number for token in needed if (number := backend.token_to_id(token)) is not None}
    missing = [token for token in needed if token not in ids]
    if missing:
        raise ModelError(f"{model_name}: the tokenizer has no {', '.join(missing)}; {remedy}")
    return ids


def check_placeholder(backend: Tokenizer, placeholder: str, config_id: int, model_name: str) -> None:
    """Compare the id of the audio placeholder in the tokenizer with the one in the model's config.

    Raises:
        ModelError: if they differ.
    """
    tokenizer_id = backend.token_to_id(placeholder)
    if tokenizer_id != config_id:
        raise ModelError(
            f"{model_name}: the tokenizer gives {placeholder} the id {tokenizer_id}, the config {config_id}; "
            "take both from one checkpoint"
        )


def check_vocabulary(backend: Tokenizer, embedding_rows: int, model_name: str) -> None:
    """Compare the number of tokens with the number of rows in the embedding table, which may be larger.

    Raises:
        ModelError: if there are more tokens than rows.
    """
    if backend.get_vocab_size() > embedding_rows:
        raise ModelError(
            f"{model_name}: {backend.get_vocab_size()} tokens but {embedding_rows} embeddings; "
            "take both from one checkpoint"
        )


def known_ids(backend: Tokenizer, tokens: Sequence[str]) -> tuple[int, ...]:
    """Ids of those of the tokens that the tokenizer has, in the given order."""
    return tuple(number for token in tokens if (number := backend.token_to_id(token)) is not None)
