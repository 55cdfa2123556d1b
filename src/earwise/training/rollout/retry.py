"""Waiting for a rollout server that does not answer, as the recipe says (`on_rollout_error: retry`).

The engine already retries a single request a few times; this is for a server that is restarted or out of reach for
minutes. Answers that arrived before are kept by the engine and not requested again.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from earwise.errors import ServerUnavailable

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


def retry_while_away(request: Callable[[], T], minutes: float, notify: Callable[[str], None]) -> tuple[T, int]:
    """Repeat a request until it is answered; the pause between attempts doubles each time.

    Args:
        request: Makes the request; raises `ServerUnavailable` while the server does not answer.
        minutes: Longest time to wait in all; 0 to raise the first error.
        notify: Receives one line before each pause.
    Returns:
        The answer, and the number of failed attempts.
    Raises:
        ServerUnavailable: if the server still does not answer after that time.
    """
    deadline, num_failed = time.monotonic() + 60 * minutes, 0
    while True:
        try:
            return request(), num_failed
        except ServerUnavailable as error:
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**num_failed)
            if time.monotonic() + pause_s > deadline:
                waited = f"after {minutes:g} minutes" if minutes else "(on_rollout_error: retry would wait for it)"
                raise ServerUnavailable(f"{error} {waited}; start the server again, then --resume") from error
            num_failed += 1
            notify(f"{error}; asked again in {pause_s:g} s")
            time.sleep(pause_s)
