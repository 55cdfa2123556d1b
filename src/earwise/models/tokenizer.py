"""The tokenizer of a model: text to token ids and back, and the ids of the special tokens that the other parts need.

Every family has one as `AudioLM.tokenizer`; prompts, sampling and losses never call the `tokenizers` library directly.

Only the chat template writes control tokens. A user text, an option, an answer or a request may spell one, such as
`<|im_end|>`; a tokenizer alone cannot tell it from the template's own. Text and template are nevertheless tokenised
together, since the tokens at a joint depend on both sides. So the ids of ordinary text are exactly those that the
model's own tokenizer gives to the whole string. Where they hold a control token that the template did not write, the
span is tokenised again by a copy of the tokenizer in which every control token has a random name that nobody can type,
and the template's tokens are written under these names.

Control tokens are the tokens that the tokenizer declares as special, and all added tokens that occur in the chat
template. Added tokens that are neither (Qwen3's `<think>`, Gemma's line breaks) are ordinary vocabulary.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from earwise.errors import DataError, ModelError
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

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text as `encode` gives them, and the first and last character (exclusive) of each token."""
        return self.encode(text), self._encoder.offsets(text)

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


class SpanEncoder:
    """Token ids of spans for one tokenizer.

    Args:
        backend: The tokenizer that ordinary text is encoded with.
        control_tokens: Texts of the tokens that only a template may write.
        placeholder_id: Id of the token that audio embeddings replace.
    """

    def __init__(self, backend: Tokenizer, control_tokens: Sequence[str], placeholder_id: int) -> None:
        self._backend = backend
        self._placeholder_id = placeholder_id
        self._tokens = sorted(control_tokens, key=len, reverse=True)
        self._control_ids = frozenset(backend.token_to_id(token) for token in control_tokens)
        self._pattern = re.compile("|".join(map(re.escape, self._tokens))) if control_tokens else None

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of a span; nothing is added before or after it.

        Args:
            pieces: Text of the template and of the user, in order.
        Raises:
            DataError: if the text is no Unicode text (it holds half of a surrogate pair), or the tokenizer cannot write
                the user's text without a control token.
        """
        whole_text = "".join(piece.text for piece in pieces)
        try:
            ids: list[int] = self._backend.encode(whole_text, add_special_tokens=False).ids
        except TypeError as error:  # tokenizers takes texts in UTF-8 only
            raise DataError(f"text holds half of a surrogate pair: {whole_text[:60]!r}; correct its escapes") from error
        allowed = [self._backend.token_to_id(token) for piece in pieces for token in self._written_tokens(piece)]
        if self._controls(ids) == allowed:
            return ids
        ids = self._renamed.encode(pieces)
        # A character that the vocabulary lacks is the unknown token, which tells the model nothing about turns.
        unknown = self._renamed.unknown_id if self._renamed.unknown_id != self._placeholder_id else None
        if [number for number in self._controls(ids) if number != unknown] != [n for n in allowed if n != unknown]:
            text = "".join(piece.text for piece in pieces if not piece.from_template)
            raise DataError(f"the tokenizer cannot write {text[:60]!r} without a control token; change this text")
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """First and last character (exclusive) of each token of a user's text."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        if self._controls(encoding.ids):
            encoding = self._renamed.copy.encode(text, add_special_tokens=False)
        offsets: list[tuple[int, int]] = encoding.offsets
        return offsets

    def _written_tokens(self, piece: Piece) -> list[str]:
        """The control tokens that a piece writes, in order; none if it is not the template's."""
        return self._pattern.findall(piece.text) if piece.from_template and self._pattern else []

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [number for number in ids if number in self._control_ids]

    @cached_property
    def _renamed(self) -> "_RenamedTokenizer":
        """The copy for texts that spell control tokens; made when the first such text occurs."""
        return _rename(self._backend, self._tokens)


@dataclass(frozen=True, slots=True)
class _RenamedTokenizer:
    """A copy of a tokenizer in which control tokens have other names."""

    copy: Tokenizer
    names: dict[str, str]
    """Control token -> its name in the copy."""
    real_ids: dict[int, int]
    """Id in the copy -> id in the original, for the added tokens."""
    pattern: re.Pattern[str]
    """Matches any control token, the longest first."""
    unknown_id: int | None
    """Id of the token for characters that the vocabulary lacks; None if there is none."""

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of a span, under the original's ids."""
        text = "".join(
            self.pattern.sub(lambda match: self.names[match[0]], piece.text) if piece.from_template else piece.text
            for piece in pieces
        )
        ids: list[int] = self.copy.encode(text, add_special_tokens=False).ids
        return [self.real_ids.get(number, number) for number in ids]


def _rename(backend: Tokenizer, tokens: Sequence[str]) -> _RenamedTokenizer:
    """Copy a tokenizer under new names for its control tokens.

    The names are random, so that no text can spell them; ids do not depend on them. A token that is also an entry of
    the vocabulary is renamed there too, and no merge may produce it any more.

    Args:
        backend: The tokenizer.
        tokens: Its control tokens, the longest first.
    """
    nonce = secrets.token_hex(16)
    names = {token: f"<{nonce}.{number}>" for number, token in enumerate(tokens)}
    content: dict[str, Any] = json.loads(backend.to_str())
    content["post_processor"] = None  # it adds special tokens around a text, which is never asked for here
    for added in content["added_tokens"]:
        added["content"] = names.get(added["content"], added["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): number for token, number in model["vocab"].items()}
    else:  # Unigram: pairs of token and score
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in names]
    unknown = model.get("unk_token")
    if unknown is not None:
        model["unk_token"] = names.get(unknown, unknown)
    copy = Tokenizer.from_str(json.dumps(content))
    added_tokens = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    copied_ids = {token: copy.token_to_id(names.get(token, token)) for token in added_tokens}
    real_ids = {copied: added_tokens[token] for token, copied in copied_ids.items() if copied is not None}
    unknown_id = model.get("unk_id") if unknown is None else backend.token_to_id(unknown)
    return _RenamedTokenizer(copy, names, real_ids, re.compile("|".join(map(re.escape, tokens))), unknown_id)


def _merged(merge: str | list[str]) -> str:
    """The token that a merge produces; files write a merge as a pair or as two words."""
    return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)
