"""Tokenises text of two origins in one pass: control tokens of the chat template are obeyed, typed ones are text.

`TextTokenizer` (models/tokenizer.py) hands over the pieces of a span. A user text, an option, an answer or a request
may spell a control token such as `<|im_end|>`; a tokenizer alone cannot tell it from the template's own. Text and
template are nevertheless tokenised together, since the tokens at a joint depend on both sides. So the ids of ordinary
text are exactly those that the model's own tokenizer gives to the whole string. Where they hold a control token that
the template did not write, the span is tokenised again by a copy of the tokenizer in which every control token has a
random name that nobody can type, and the template's tokens are written under these names.

Control tokens are the tokens that the tokenizer declares as special, and all added tokens that occur in the chat
template. Added tokens that are neither (Qwen3's `<think>`, Gemma's line breaks) are ordinary vocabulary.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from earwise.errors import DataError
from earwise.prompts import Piece


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
            DataError: if the tokenizer cannot write the user's text without a control token.
        """
        ids: list[int] = self._backend.encode("".join(p.text for p in pieces), add_special_tokens=False).ids
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
