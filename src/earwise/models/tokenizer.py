"""The tokenizer of a model: text to token ids and back, and the ids of the special tokens that the other parts need.

Every family has one as `AudioLM.tokenizer`; prompts, sampling and losses never call the `tokenizers` library directly.
Only the chat template writes control tokens: `encode` takes a text of a row, a request or an answer as mere text, and
`encode_pieces` tokenises such texts together with the template around them (see `models/text_encoding.py`).
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from earwise.errors import ModelError
from earwise.models.text_encoding import SpanEncoder
from earwise.prompts import ChatTemplate, Piece

FILE = "tokenizer.json"
CACHED_SPANS = 8192
"""Number of spans whose token ids are kept: a prompt is tokenised once for sampling, training and blind controls."""
CACHED_CHARACTERS = 4000
"""Longest span that is kept."""


class TextTokenizer:
    """A checkpoint's tokenizer with the special tokens of one model.

    Args:
        backend: The tokenizer as it was read; `save` writes this one.
        placeholder_id: Id of the token that audio embeddings replace.
        eos_ids: Ids of the tokens that end a completion; training writes the first.
        template: Chat template; the added tokens in its texts are control tokens, whether or not they are special.
        opening: Token that may stand at the start of a template. The text behind it is tokenised by itself, so that
            its first word is cut as at the start of a line. "" for families without such a token.
        encoding_backend: Tokenizer for encoding where it has to differ from `backend`; None uses `backend`.
    """

    def __init__(
        self, backend: Tokenizer, placeholder_id: int, eos_ids: tuple[int, ...], template: ChatTemplate, *,
        opening: str = "", encoding_backend: Tokenizer | None = None,
    ) -> None:  # fmt: skip
        self.backend = backend
        self.placeholder_id = placeholder_id
        self.eos_ids = eos_ids
        self._opening = opening
        control = control_tokens(backend, template, (placeholder_id, *eos_ids))
        self._encoder = SpanEncoder(encoding_backend or backend, control, placeholder_id)
        self._cached_ids = lru_cache(CACHED_SPANS)(self._ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; control tokens that it spells are text. Nothing is added before or after it.

        Raises:
            DataError: see `SpanEncoder.encode`.
        """
        return self.encode_pieces((Piece(text),))

    def encode_template(self, text: str) -> list[int]:
        """Token ids of a text that a chat template writes, control tokens included."""
        return self.encode_pieces((Piece(text, from_template=True),))

    def encode_pieces(self, pieces: tuple[Piece, ...]) -> list[int]:
        """Token ids of a span: texts of the template and of the user, tokenised together.

        Raises:
            DataError: see `SpanEncoder.encode`.
        """
        is_short = sum(len(piece.text) for piece in pieces) <= CACHED_CHARACTERS
        return list(self._cached_ids(pieces) if is_short else self._ids(pieces))

    def _ids(self, pieces: tuple[Piece, ...]) -> tuple[int, ...]:
        """Token ids of a span; a template's opening token is put before the ids of what follows it."""
        first = pieces[0] if pieces else Piece("")
        opening_id = self.backend.token_to_id(self._opening) if self._opening else None
        if opening_id is None or not (first.from_template and first.text.startswith(self._opening)):
            return tuple(self._encoder.encode(pieces))
        rest = Piece(first.text.removeprefix(self._opening), from_template=True)
        return (opening_id, *self._encoder.encode((rest, *pieces[1:])))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder that exists."""
        self.backend.save(str(folder / FILE))


def control_tokens(backend: Tokenizer, template: ChatTemplate, needed_ids: Sequence[int]) -> tuple[str, ...]:
    """The tokens that only a template may write: special tokens, and added tokens that the model or its template uses.

    Args:
        backend: The checkpoint's tokenizer.
        template: The family's chat template. Line breaks in it are text.
        needed_ids: Ids of the audio placeholder and of the tokens that end a completion.
    """
    texts = template.texts()
    return tuple(
        token.content
        for number, token in backend.get_added_tokens_decoder().items()
        if token.special
        or number in needed_ids
        or (token.content.strip() and any(token.content in text for text in texts))
    )


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
