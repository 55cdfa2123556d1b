"""Patience with a server that samples: while it is away (restarted, out of reach) a run waits, as the recipe says.

Above the engine, which has tries of its own for a single request; what the server had answered before it went away is
kept there and not asked again.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from earwise.errors import ServerAway

T = TypeVar("T")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


def patiently(ask: Callable[[], T], minutes: float, say: Callable[[str], None]) -> tuple[T, int]:
    """Ask until there is an answer; pauses double.

    Args:
        ask: Raises `ServerAway` while the server does not answer.
        minutes: To wait in all; 0: not at all.
        say: Told of every wait.
    Returns:
        The answer, and how often there was none.
    Raises:
        ServerAway: when the time is up.
    """
    until, failed = time.monotonic() + 60 * minutes, 0
    while True:
        try:
            return ask(), failed
        except ServerAway as error:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**failed)
            if time.monotonic() + pause > until:
                waited = f"after {minutes:g} minutes" if minutes else "(on_sampler_error: wait would wait for it)"
                raise ServerAway(f"{error} {waited}; see to the server, then --resume") from error
            failed += 1
            say(f"{error}; asked again in {pause:g} s")
            time.sleep(pause)
