"""Counts of a running server, in Prometheus' text form. Changed in the event loop only."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Metrics:
    """What was asked and answered since the start."""

    requests: Counter[int] = field(default_factory=Counter)
    """Chat completions by HTTP status; 499: the client went away."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    audio_s: float = 0.0
    answered: int = 0
    first_token_s: float = 0.0
    """Of all answered requests together, from their arrival."""
    answer_s: float = 0.0
    """Of all answered requests together, from their arrival to their end."""
    weights: int = 0
    """Updates."""


def exposed(metrics: Metrics, *, waiting: int, running: int, rounds: int, computed: int, sampled: int) -> str:
    """The page of `/metrics`.

    Args:
        metrics: Counts of the event loop.
        waiting: Requests in line.
        running: Requests of the round under way.
        rounds: Rounds since the start.
        computed: Tokens that the engine computed.
        sampled: Tokens that it handed out.
    """
    lines = ["# TYPE earwise_requests_total counter"]
    lines += [f'earwise_requests_total{{status="{status}"}} {n}' for status, n in sorted(metrics.requests.items())]
    counters = {
        "prompt_tokens": metrics.prompt_tokens, "completion_tokens": metrics.completion_tokens,
        "audio_seconds": metrics.audio_s, "rounds": rounds, "computed_tokens": computed, "sampled_tokens": sampled,
        "weight_updates": metrics.weights,
    }  # fmt: skip
    for name, value in counters.items():
        lines += [f"# TYPE earwise_{name}_total counter", f"earwise_{name}_total {value}"]
    for name, value in {"requests_waiting": waiting, "requests_running": running}.items():
        lines += [f"# TYPE earwise_{name} gauge", f"earwise_{name} {value}"]
    for name, total in {"time_to_first_token": metrics.first_token_s, "answer": metrics.answer_s}.items():
        lines += [f"# TYPE earwise_{name}_seconds summary", f"earwise_{name}_seconds_sum {total:.6f}"]
        lines += [f"earwise_{name}_seconds_count {metrics.answered}"]
    return "\n".join(lines) + "\n"
