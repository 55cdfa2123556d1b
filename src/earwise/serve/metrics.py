"""Counters of a running server in Prometheus' text format. They are changed in the event loop only."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Metrics:
    """Counters since the server started.

    Attributes:
        requests: Chat completions by HTTP status; 499 means that the client disconnected.
        prompt_tokens: Tokens of all prompts.
        completion_tokens: Tokens of all completions.
        audio_s: Seconds of audio in all requests.
        answered: Requests that were answered completely.
        first_token_s: Sum over answered requests of the time from arrival to the first token, in seconds.
        answer_s: Sum over answered requests of the time from arrival to the end, in seconds.
        weights: Number of weight updates.
    """

    requests: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    audio_s: float = 0.0
    answered: int = 0
    first_token_s: float = 0.0
    answer_s: float = 0.0
    weights: int = 0


def prometheus_text(metrics: Metrics, *, waiting: int, running: int, rounds: int, computed: int, sampled: int) -> str:
    """The content of `/metrics`.

    Args:
        metrics: Counters of the event loop.
        waiting: Requests in the queue.
        running: Requests of the batch that is being sampled.
        rounds: Number of batches since the start.
        computed: Tokens that the engine has computed.
        sampled: Tokens that the engine has returned.
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
