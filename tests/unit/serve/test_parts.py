"""Parts of the server that need no model: what is read, what may be told, who is sampled together, what is counted."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from earwise.commands.serve import command
from earwise.engine.base import Decoding, Prompt
from earwise.engine.decode_loop import Said
from earwise.serve.batching import Capacity, Errand, Future, Job, choose
from earwise.serve.chat_request import Settings, read
from earwise.serve.errors import Refusal, body_of
from earwise.serve.metrics import Metrics, exposed
from earwise.serve.stream_text import Telling, first_of, held_back

END = 0


def letters(ids: Sequence[int]) -> str:
    """Bytes as UTF-8; half characters as a decoder shows them."""
    return bytes(ids).decode(errors="replace")


def heard(text: str, *, stop: Sequence[str] = (), limit: int = 99, pieces: bool = True) -> list[tuple[str, str | None]]:
    """The pieces of a sample that says this and ends, byte by byte."""
    telling = Telling(0, letters, (END,), stop=stop, limit=limit, pieces=pieces)
    said, told, ids = Said(), [], 0
    for token in [*text.encode(), END]:
        said.ids.append(token)
        said.logprobs.append(-0.5)
        said.done = token == END
        piece = telling.hear(said)
        if piece is not None:
            told.append((piece.text, piece.finish))
            ids += len(piece.token_ids)
            assert len(piece.token_ids) == len(piece.logprobs)
        if telling.finish:
            assert ids == len(said.ids), "every token is told once"
            assert telling.hear(said) is None
            break
    return told


def test_pieces_are_whole_characters() -> None:
    assert heard("aé") == [("a", None), ("é", None), ("", "stop")]
    assert heard("aé", limit=2) == [("a", None), ("\ufffd", "length")]
    assert heard("dog", pieces=False) == [("dog", "stop")]


def test_what_may_become_a_stop_string_is_held_back() -> None:
    assert heard("a END b", stop=("END",)) == [("a", None), (" ", None), ("", "stop")]
    assert heard("a ENd", stop=("END",)) == [("a", None), (" ", None), ("ENd", None), ("", "stop")]
    assert heard("a END b", stop=("END",), pieces=False) == [("a ", "stop")]
    assert heard("xEN", stop=("END",), limit=3) == [("x", None), ("EN", "length")]
    assert first_of("abcabc", ("ca", "bc")) == 1 and first_of("abc", ()) is None
    assert (held_back("a dog END", ("END.",)), held_back("é\ufffd", ("x",)), held_back("aa", ("aab",))) == (3, 1, 2)


def job(manner: float, tokens: int = 10, n: int = 1) -> Job:
    return Job(Prompt((), ()), Decoding(temperature=manner), n, tokens)


def test_rounds_are_of_one_manner_and_within_bounds() -> None:
    async def made() -> None:
        a, b, c, d = job(0.0), job(1.0), job(0.0), job(1.0)
        assert choose([a, b, c, d], Capacity()) == [a, c]
        assert choose([b, a, d], Capacity()) == [b, d]
        assert choose([a, Errand(lambda: None, Future()), c], Capacity()) == [a]
        assert choose([], Capacity()) == []
        many = [job(1.0, n=4) for _ in range(5)]
        assert choose(many, Capacity(samples=9)) == many[:2]
        assert choose([job(1.0, n=4)], Capacity(samples=2)), "one alone always goes"
        long = [job(0.0, tokens=size) for size in (10, 100, 10, 10)]
        assert choose(long, Capacity(cells=1000)) == [long[0], long[2], long[3]]

    asyncio.run(made())


def test_defaults_and_names_of_a_request() -> None:
    asked = read({"messages": [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}], "n": None})
    settings = asked.settings
    assert (settings.n, settings.temperature, settings.top_p, settings.seed) == (1, 1.0, 1.0, None)
    assert asked.max_tokens is None and asked.stop == () and [turn.role for turn in asked.turns] == ["system", "user"]
    both = read(
        {"messages": [{"role": "user", "content": "b"}], "max_tokens": 9, "max_completion_tokens": 5, "stop": "x"}
    )
    assert both.max_tokens == 5 and both.stop == ("x",)
    neutral = {"frequency_penalty": 0.0, "tools": [], "user": "me", "response_format": {"type": "text"}, "min_p": 0.0}
    assert read({"messages": [{"role": "user", "content": "b"}]} | neutral)
    for body, said in (
        ([], "JSON list"),
        ({"messages": [{"role": "user", "content": "b"}], "tools": [{}]}, "tools: "),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": "b"}], "wholly_new": 1}, "unknown field 'wholly_new'; leave it out"),
    ):
        with pytest.raises(Refusal, match=said):
            read(body)


def test_errors_and_counts_have_their_forms() -> None:
    error = body_of(Refusal("two\nlines", 429, code="c"))["error"]
    assert error == {"message": "two lines", "type": "rate_limit_error", "param": None, "code": "c"}
    metrics = Metrics(prompt_tokens=12345678, answered=2, answer_s=1.5)
    metrics.requests[200] += 2
    lines = exposed(metrics, waiting=1, running=3, rounds=4, computed=5, sampled=6).splitlines()
    assert 'earwise_requests_total{status="200"} 2' in lines and "earwise_prompt_tokens_total 12345678" in lines
    assert "earwise_answer_seconds_sum 1.500000" in lines and "earwise_requests_running 3" in lines
    assert body_of(Refusal("no model '\ud800'"))["error"]["message"] == "no model '?'"


def test_the_page_about_it_lists_every_option_and_every_field() -> None:
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    options = {option for param in command.params for option in param.opts if option.startswith("--")}
    assert {option for option in options if option not in text} <= {"--name", "--seed"}
    assert {field for field in Settings.model_fields if f"`{field}" not in text} == {"model"}
