"""Batches that take turns, are given up, or fail midway; and what the engine does for them."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from builders import tone, user_question
from earwise.engine import local
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.decode_loop import PartialCompletion
from earwise.engine.local import LocalEngine
from earwise.engine.prefill import group_prompts
from earwise.errors import EngineError
from earwise.serve.http.limits import ServerLimits
from earwise.serve.sampling.job import Capacity
from earwise.serve.sampling.stream_text import SampleStream
from earwise.types import Text, Turn
from earwise_server import Client, body_of, running, tiny

WAVE = tone(0.8, 500.0)
LONG = body_of("a long answer", max_tokens=3000)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def endless() -> LocalEngine:
    """A model that never ends an answer."""
    model = tiny()
    model.eos_ids = ()
    return LocalEngine(model)


@pytest.fixture
def client(endless: LocalEngine) -> Iterator[Client]:
    with running(endless, ServerLimits(max_tokens=5000)) as client:
        yield client


def test_a_short_answer_does_not_wait_for_a_long_one(client: Client) -> None:
    alone = client.ask(WAVE, "?", max_tokens=2)
    with client.http() as http, http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()  # kept: httpx hangs up when it is collected
        next(lines)
        together = [client.ask(WAVE, "?", max_tokens=2) for _ in range(3)]
        assert client.metric("requests_running") == 1, "the long answer goes on"
    assert {answer["choices"][0]["message"]["content"] for answer in together} == {
        alone["choices"][0]["message"]["content"]
    }


def test_answers_that_take_turns_are_those_given_alone(client: Client) -> None:
    bodies = [
        body_of(tone(0.3, 300.0 + 100 * number), f"q {number}", max_tokens=30 + 20 * number, temperature=1.0,
                seed=number, n=1 + number % 3)
        for number in range(6)
    ]  # fmt: skip
    alone = [client.post(body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        pending = []
        for body in bodies:
            pending.append(pool.submit(client.post, body))
            time.sleep(0.03)
        together = [response.result().json()["choices"] for response in pending]
    assert together == alone


def test_a_prefill_in_chunks_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch, endless: LocalEngine) -> None:
    monkeypatch.setattr(local, "PREFILL_CHUNK_TOKENS", 16)
    engine = LocalEngine(endless.model)
    prompts = [
        Prompt(user_question("x" * length), (WAVE,) if length % 2 else (tone(0.4),), str(length))
        for length in (5, 40, 41, 90, 7)
    ] + [Prompt((Turn("user", (Text("no sound"),)),), (), "n")]
    params = SamplingParams(12, temperature=1.0, seed=3)
    expected = [[completion.token_ids for completion in group] for group in engine.generate(prompts, params, 2)]
    results: list[Any] = []
    pauses = 0

    def keep(partials: Any) -> tuple[()]:
        results[:] = [[tuple(sample.token_ids) for sample in samples] for samples in partials]
        return ()

    for _ in LocalEngine(endless.model).generate_in_steps(prompts, params, 2, keep, lambda: True):
        pauses += 1
    assert results == expected
    assert pauses > 11 + 5, "it pauses after clips, chunks and passes"


def test_a_prefill_ends_when_its_client_has_left(monkeypatch: pytest.MonkeyPatch, endless: LocalEngine) -> None:
    monkeypatch.setattr(local, "PREFILL_CHUNK_TOKENS", 8)
    model, decode = endless.model, endless.model.decode
    passes = threading.Semaphore(0)

    def slow_decode(*arguments: Any) -> Any:
        passes.release()
        time.sleep(0.05)
        return decode(*arguments)

    with running(endless, ServerLimits()) as client:
        monkeypatch.setattr(model, "decode", slow_decode)
        with client.http() as http, pytest.raises(Exception, match="timed out"):
            http.post("/v1/chat/completions", json=body_of("x" * 2000), timeout=0.5)  # 250 chunks, 12 s
        started = time.monotonic()
        while client.metric("requests_running"):
            assert time.monotonic() < started + 5
            time.sleep(0.02)
        monkeypatch.setattr(model, "decode", decode)
        assert client.post(body_of("y")).status_code == 200


def test_a_stream_whose_batch_fails_is_told_once(monkeypatch: pytest.MonkeyPatch, endless: LocalEngine) -> None:
    model, embed = endless.model, endless.model.embed
    calls = 0

    def fail_once(ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise RuntimeError("out of memory")
        return embed(ids)

    def outcome(body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream, or the error of a request that failed before it had sent anything."""
        response = client.post(body)
        if not response.headers["content-type"].startswith("text/event-stream"):
            return [{"error": response.json()["error"]}]
        return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]

    bodies = [body_of(WAVE, f"q{number}", max_tokens=30, stream=True) for number in range(2)]
    with running(endless, ServerLimits()) as client:
        expected = [client.events(body) for body in bodies]
        monkeypatch.setattr(model, "embed", fail_once)
        with ThreadPoolExecutor(2) as pool:
            told = list(pool.map(outcome, bodies))
    assert calls > 12, "the batch failed, and its requests were sampled alone"

    def text(events: list[dict[str, Any]]) -> str:
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events if "choices" in event)

    if [text(events) for events in told] != [text(events) for events in expected]:
        # they were not in one batch: then the one that failed says so, and what it sent before is not sent again
        failed = [events for events in told if "error" in events[-1]]
        assert len(failed) == 1 and any(text(whole).startswith(text(failed[0])) for whole in expected)


def test_a_sample_that_is_drawn_again_is_not_sent_again() -> None:
    stream = SampleStream(0, lambda ids: bytes(ids).decode(), (), limit=9, stream=True)

    def update(text: str) -> str | None:
        delta = stream.update(PartialCompletion(list(text.encode()), [0.0] * len(text)))
        return None if delta is None else delta.text

    assert [update(text) for text in ("a", "ab", "a", "ab", "abc")] == ["a", "b", None, None, "c"]
    with pytest.raises(EngineError, match="came out differently"):
        update("ax")


def test_prompts_that_share_little_have_trees_of_their_own() -> None:
    """32 questions of 490 tokens about one clip of 120: one tree would compare (120 + 32 x 370)^2 tokens."""
    audio = [1] * 120
    prompts = [audio + [2 + number] * 370 for number in range(32)]
    sizes = [group.size for group in group_prompts(prompts, ["clip"] * 32)]
    assert len(sizes) * max(sizes) ** 2 <= 2 * 32 * 490**2
    short = [[1] * 750 + [2 + number] * 20 for number in range(32)]
    assert [group.size for group in group_prompts(short, ["clip"] * 32)] == [750 + 32 * 20]
    assert Capacity().max_attention_cells < (120 + 32 * 370) ** 2
