"""Token delay: how many tokens a listener waits for the answer, the price of reasoning aloud (papers/xs-cot.md, 8.4).

Between an engine's token ids and `Completion.reasoning_tokens`.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from earwise.answers import answer_start


def token_delay(text: str, ids: Sequence[int], detokenize: Callable[[Sequence[int]], str]) -> int:
    """Tokens generated before the answer's first one, the mark that opens it (`<answer>`, `[ja-response]`) included.

    Args:
        text: What was said.
        ids: Its tokens, without the end token.
        detokenize: Text of tokens.
    Returns:
        0 without reasoning; all tokens where reasoning never comes to an answer.
    """
    start = answer_start(text)
    if start is None:
        return len(ids)
    before = len(text[:start].rstrip())  # a blank may belong to the answer's first token
    return bisect_left(range(len(ids) + 1), before, key=lambda count: len(detokenize(ids[:count])))
