"""Decides which text of a growing completion may be sent already.

Only whole characters are sent, and nothing that a stop string may still remove. Between the engine's tokens, which
`batching.py` receives, and the events of a stream. Pure except for the growing text.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from earwise.engine.decode_loop import PartialCompletion
from earwise.errors import EngineError

FinishReason = Literal["stop", "length"]
INCOMPLETE_CHARACTER = "\ufffd"
"""What a tokenizer's decoder writes while the bytes of a character are not complete."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one completion has gained since its last delta.

    Attributes:
        sample: Number of the completion within its request.
        text: New text.
        token_ids: New tokens.
        logprobs: Natural-log probability of each new token.
        finish: Why the completion ended, in its last delta; else None.
    """

    sample: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: FinishReason | None


class SampleStream:
    """Turns the tokens of one completion into deltas.

    Args:
        sample: Number of the completion within its request.
        detokenize: Text of token ids.
        eos_ids: Token ids that end a completion and are no text.
        stop: Strings that end the completion; they and everything after them are not sent.
        limit: Largest number of tokens.
        stream: Whether text is sent as it arrives; False sends everything in one delta at the end.
    """

    def __init__(
        self, sample: int, detokenize: Callable[[Sequence[int]], str], eos_ids: Collection[int], *,
        stop: Sequence[str] = (), limit: int, stream: bool,
    ) -> None:  # fmt: skip
        self._sample, self._detokenize, self._eos_ids = sample, detokenize, eos_ids
        self._stop, self._limit, self._stream = tuple(stop), limit, stream
        self._sent_chars = 0
        self._sent_tokens: list[int] = []
        self.finish: FinishReason | None = None

    def update(self, partial: PartialCompletion) -> TextDelta | None:
        """Look at the completion after another token.

        A completion whose batch failed is sampled again from its beginning: what has been sent is not sent twice.

        Returns:
            A delta if there is something to send, and always at the end of the completion; else None.
        Raises:
            EngineError: if a completion that is sampled again differs from what has been sent.
        """
        num_sent = len(self._sent_tokens)
        if self.finish is not None:
            return None
        if partial.token_ids[:num_sent] != self._sent_tokens[: len(partial.token_ids)]:
            raise EngineError("the answer was interrupted, and came out differently when it was sampled again")
        if len(partial.token_ids) <= num_sent:
            return None
        ended = partial.finished or len(partial.token_ids) >= self._limit
        if not ended and not self._stream and not self._stop:
            return None
        text = self._detokenize([token for token in partial.token_ids if token not in self._eos_ids])
        stop_start = first_stop(text, self._stop)
        if stop_start is not None:
            text, self.finish = text[:stop_start], "stop"
        elif ended:
            self.finish = "stop" if partial.finished else "length"
        else:
            text = text[: len(text) - withheld_length(text, self._stop)]
            if not self._stream or len(text) <= self._sent_chars:
                return None
        new_tokens = slice(num_sent, len(partial.token_ids))
        delta = TextDelta(
            self._sample,
            text[self._sent_chars :],
            tuple(partial.token_ids[new_tokens]),
            tuple(partial.logprobs[new_tokens]),
            self.finish,
        )
        self._sent_chars, self._sent_tokens = len(text), list(partial.token_ids)
        return delta


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Offset of the first stop string in a text, or None if there is none.

    >>> first_stop("a dog.\\nAnd", ("And", "\\n")), first_stop("a dog", ("cat",))
    (6, None)
    """
    offsets = [offset for string in stop if (offset := text.find(string)) >= 0]
    return min(offsets) if offsets else None


def withheld_length(text: str, stop: Sequence[str]) -> int:
    """Number of characters at the end that cannot be sent yet: incomplete ones, or the possible start of a stop string.

    >>> withheld_length("a dog\\ufffd", ()), withheld_length("a dog END", ("END.",)), withheld_length("a dog", ("END",))
    (1, 3, 0)
    """
    incomplete = len(text) - len(text.rstrip(INCOMPLETE_CHARACTER))
    longest = max((len(string) for string in stop), default=0)
    for length in range(min(longest - 1, len(text)), incomplete, -1):
        if any(string.startswith(text[-length:]) for string in stop):
            return length
    return incomplete
