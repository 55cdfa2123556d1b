"""What may be told of one sample while it grows: whole characters, and nothing that a stop string may yet take back.

Between the engine's tokens (`batching.py` watches them) and the pieces of a stream. Pure but for the growing text.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from earwise.engine.decode_loop import Said

Finish = Literal["stop", "length"]
HALF = "\ufffd"  # what a decoder puts where the bytes of a character are not all there yet


@dataclass(frozen=True, slots=True)
class Piece:
    """What one sample has said since the last piece."""

    sample: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural, of each id."""
    finish: Finish | None
    """Set on a sample's last piece."""


class Telling:
    """One sample on its way to the client.

    Args:
        sample: Its number among the samples of its request.
        detokenize: Text of ids.
        ends: Ids that end an answer and are no text.
        stop: Strings that end it, too; they and what follows them are not told.
        limit: Tokens at most.
        pieces: False: all of it is told in one piece, when it has ended.
    """

    def __init__(
        self, sample: int, detokenize: Callable[[Sequence[int]], str], ends: Collection[int], *,
        stop: Sequence[str] = (), limit: int, pieces: bool,
    ) -> None:  # fmt: skip
        self._sample, self._detokenize, self._ends = sample, detokenize, ends
        self._stop, self._limit, self._pieces = tuple(stop), limit, pieces
        self._told, self._told_ids = 0, 0
        self.finish: Finish | None = None

    def hear(self, said: Said) -> Piece | None:
        """Look at the sample after another token; a piece if there is something to tell, always one at its end."""
        if self.finish is not None:
            return None
        ended = said.done or len(said.ids) >= self._limit
        if not ended and not self._pieces and not self._stop:
            return None
        text = self._detokenize([token for token in said.ids if token not in self._ends])
        cut = first_of(text, self._stop)
        if cut is not None:
            text, self.finish = text[:cut], "stop"
        elif ended:
            self.finish = "stop" if said.done else "length"
        else:
            text = text[: len(text) - held_back(text, self._stop)]
            if not self._pieces or len(text) <= self._told:
                return None
        new = slice(self._told_ids, len(said.ids))
        piece = Piece(
            self._sample, text[self._told :], tuple(said.ids[new]), tuple(said.logprobs[new]), self.finish
        )  # fmt: skip
        self._told, self._told_ids = len(text), len(said.ids)
        return piece


def first_of(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins; None if there is none.

    >>> first_of("a dog.\\nAnd", ("And", "\\n")), first_of("a dog", ("cat",))
    (6, None)
    """
    found = [at for one in stop if (at := text.find(one)) >= 0]
    return min(found) if found else None


def held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end may not be told yet: half characters, or what may become a stop string.

    >>> held_back("a dog\\ufffd", ()), held_back("a dog END", ("END.",)), held_back("a dog", ("END",))
    (1, 3, 0)
    """
    halves = len(text) - len(text.rstrip(HALF))
    longest = max((len(one) for one in stop), default=0)
    for size in range(min(longest - 1, len(text)), halves, -1):
        if any(one.startswith(text[-size:]) for one in stop):
            return size
    return halves
