"""The remote engine on a real HTTP server: the requests it sends, the completions it returns, and how it handles
errors."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import tone, user_question
from chat_server import (
    ChatServer,
    ServerReply,
    describe_clips,
    request_clips,
    request_texts,
    run_chat_server,
)
from earwise.engine.base import PauseParams, Prompt, SamplingParams
from earwise.engine.remote import openai_http
from earwise.engine.remote.address import ServerAddress
from earwise.engine.remote.client import RemoteEngine
from earwise.engine.remote.openai_http import RequestLimits
from earwise.errors import AudioError, EngineError, ServerUnavailable
from earwise.types import Audio, Text, Turn

pytestmark = pytest.mark.usefixtures("own_home")
QUICK_RETRIES = RequestLimits(concurrency=4, backoff_s=0.01, max_backoff_s=0.02)


def make_prompts(count: int, seconds: float = 0.5) -> list[Prompt]:
    """Different questions about different tones."""
    return [Prompt(user_question(f"question {k}"), (tone(seconds, 200.0 + 100 * k),), f"key {k}") for k in range(count)]


def engine_on(
    chat: ChatServer, *, kind: str = "", log: Path | None = None, limits: RequestLimits = QUICK_RETRIES, **options: Any
) -> RemoteEngine:
    """An engine on the test's server, opened without the probe; `options` are fields of the address."""
    return RemoteEngine(ServerAddress(chat.url, "m", limits=limits, **options), kind=kind, log=log)


# --- requests


@pytest.mark.parametrize("part", ["input_audio", "audio_url"])
def test_conversation_and_clips_arrive_unchanged(part: str) -> None:
    waveform = tone(0.7)
    turns = (
        Turn("system", (Text("Be brief."),)),
        Turn("user", (Audio("a"), Text("What is it?"))),
        Turn("assistant", (Text("A tone."),)),
        Turn("user", (Text("And this?"), Audio("b"))),
    )
    with run_chat_server(describe_clips) as chat:
        engine = engine_on(chat, part=part)
        prompt = Prompt(turns, (waveform, waveform[:4000]))
        completion = engine.generate([prompt], SamplingParams(max_new_tokens=7))[0][0]
    assert completion.text.startswith("0.70s at") and completion.text.count("at") == 2
    (body,) = chat.bodies
    (first, rate), (second, _) = request_clips(body)
    assert rate == 16000 and len(first) == len(waveform) and len(second) == 4000
    np.testing.assert_allclose(first, waveform, atol=1 / 32767)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == "Be brief." and body["messages"][2]["content"] == "A tone."
    assert [message_part["type"] for message_part in body["messages"][3]["content"]] == ["text", part]
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (7, 0.0, 1.0)
    assert "seed" not in body and "n" not in body and "logprobs" not in body


def test_confidences_come_from_the_likeliest_tokens_and_pauses_are_refused() -> None:
    """By hand: the mean of .5 and 1.5 nats, and of .25 and 3.75; at most 20 tokens can be asked for."""
    likeliest = [[-0.5, -1.5], [-0.25, -3.75]]
    content = [{"logprob": values[0], "top_logprobs": [{"logprob": value} for value in values]} for values in likeliest]
    choice = {"message": {"content": "a"}, "logprobs": {"content": content}, "token_ids": [7, 2]}
    with run_chat_server(lambda body, count: ServerReply(choices=[choice])) as chat:
        params = SamplingParams(confidence_top_k=50)
        completion = engine_on(chat, kind="vllm").generate(make_prompts(1), params)[0][0]
        engine_on(chat, kind="vllm", logprobs=False).generate(make_prompts(1), params)
        engine_on(chat, kind="earwise").generate(make_prompts(1), params)
        with pytest.raises(EngineError, match="servers make no pauses"):
            engine_on(chat, kind="vllm").generate(make_prompts(1), SamplingParams(pause=PauseParams(1.0)))
    assert completion.confidences == (1.0, 2.0)
    first, second, third = chat.bodies
    assert (first["logprobs"], first["top_logprobs"]) == (True, 20)
    assert "top_logprobs" not in second, "a server that returns no log-probabilities is not asked for them"
    assert third["logprobs"] is True and "top_logprobs" not in third, "the package's own server refuses them"


def test_seeds_depend_on_seed_and_key_alone() -> None:
    def reply_with_seed(body: dict[str, Any], count: int) -> ServerReply:
        choices = [{"message": {"content": f"{body['seed'] + k}"}} for k in range(body.get("n", 1))]
        return ServerReply(choices=choices)

    sampling_params = SamplingParams(temperature=1.0, seed=3)
    with run_chat_server(reply_with_seed) as chat:
        engine = engine_on(chat)
        together = engine.generate(make_prompts(5), sampling_params, 3)
        alone = [engine.generate([prompt], sampling_params, 3)[0] for prompt in make_prompts(5)]
        other_seed = engine.generate(make_prompts(1), SamplingParams(temperature=1.0, seed=4), 3)
    assert together == alone and other_seed[0] != alone[0]
    assert len({completion.text for group in together for completion in group}) == 15
    assert chat.bodies[0]["n"] == 3


def test_a_server_that_returns_fewer_choices_is_asked_for_the_rest() -> None:
    def reply_with_one_choice(body: dict[str, Any], count: int) -> ServerReply:
        return ServerReply(f"{body['seed']}", usage=(10, 1))

    with run_chat_server(reply_with_one_choice) as chat:
        completions = engine_on(chat).generate(make_prompts(1), SamplingParams(temperature=1.0), 4)[0]
    assert len(chat.bodies) == 4 and len({completion.text for completion in completions}) == 4
    assert [body.get("n", 1) for body in chat.bodies] == [4, 3, 2, 1]


def test_greedy_completions_are_requested_once() -> None:
    with run_chat_server(describe_clips) as chat:
        groups = engine_on(chat).generate(make_prompts(2), SamplingParams(), 3)
    assert len(chat.bodies) == 2 and [len(group) for group in groups] == [3, 3] and groups[0][0] == groups[0][2]


def test_servers_of_a_known_kind_get_all_sampling_fields() -> None:
    content = [{"token": "a", "logprob": -0.5}, {"token": "<end>", "logprob": -0.25}]
    choice = {"message": {"content": "a"}, "logprobs": {"content": content}, "token_ids": [7, 2]}
    choice |= {"finish_reason": "length"}
    with run_chat_server(lambda body, count: ServerReply(choices=[choice])) as chat:
        sampling_params = SamplingParams(temperature=1.0, top_k=5)
        completion = engine_on(chat, kind="vllm").generate(make_prompts(1), sampling_params)[0][0]
        engine_on(chat, kind="vllm").generate(make_prompts(1), SamplingParams())
        engine_on(chat, kind="vllm", logprobs=False).generate(make_prompts(1), SamplingParams())
    assert (completion.token_ids, completion.logprobs) == ((7, 2), (-0.5, -0.25))
    assert completion.finish_reason == "length"
    first, second, third = chat.bodies
    assert (first["top_k"], first["repetition_penalty"], first["min_p"], first["logprobs"]) == (5, 1.0, 0.0, True)
    assert second["top_k"] == -1 and second["return_token_ids"] is True
    assert third["top_k"] == -1 and "logprobs" not in third


def test_reasoning_that_a_server_separated_is_put_back() -> None:
    choice = {"message": {"content": "<answer>dog</answer>", "reasoning_content": "It barks."}}
    with run_chat_server(lambda body, count: ServerReply(choices=[choice])) as chat:
        completion = engine_on(chat).generate(make_prompts(1), SamplingParams())[0][0]
    assert completion.text == "<think>It barks.</think>\n<answer>dog</answer>"


def test_every_exchange_is_logged_without_api_key_and_audio(tmp_path: Path) -> None:
    def fail_first(body: dict[str, Any], count: int) -> ServerReply:
        return ServerReply(status=500) if count == 1 else describe_clips(body, count)

    log = tmp_path / "log" / "m.jsonl"
    with run_chat_server(fail_first) as chat:
        engine_on(chat, api_key="secret", log=log).generate(make_prompts(2), SamplingParams())
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert chat.headers[0]["authorization"] == "Bearer secret" and "secret" not in log.read_text()
    assert len(rows) == 2 and len(log.read_text()) < 3000
    row = next(row for row in rows if row["key"] == "key 0")
    role, clip, question = row["prompt"][0]
    assert (role, question) == ("user", "question 0") and len(clip["sha256"]) == 64
    assert row["answers"][0]["text"].startswith("0.50s") and row["usage"][0] > 12
    assert row["settings"]["max_tokens"] == 64 and row["model"] == "m"


def test_the_log_is_private_and_holds_no_key_that_the_server_repeats(tmp_path: Path) -> None:
    key, log = "sk-very-secret", tmp_path / "m.jsonl"
    log.write_text("")
    log.chmod(0o644)  # as an earlier version left it

    def repeat_key(body: dict[str, Any], count: int) -> ServerReply:
        if count > 1:
            return ServerReply(status=400, raw=f"Incorrect key {key}".encode())
        return ServerReply(f"your key is {key}")

    with run_chat_server(repeat_key) as chat:
        engine = engine_on(chat, api_key=key, log=log)
        engine.generate(make_prompts(1), SamplingParams())
        with pytest.raises(EngineError, match=r"Incorrect key \[API key\]"):
            engine.generate(make_prompts(1), SamplingParams())
    assert log.stat().st_mode & 0o777 == 0o600
    assert key not in log.read_text() and log.read_text().count("[API key]") == 2


# --- errors


@pytest.mark.parametrize("retry_after", ["86400", "inf"])
def test_a_long_retry_after_is_cut_and_announced(monkeypatch: pytest.MonkeyPatch, retry_after: str) -> None:
    monkeypatch.setattr(openai_http, "MAX_RETRY_AFTER_S", 0.2)
    monkeypatch.setattr(openai_http, "LONG_PAUSE_S", 0.1)
    lines: list[str] = []

    def busy_first(body: dict[str, Any], count: int) -> ServerReply:
        if count == 1:
            return ServerReply(status=429, headers={"retry-after": retry_after}, raw=b"quota")
        return ServerReply("fine")

    with run_chat_server(busy_first) as chat:
        engine = RemoteEngine(ServerAddress(chat.url, "m", limits=QUICK_RETRIES), notify=lines.append)
        started = time.monotonic()
        assert engine.generate(make_prompts(1), SamplingParams())[0][0].text == "fine"
    assert 0.2 <= time.monotonic() - started < 5
    shown = f"{float(retry_after):g}"
    assert lines == [f"status 429: quota: the server asks for a pause of {shown} s; trying again after 0.2 s"]


def test_a_failure_of_the_server_itself_is_reported_at_once_with_its_text() -> None:
    """vLLM without its audio packages answers every request with this; a hiccup passes at the second attempt."""
    body = b'{"error": {"message": "Please install vllm[audio]\\nfor audio support", "type": "Error", "code": 500}}'
    with run_chat_server(lambda *_: ServerReply(status=500, raw=body)) as chat:
        engine = RemoteEngine(ServerAddress(chat.url, "m"))  # default settings: eight attempts
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"fails with this request: status 500: Please install vllm\[audio\] for"):
            engine.generate(make_prompts(1), SamplingParams())
        assert len(chat.bodies) == 2 and time.monotonic() - started < 5

    def fail_first(body: dict[str, Any], count: int) -> ServerReply:
        return ServerReply(status=500, raw=b"hiccup") if count == 1 else ServerReply("fine")

    with run_chat_server(fail_first) as chat:
        assert engine_on(chat).generate(make_prompts(1), SamplingParams())[0][0].text == "fine"


def test_long_pauses_between_attempts_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "LONG_PAUSE_S", 0.1)
    lines: list[str] = []
    limits = RequestLimits(tries=3, backoff_s=0.2)
    with run_chat_server(lambda *_: ServerReply(status=503, raw=b'{"detail": "loading"}')) as chat:
        engine = RemoteEngine(ServerAddress(chat.url, "m", limits=limits), notify=lines.append)
        with pytest.raises(ServerUnavailable, match="status 503: loading"):
            engine.generate(make_prompts(1), SamplingParams())
    assert [line.split(": trying")[0] for line in lines] == ["status 503: loading"] * 2


def test_temporary_failures_are_retried() -> None:
    def fail_three_times(body: dict[str, Any], count: int) -> ServerReply:
        failures = [
            ServerReply(status=429, headers={"retry-after": "0.3"}),
            ServerReply(status=503),
            ServerReply(hang_up=True),
        ]
        if count <= 3 and request_texts(body) == ["question 1"]:
            return failures[count - 1]
        return describe_clips(body, count)

    with run_chat_server(fail_three_times) as chat:
        groups = engine_on(chat).generate(make_prompts(3), SamplingParams())
        arrivals = zip(chat.times, chat.bodies, strict=True)
        retry_times = [moment for moment, body in arrivals if request_texts(body) == ["question 1"]]
    assert [group[0].text[:5] for group in groups] == ["0.50s"] * 3
    assert len(retry_times) == 4 and retry_times[1] - retry_times[0] >= 0.3 and chat.max_in_flight <= 4


def test_a_request_that_takes_too_long_is_sent_again() -> None:
    def delay_first(body: dict[str, Any], count: int) -> ServerReply:
        return ServerReply("late", wait_s=1.0) if count == 1 else ServerReply("fine")

    with run_chat_server(delay_first) as chat:
        groups = engine_on(chat, timeout_s=0.3).generate(make_prompts(1), SamplingParams())
    assert groups[0][0].text == "fine"


def test_completions_of_a_failed_batch_are_not_requested_again() -> None:
    def reject_question_2(body: dict[str, Any], count: int) -> ServerReply:
        if request_texts(body) == ["question 2"]:
            return ServerReply(status=400, raw=b"too long")
        return describe_clips(body, count)

    with run_chat_server(reject_question_2) as chat:
        engine = engine_on(chat)
        with pytest.raises(EngineError, match="rejects this request: status 400: too long"):
            engine.generate(make_prompts(4), SamplingParams())
        assert len(chat.bodies) == 4
        retried = [
            engine.generate([prompt], SamplingParams())[0][0].text
            for prompt in make_prompts(4)
            if prompt.key != "key 2"
        ]
        assert len(chat.bodies) == 4 and all(retried)
        engine.generate(make_prompts(1), SamplingParams())  # returned only once: this one is a new request
        assert len(chat.bodies) == 5


def test_an_unavailable_server_gets_single_attempts_until_it_is_back() -> None:
    is_up = threading.Event()

    def reply_if_up(body: dict[str, Any], count: int) -> ServerReply:
        return describe_clips(body, count) if is_up.is_set() else ServerReply(status=502)

    three_attempts = RequestLimits(concurrency=1, tries=3, backoff_s=0.001)
    with run_chat_server(reply_if_up) as chat:
        engine = engine_on(chat, limits=three_attempts)
        with pytest.raises(EngineError, match=r"does not answer: status 502: .* \(4 of 4 prompts\)"):
            engine.generate(make_prompts(4), SamplingParams())
        assert len(chat.bodies) == 3 + 1 + 1 + 1
        is_up.set()
        assert len(engine.generate(make_prompts(4), SamplingParams())) == 4
        is_up.clear()
        with pytest.raises(EngineError):
            engine.generate(make_prompts(1), SamplingParams(max_new_tokens=3))
        assert len(chat.bodies) == 6 + 4 + 3


def test_a_wrong_api_key_is_an_error_at_once() -> None:
    with (
        run_chat_server(lambda body, count: ServerReply(status=401, raw=b"who are you")) as chat,
        pytest.raises(EngineError, match=r"401 \(who are you\); check the address, the model and the key"),
    ):
        engine_on(chat).generate(make_prompts(1), SamplingParams())


def test_too_long_or_missing_clips_are_rejected_before_sending() -> None:
    engine = RemoteEngine(ServerAddress("http://127.0.0.1:9/v1", "m"))
    with pytest.raises(AudioError, match=r"31\.0 s is longer than the 30 s.*max_s="):
        engine.generate([Prompt(user_question("?"), (np.zeros(31 * 16000, np.float32),))], SamplingParams())
    with pytest.raises(EngineError, match="2 audio parts but 1 sounds"):
        engine.generate([Prompt(user_question("?", 2), (tone(1.0),))], SamplingParams())


def test_the_rate_limit_is_kept() -> None:
    with run_chat_server(describe_clips) as chat:
        engine = engine_on(chat, limits=RequestLimits(concurrency=8, requests_per_minute=1200))
        engine.generate(make_prompts(3), SamplingParams())
        engine.generate(make_prompts(5)[3:], SamplingParams())
    assert chat.times[-1] - chat.times[0] >= 4 * 0.05 - 0.03


def test_it_works_inside_a_running_event_loop() -> None:
    async def notebook_cell(engine: RemoteEngine) -> str:
        return engine.generate(make_prompts(1), SamplingParams())[0][0].text

    with run_chat_server(describe_clips) as chat:
        assert asyncio.run(notebook_cell(engine_on(chat))).startswith("0.50s")


# --- likelihoods, in vLLM's form


def reply_with_prompt_logprobs(body: dict[str, Any], count: int) -> ServerReply:
    """ChatML with a token per word, two per role line, and three after an answer (end token, newline, and one more).

    The k-th token of a prompt has log-probability -k / 100.
    """
    ids: list[int] = []
    for message, text in zip(body["messages"], request_texts(body), strict=True):
        audio_s = sum(len(waveform) / rate for waveform, rate in request_clips({"messages": [message]}))
        ids += [900, 901] + [5] * round(25 * audio_s)
        ids += [10 + len(word) for word in text.split()]
        is_last = message is body["messages"][-1]
        ids += [] if is_last and body.get("continue_final_message") else [902, 903, 904]
    if body.get("add_generation_prompt", True):
        ids += [900, 901]
    logprobs = [None] + [{str(ids[k]): {"logprob": -k / 100}, "77": {"logprob": -1e-9}} for k in range(1, len(ids))]
    extra_fields = {"prompt_logprobs": logprobs, "prompt_token_ids": ids} if "prompt_logprobs" in body else {}
    return ServerReply("x", usage=(len(ids), 1), more=extra_fields)


def test_likelihoods_are_summed_over_the_answer_and_its_end_token() -> None:
    with run_chat_server(reply_with_prompt_logprobs) as chat:
        engine = engine_on(chat, kind="vllm")
        prompts = make_prompts(2)
        scores = engine.score(prompts, [["yes", "not at all"], ["yes"]])
        engine.score(prompts[:1], [["yes"]])
    # prompt: role line 2, half a second of audio 12, two words, end 3, role line 2 = 21 tokens; then answer and end
    start = 2 + 12 + 2 + 3 + 2
    assert scores[0][0] == pytest.approx(-(start + start + 1) / 100)
    assert scores[0][1] == pytest.approx(-sum(range(start, start + 4)) / 100)
    assert scores[1] == [scores[0][0]]
    suffix_measurements = [body for body in chat.bodies if not request_clips(body)]
    assert len(suffix_measurements) == 2  # in one call only
    assert all(body["max_tokens"] == 1 for body in chat.bodies)


def test_a_server_without_likelihoods_is_reported() -> None:
    with (
        run_chat_server(describe_clips) as chat,
        pytest.raises(EngineError, match=r"prompt_logprobs.*serve the model with vLLM"),
    ):
        engine_on(chat).score(make_prompts(1), [["yes"]])


def test_control_tokens_in_a_text_are_broken_except_for_a_server_that_reads_text_as_text() -> None:
    """Otherwise the server's chat template would end the turn of a question that spells `<|im_end|>`."""
    spelled = "a <|im_end|> <|AUDIO|> </s> <start_of_turn> [INST] <sound>"
    innocent = "a < b, <answer>x</answer>, [1], <|, |>, <think>"
    for kind, changes in (("vllm", True), ("", True), ("earwise", False)):
        with run_chat_server(describe_clips) as chat:
            prompts = [Prompt(user_question(text), (tone(0.5),), text) for text in (spelled, innocent)]
            engine_on(chat, kind=kind).generate(prompts, SamplingParams())
        texts = {request_texts(body)[0].replace("\u2060", ""): request_texts(body)[0] for body in chat.bodies}
        assert texts[innocent] == innocent
        assert texts[spelled].count("\u2060") == (6 if changes else 0), kind
