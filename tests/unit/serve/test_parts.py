"""Parts of the server that need no model: parsing, deltas of a stream, batches, metrics, documentation."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

from earwise.commands.serve import command
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import PartialCompletion
from earwise.serve.chat_request import ChatParams, parse_request
from earwise.serve.errors import ApiError, error_body
from earwise.serve.http.limits import ServerLimits
from earwise.serve.metrics import Metrics, prometheus_text
from earwise.serve.sampling.job import Capacity, ControlTask, Job, select_batch
from earwise.serve.sampling.stream_text import SampleStream, first_stop, withheld_length

END = 0
LIMITS = ServerLimits()


def decode_bytes(ids: Sequence[int]) -> str:
    """Token ids as bytes of UTF-8; incomplete characters as a tokenizer's decoder shows them."""
    return bytes(ids).decode(errors="replace")


def stream_deltas(
    text: str, *, stop: Sequence[str] = (), limit: int = 99, stream: bool = True
) -> list[tuple[str, str | None]]:
    """Text and finish reason of the deltas of a completion that grows byte by byte and then ends."""
    sample_stream = SampleStream(0, decode_bytes, (END,), stop=stop, limit=limit, stream=stream)
    partial, deltas, num_tokens = PartialCompletion(), [], 0
    for token in [*text.encode(), END]:
        partial.token_ids.append(token)
        partial.logprobs.append(-0.5)
        partial.finished = token == END
        delta = sample_stream.update(partial)
        if delta is not None:
            deltas.append((delta.text, delta.finish))
            num_tokens += len(delta.token_ids)
            assert len(delta.token_ids) == len(delta.logprobs)
        if sample_stream.finish:
            assert num_tokens == len(partial.token_ids), "every token is sent once"
            assert sample_stream.update(partial) is None
            break
    return deltas


def test_deltas_are_whole_characters() -> None:
    assert stream_deltas("aé") == [("a", None), ("é", None), ("", "stop")]
    assert stream_deltas("aé", limit=2) == [("a", None), ("\ufffd", "length")]
    assert stream_deltas("dog", stream=False) == [("dog", "stop")]


def test_a_possible_stop_string_is_withheld() -> None:
    assert stream_deltas("a END b", stop=("END",)) == [("a", None), (" ", None), ("", "stop")]
    assert stream_deltas("a ENd", stop=("END",)) == [("a", None), (" ", None), ("ENd", None), ("", "stop")]
    assert stream_deltas("a END b", stop=("END",), stream=False) == [("a ", "stop")]
    assert stream_deltas("xEN", stop=("END",), limit=3) == [("x", None), ("EN", "length")]
    assert first_stop("abcabc", ("ca", "bc")) == 1 and first_stop("abc", ()) is None
    assert withheld_length("a dog END", ("END.",)) == 3
    assert withheld_length("é\ufffd", ("x",)) == 1
    assert withheld_length("aa", ("aab",)) == 2


def new_job(temperature: float, prompt_tokens: int = 10, n: int = 1) -> Job:
    return Job(Prompt((), ()), SamplingParams(temperature=temperature), n, tuple(range(prompt_tokens)))


def test_batches_have_one_key_and_keep_the_limits() -> None:
    async def check() -> None:
        a, b, c, d = new_job(0.0), new_job(1.0), new_job(0.0), new_job(1.0)
        assert select_batch([a, b, c, d], Capacity()) == [a, c]
        assert select_batch([b, a, d], Capacity()) == [b, d]
        assert select_batch([a, ControlTask(lambda: None, Future()), c], Capacity()) == [a]
        assert select_batch([], Capacity()) == []
        many = [new_job(1.0, n=4) for _ in range(5)]
        assert select_batch(many, Capacity(max_samples=9)) == many[:2]
        assert select_batch([new_job(1.0, n=4)], Capacity(max_samples=2)), "the first request always fits"
        jobs = [new_job(0.0, prompt_tokens=size) for size in (10, 100, 10, 10)]
        assert select_batch(jobs, Capacity(max_attention_cells=1000)) == [jobs[0], jobs[2], jobs[3]]

    asyncio.run(check())


def test_defaults_and_names_of_a_request() -> None:
    messages = [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]
    request = parse_request({"messages": messages, "n": None}, LIMITS)
    params = request.params
    assert (params.n, params.temperature, params.top_p, params.seed) == (1, 1.0, 1.0, None)
    assert request.max_tokens is None and request.stop == ()
    assert [turn.role for turn in request.turns] == ["system", "user"]
    both = parse_request(
        {"messages": [{"role": "user", "content": "b"}], "max_tokens": 9, "max_completion_tokens": 5, "stop": "x"},
        LIMITS,
    )
    assert both.max_tokens == 5 and both.stop == ("x",)
    defaults = {"frequency_penalty": 0.0, "tools": [], "user": "me", "response_format": {"type": "text"}, "min_p": 0.0}
    assert parse_request({"messages": [{"role": "user", "content": "b"}]} | defaults, LIMITS)
    for body, message in (
        ([], "JSON list"),
        ({"messages": [{"role": "user", "content": "b"}], "tools": [{}]}, "tools: "),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "incomplete character"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": "b"}], "wholly_new": 1}, "unknown field 'wholly_new'; leave it out"),
    ):
        with pytest.raises(ApiError, match=message):
            parse_request(body, LIMITS)


def test_errors_and_metrics_have_their_formats() -> None:
    error = error_body(ApiError("two\nlines", 429, code="c"))["error"]
    assert error == {"message": "two lines", "type": "rate_limit_error", "param": None, "code": "c"}
    metrics = Metrics(prompt_tokens=12345678, answered=2, answer_s=1.5)
    metrics.requests[200] += 2
    lines = prometheus_text(metrics, waiting=1, running=3, rounds=4, computed=5, sampled=6).splitlines()
    assert 'earwise_requests_total{status="200"} 2' in lines and "earwise_prompt_tokens_total 12345678" in lines
    assert "earwise_answer_seconds_sum 1.500000" in lines and "earwise_requests_running 3" in lines
    assert error_body(ApiError("no model '\ud800'"))["error"]["message"] == "no model '?'"


def test_the_documentation_lists_every_option_and_field() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "server.md").read_text(encoding="utf-8")
    options = {option for param in command.params for option in param.opts if option.startswith("--")}
    assert {option for option in options if option not in text} <= {"--name", "--seed"}
    assert not {field for field in ChatParams.model_fields if f"`{field}`" not in text}
