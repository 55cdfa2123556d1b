"""The options of `earwise evaluate` that say how completions are sampled."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from earwise.errors import ConfigError

if TYPE_CHECKING:
    from earwise.engine.base import PauseParams

MAX_PAUSES = 3
"""Default of --max-pauses."""
OPTIONS = (
    click.option(
        "--temperature",
        default=0.0,
        show_default=True,
        type=click.FloatRange(0),
        help="Sampling temperature; 0 decodes greedily.",
    ),
    click.option(
        "--seed", default=0, show_default=True, help="Seed of sampling, of the controls and of the options' order."
    ),
    click.option(
        "--samples",
        default=1,
        show_default=True,
        type=click.IntRange(1),
        help="Completions of each item, from one prefill, for pass@k and majority@k, plain and weighted by confidence; "
        "needs a --temperature above 0.",
    ),
    click.option(
        "--confidence-window",
        default=2048,
        show_default=True,
        type=click.IntRange(1),
        help="With --samples: neighbouring tokens whose mean confidence counts in a weighted vote.",
    ),
    click.option(
        "--pause-entropy",
        type=click.FloatRange(0),
        help="Make a pause where the entropy of the next token is at least this number of nats. [default: no pauses]",
    ),
    click.option(
        "--pause-token",
        default="",
        help="Token that stands for a pause. [default: the first one of the model that its tokenizer does not use]",
    ),
    click.option(
        "--max-pauses",
        default=MAX_PAUSES,
        show_default=True,
        type=click.IntRange(1),
        help="Largest number of pauses in a completion.",
    ),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, in this order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def pause_params(entropy: float | None, token: str, max_pauses: int) -> "PauseParams | None":
    """Pauses as the options ask for them; None without --pause-entropy.

    Args:
        entropy: Value of --pause-entropy.
        token: Value of --pause-token.
        max_pauses: Value of --max-pauses.
    Raises:
        ConfigError: if an option about pauses is given without it.
    """
    from earwise.engine.base import PauseParams

    if entropy is None:
        if token or max_pauses != MAX_PAUSES:
            raise ConfigError("--pause-token and --max-pauses need --pause-entropy")
        return None
    return PauseParams(entropy, token, max_pauses)
