"""Token delay: how many tokens a listener waits for the answer, the price of reasoning before answering.

Computed by the engine from the tokens of a completion and stored as `Completion.reasoning_tokens`.

Source: XS-CoT (arXiv:2504.20835), the token delay of its evaluation.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from earwise.answers import answer_start


def token_delay(text: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """Number of tokens before the first token of the answer.

    The tag that opens the answer (`<answer>`, `[ja-response]`) counts as part of the delay.

    Args:
        text: Text of the completion.
        ids: Its token ids, without the end token.
        decode: Converts token ids to text.
    Returns:
        0 if there is no reasoning; the number of all tokens if the reasoning never reaches an answer.
    """
    start = answer_start(text)
    if start is None:
        return len(ids)
    characters_before = len(text[:start].rstrip())  # a space may belong to the answer's first token
    return bisect_left(range(len(ids) + 1), characters_before, key=lambda count: len(decode(ids[:count])))
