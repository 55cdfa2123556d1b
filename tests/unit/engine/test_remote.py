"""The remote engine against a real HTTP server: what is sent, what comes back, every refusal, and the real CLI on real
clips."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import tone, user_question
from chat_server import Chat, Say, chooser, counted, deaf, listener, serving, sounds, texts
from earwise import cli
from earwise.data.manifest_path import STARTER
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.remote.address import ServerAddress, parse_address, slug
from earwise.engine.remote.client import RemoteEngine
from earwise.engine.remote.openai_http import RequestLimits
from earwise.engine.remote.probe import Heard, bursts, chirp, deafness, open_remote_engine
from earwise.errors import AudioError, ConfigError, EngineError
from earwise.types import Audio, Text, Turn

pytestmark = pytest.mark.usefixtures("own_home")
CLIPS = sorted(STARTER.rglob("*.ogg"))
PATIENT = RequestLimits(concurrency=4, backoff_s=0.01, max_backoff_s=0.02)


def prompts(count: int, seconds: float = 0.5) -> list[Prompt]:
    return [Prompt(user_question(f"question {k}"), (tone(seconds, 200.0 + 100 * k),), f"key {k}") for k in range(count)]


def engine_on(chat: Chat, **more: Any) -> RemoteEngine:
    kind = more.pop("kind", "")
    log = more.pop("log", None)
    return RemoteEngine(ServerAddress(chat.url, "m", limits=more.pop("limits", PATIENT), **more), kind=kind, log=log)


# --- what is sent


@pytest.mark.parametrize("part", ["input_audio", "audio_url"])
def test_a_sound_arrives_as_it_was(part: str) -> None:
    wave = tone(0.7)
    turns = (
        Turn("system", (Text("Be brief."),)),
        Turn("user", (Audio("a"), Text("What is it?"))),
        Turn("assistant", (Text("A tone."),)),
        Turn("user", (Text("And this?"), Audio("b"))),
    )
    with serving(listener) as chat:
        engine = engine_on(chat, part=part)
        said = engine.generate([Prompt(turns, (wave, wave[:4000]))], SamplingParams(max_new_tokens=7))[0][0]
    assert said.text.startswith("0.70s at") and said.text.count("at") == 2
    (body,) = chat.bodies
    (first, rate), (second, _) = sounds(body)
    assert rate == 16000 and len(first) == len(wave) and len(second) == 4000
    np.testing.assert_allclose(first, wave, atol=1 / 32767)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][0]["content"] == "Be brief." and body["messages"][2]["content"] == "A tone."
    assert [one["type"] for one in body["messages"][3]["content"]] == ["text", part]
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (7, 0.0, 1.0)
    assert "seed" not in body and "n" not in body and "logprobs" not in body


def test_draws_depend_on_seed_and_key_and_on_nothing_else() -> None:
    def echo(body: dict[str, Any], count: int) -> Say:
        return Say(choices=[{"message": {"content": f"{body['seed'] + k}"}} for k in range(body.get("n", 1))])

    drawn = SamplingParams(temperature=1.0, seed=3)
    with serving(echo) as chat:
        engine = engine_on(chat)
        together = engine.generate(prompts(5), drawn, 3)
        alone = [engine.generate([prompt], drawn, 3)[0] for prompt in prompts(5)]
        other = engine.generate(prompts(1), SamplingParams(temperature=1.0, seed=4), 3)
    assert together == alone and other[0] != alone[0]
    assert len({one.text for group in together for one in group}) == 15
    assert chat.bodies[0]["n"] == 3


def test_a_server_that_gives_fewer_samples_is_asked_for_the_rest() -> None:
    def one_each(body: dict[str, Any], count: int) -> Say:
        return Say(f"{body['seed']}", usage=(10, 1))

    with serving(one_each) as chat:
        said = engine_on(chat).generate(prompts(1), SamplingParams(temperature=1.0), 4)[0]
    assert len(chat.bodies) == 4 and len({one.text for one in said}) == 4
    assert [body.get("n", 1) for body in chat.bodies] == [4, 3, 2, 1]


def test_greedy_answers_are_asked_for_once() -> None:
    with serving(listener) as chat:
        said = engine_on(chat).generate(prompts(2), SamplingParams(), 3)
    assert len(chat.bodies) == 2 and [len(group) for group in said] == [3, 3] and said[0][0] == said[0][2]


def test_a_known_server_is_given_settings_of_ours_not_of_the_checkpoint() -> None:
    content = [{"token": "a", "logprob": -0.5}, {"token": "<end>", "logprob": -0.25}]
    choice = {"message": {"content": "a"}, "logprobs": {"content": content}, "token_ids": [7, 2]}
    with serving(lambda body, count: Say(choices=[choice | {"finish_reason": "length"}])) as chat:
        said = engine_on(chat, kind="vllm").generate(prompts(1), SamplingParams(temperature=1.0, top_k=5))[0][0]
        engine_on(chat, kind="vllm").generate(prompts(1), SamplingParams())
        engine_on(chat, kind="sglang", logprobs=False).generate(prompts(1), SamplingParams())
    assert (said.token_ids, said.logprobs, said.finish_reason) == ((7, 2), (-0.5, -0.25), "length")
    first, second, third = chat.bodies
    assert (first["top_k"], first["repetition_penalty"], first["min_p"], first["logprobs"]) == (5, 1.0, 0.0, True)
    assert second["top_k"] == -1 and second["return_token_ids"] is True
    assert third["top_k"] == -1 and "logprobs" not in third and "return_token_ids" not in third


def test_reasoning_that_a_server_took_out_is_put_back() -> None:
    choice = {"message": {"content": "<answer>dog</answer>", "reasoning_content": "It barks."}}
    with serving(lambda body, count: Say(choices=[choice])) as chat:
        said = engine_on(chat).generate(prompts(1), SamplingParams())[0][0]
    assert said.text == "<think>It barks.</think>\n<answer>dog</answer>"


def test_every_exchange_is_logged_without_key_and_sound(tmp_path: Path) -> None:
    log = tmp_path / "log" / "m.jsonl"
    with serving(lambda body, count: Say(status=500) if count == 1 else listener(body, count)) as chat:
        engine_on(chat, api_key="secret", log=log).generate(prompts(2), SamplingParams())
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert chat.headers[0]["authorization"] == "Bearer secret" and "secret" not in log.read_text()
    assert len(rows) == 2 and len(log.read_text()) < 3000
    row = next(row for row in rows if row["key"] == "key 0")
    role, clip, question = row["prompt"][0]
    assert (role, question) == ("user", "question 0") and len(clip["sha256"]) == 64
    assert row["answers"][0]["text"].startswith("0.50s") and row["usage"][0] > 12
    assert row["settings"]["max_tokens"] == 64 and row["model"] == "m"


# --- when the server is busy, wrong, or gone


def test_busy_servers_are_waited_for() -> None:
    def moody(body: dict[str, Any], count: int) -> Say:
        trouble = [Say(status=429, headers={"retry-after": "0.3"}), Say(status=503), Say(hang_up=True)]
        return trouble[count - 1] if count <= 3 and texts(body) == ["question 1"] else listener(body, count)

    with serving(moody) as chat:
        said = engine_on(chat).generate(prompts(3), SamplingParams())
        late = [at for at, body in zip(chat.times, chat.bodies, strict=True) if texts(body) == ["question 1"]]
    assert [group[0].text[:5] for group in said] == ["0.50s"] * 3
    assert len(late) == 4 and late[1] - late[0] >= 0.3 and chat.most <= 4


def test_a_slow_answer_is_asked_for_again() -> None:
    def slow(body: dict[str, Any], count: int) -> Say:
        return Say("late", wait_s=1.0) if count == 1 else Say("fine")

    with serving(slow) as chat:
        said = engine_on(chat, timeout_s=0.3).generate(prompts(1), SamplingParams())
    assert said[0][0].text == "fine"


def test_one_bad_prompt_costs_no_other_a_second_request() -> None:
    def strict(body: dict[str, Any], count: int) -> Say:
        return Say(status=400, raw=b"too long") if texts(body) == ["question 2"] else listener(body, count)

    with serving(strict) as chat:
        engine = engine_on(chat)
        with pytest.raises(EngineError, match="rejects this request: status 400: too long"):
            engine.generate(prompts(4), SamplingParams())
        assert len(chat.bodies) == 4
        again = [
            engine.generate([prompt], SamplingParams())[0][0].text for prompt in prompts(4) if prompt.key != "key 2"
        ]
        assert len(chat.bodies) == 4 and all(again)
        engine.generate(prompts(1), SamplingParams())  # given out once only: a canary is really asked
        assert len(chat.bodies) == 5


def test_a_server_that_is_gone_gets_one_try_a_request_until_it_is_back() -> None:
    up = threading.Event()

    def dead(body: dict[str, Any], count: int) -> Say:
        return listener(body, count) if up.is_set() else Say(status=502)

    patience = RequestLimits(concurrency=1, tries=3, backoff_s=0.001)
    with serving(dead) as chat:
        engine = engine_on(chat, limits=patience)
        with pytest.raises(EngineError, match=r"does not answer: status 502 \(4 of 4 prompts\)"):
            engine.generate(prompts(4), SamplingParams())
        assert len(chat.bodies) == 3 + 1 + 1 + 1
        up.set()
        assert len(engine.generate(prompts(4), SamplingParams())) == 4
        up.clear()
        with pytest.raises(EngineError):
            engine.generate(prompts(1), SamplingParams(max_new_tokens=3))
        assert len(chat.bodies) == 6 + 4 + 3


def test_a_wrong_key_ends_it_at_once() -> None:
    with (
        serving(lambda body, count: Say(status=401, raw=b"who are you")) as chat,
        pytest.raises(EngineError, match=r"401 \(who are you\); check the address, the model and the key"),
    ):
        engine_on(chat).generate(prompts(1), SamplingParams())


def test_too_long_and_too_few_sounds_are_refused_here() -> None:
    engine = RemoteEngine(ServerAddress("http://127.0.0.1:9/v1", "m"))
    with pytest.raises(AudioError, match=r"31\.0 s is longer than the 30 s.*max_s="):
        engine.generate([Prompt(user_question("?"), (np.zeros(31 * 16000, np.float32),))], SamplingParams())
    with pytest.raises(EngineError, match="2 audio parts but 1 sounds"):
        engine.generate([Prompt(user_question("?", 2), (tone(1.0),))], SamplingParams())


def test_the_pace_is_kept() -> None:
    with serving(listener) as chat:
        engine = engine_on(chat, limits=RequestLimits(concurrency=8, requests_per_minute=1200))
        engine.generate(prompts(3), SamplingParams())
        engine.generate(prompts(5)[3:], SamplingParams())
    assert chat.times[-1] - chat.times[0] >= 4 * 0.05 - 0.03


def test_it_works_inside_a_running_loop() -> None:
    async def notebook(engine: RemoteEngine) -> str:
        return engine.generate(prompts(1), SamplingParams())[0][0].text

    with serving(listener) as chat:
        assert asyncio.run(notebook(engine_on(chat))).startswith("0.50s")


# --- likelihoods, as vLLM tells them


def scoring(body: dict[str, Any], count: int) -> Say:
    """ChatML by words: a token a word, two a role line, three behind an answer (mark, newline, and one more); the k-th
    token of a prompt has log-probability -k / 100."""
    ids: list[int] = []
    for message, text in zip(body["messages"], texts(body), strict=True):
        ids += [900, 901] + [5] * round(25 * sum(len(w) / r for w, r in sounds({"messages": [message]})))
        ids += [10 + len(word) for word in text.split()]
        last = message is body["messages"][-1]
        ids += [] if last and body.get("continue_final_message") else [902, 903, 904]
    if body.get("add_generation_prompt", True):
        ids += [900, 901]
    told = [None] + [{str(ids[k]): {"logprob": -k / 100}, "77": {"logprob": -1e-9}} for k in range(1, len(ids))]
    more = {"prompt_logprobs": told, "prompt_token_ids": ids} if "prompt_logprobs" in body else {}
    return Say("x", usage=(len(ids), 1), more=more)


def test_likelihoods_are_summed_over_the_answer_and_its_end_mark() -> None:
    with serving(scoring) as chat:
        engine = engine_on(chat, kind="vllm")
        asked = prompts(2)
        found = engine.score(asked, [["yes", "not at all"], ["yes"]])
        engine.score(asked[:1], [["yes"]])
    # prompt: role line 2, half a second of sound 12, two words, end 3, role line 2 = 21 tokens; then answer and mark
    start = 2 + 12 + 2 + 3 + 2
    assert found[0][0] == pytest.approx(-(start + start + 1) / 100)
    assert found[0][1] == pytest.approx(-sum(range(start, start + 4)) / 100)
    assert found[1] == [found[0][0]]
    calibrating = [body for body in chat.bodies if not sounds(body)]
    assert len(calibrating) == 2  # once
    assert all(body["max_tokens"] == 1 for body in chat.bodies)


def test_a_server_without_likelihoods_says_so() -> None:
    with serving(listener) as chat, pytest.raises(EngineError, match=r"prompt_logprobs.*serve the model with vLLM"):
        engine_on(chat).score(prompts(1), [["yes"]])


# --- who is there, and does it hear


def test_a_server_that_hears_is_opened_and_says_who_it_is() -> None:
    said: list[str] = []
    with serving(listener) as chat:
        chat.models = [{"id": "m", "owned_by": "vllm", "root": "org/m-7b"}]
        engine = open_remote_engine(chat.url, notify=said.append)
    assert (engine.name, engine.kind, engine.revision) == ("m", "vllm", "vllm:org/m-7b")
    assert engine.tokens_per_s == 25.0 and "25 tokens a second" in said[0]
    assert len(chat.bodies) == 3 and len({tuple(texts(body)) for body in chat.bodies}) == 1


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (deaf, r"not shown to hear: a prompt has 7 tokens without sound and 7 and 7 with it"),
        (lambda body, count: Say("a dog", usage=None), "counts no tokens and says the same"),
        (lambda body, count: Say("a dog", usage=(7 + 375 * bool(sounds(body)), 2)), "both take 382 tokens"),
        (
            lambda body, count: Say("a", usage=counted(body, "", 20000.0)),
            "20000 tokens a second of sound",
        ),
        (lambda body, count: Say(status=400, raw=b"no such part") if sounds(body) else Say("x"), "part=audio_url"),
    ],
)
def test_a_server_that_is_not_shown_to_hear_is_refused(say: Callable[[dict[str, Any], int], Say], message: str) -> None:
    with serving(say) as chat, pytest.raises(EngineError, match=message):
        open_remote_engine(chat.url)


def test_sound_that_is_dropped_later_is_noticed() -> None:
    def first_clip_only(body: dict[str, Any], count: int) -> Say:
        heard = sounds(body)[:1]
        return Say("a tone", usage=(9 + round(sum(25 * len(wave) / rate for wave, rate in heard)), 2))

    with serving(first_clip_only) as chat:
        engine = open_remote_engine(f"{chat.url}#m")
        assert engine.generate(prompts(1, 4.0), SamplingParams())[0][0].text == "a tone"
        with pytest.raises(EngineError, match=r"16\.0 s of sound took 109 tokens, about 400 were due"):
            engine.generate([Prompt(user_question("?", 4), (tone(4.0),) * 4)], SamplingParams())


def test_what_counts_as_hearing() -> None:
    assert deafness(Heard(7, 32, 82, ("a", "a"))) is None
    assert deafness(Heard(7, 382, 382, ("a tone", "noise"))) is None  # a fixed window, told apart by its words
    assert deafness(Heard(None, None, None, ("a tone", "noise"))) is None
    assert deafness(Heard(7, 32, 7, ("a tone", "noise"))) is not None
    assert Heard(7, 32, 82, ("", "")).tokens_per_s == 25.0 and Heard(7, 382, 382, ("", "")).tokens_per_s is None
    assert len(chirp(1.0, 16000)) == 16000 and np.abs(bursts(3.0, 8000)).max() <= 1


def test_servers_that_are_not_there_or_have_other_models() -> None:
    with pytest.raises(EngineError, match="nothing answers"):
        open_remote_engine("http://127.0.0.1:9/v1#m")
    with serving(listener) as chat:
        chat.models = [{"id": "one"}, {"id": "two"}]
        with pytest.raises(ConfigError, match=r"has one, two; name one: .*#NAME"):
            open_remote_engine(chat.url)
        with pytest.raises(ConfigError, match=r"no model 'three', it has one, two"):
            open_remote_engine(f"{chat.url}#three")
        assert open_remote_engine(f"{chat.url}#two").name == "two"


def test_addresses() -> None:
    key = {"EARWISE_API_KEY": "k", "OPENAI_API_KEY": "o", "OPENAI_BASE_URL": "https://api/v1/"}
    one = parse_address("http://h:1/v1/?part=audio_url&max_s=60&rate=24000&concurrency=3&logprobs=1#org/name", key)
    assert (one.url, one.model, one.api_key, one.part) == ("http://h:1/v1", "org/name", "k", "audio_url")
    assert (one.max_audio_s, one.sample_rate, one.limits.concurrency, one.logprobs) == (60.0, 24000, 3, True)
    assert parse_address("http://h:1/v1#n?max_s=60", key).max_audio_s == 60.0
    two = parse_address("remote:gpt-audio?requests_per_minute=60", key)
    assert (two.url, two.model, two.api_key, two.limits.requests_per_minute) == ("https://api/v1", "gpt-audio", "o", 60)
    assert "'k'" not in repr(one) and slug("http://h:1/v1#org/name") == "h-1-org-name"
    for name, message in (
        ("http://h/v1?parts=x#m", "did you mean 'part'"),
        ("http://h/v1?part=mp3#m", "part 'mp3' is none of"),
        ("http://h/v1?rate=high#m", "rate='high' is no value"),
        ("http://h/v1?concurrency=0#m", "concurrency is 0"),
        ("http://me:pw@h/v1#m", "put it into EARWISE_API_KEY"),
        ("http:///v1#m", "no address"),
        ("http://h:x/v1#m", "no address"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_address(name, {})
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL is ''"):
        parse_address("remote:x", {})


# --- the command line, on real clips


def cli_run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def chat() -> Iterator[Chat]:
    with serving(chooser) as server:
        yield server


def test_ask(chat: Chat, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = cli_run(capsys, "ask", CLIPS[0], "What is it?", "--model", f"{chat.url}#m")
    assert code == 0 and " at " in out and "25 tokens a second" in err
    (log,) = (tmp_path / "home" / "remote").glob("*.jsonl")
    assert len(log.read_text().splitlines()) == 4 and str(log) in err
    code, out, err = cli_run(
        capsys, "ask", CLIPS[0], "Which?", "--choices", "a dog,a car", "--json", "--model", f"{chat.url}#m"
    )
    answer = json.loads(out)
    assert code == 0 and answer["answer"] == "a dog" and answer["model"] == "m" and "likelihood" not in answer
    assert "no likelihoods" in err


def test_evaluate_and_difficulty(chat: Chat, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = f"{chat.url}?concurrency=4#m"
    code, out, _ = cli_run(
        capsys, "evaluate", "--data", "starter:val", "--limit", 6, "--model", model, "--out", tmp_path / "e", "--json"
    )
    metrics = json.loads(out)
    assert (
        code == 0
        and metrics["n"] == 6
        and metrics["model"] == "m"
        and set(metrics["blind"])
        == {
            "silence",
            "shuffled",
        }
    )
    asked = len(chat.bodies)
    assert asked == 3 + 3 * 6 and 1 < chat.most <= 4
    again = cli_run(
        capsys, "evaluate", "--data", "starter:val", "--limit", 6, "--model", model, "--out", tmp_path / "e", "--json"
    )
    assert again[0] == 0 and len(chat.bodies) == asked + 3  # the probe, and nothing that was answered before

    code, out, _ = cli_run(
        capsys, "build", "difficulty", "starter:val", "--model", model, "--attempts", 2, "--out",
        tmp_path / "d.jsonl", "--json", "--shard", "1/40", "--log", tmp_path / "log",
    )  # fmt: skip
    assert code == 0 and json.loads(out)["model"] == "m"
    assert any(body.get("n") == 2 for body in chat.bodies)


def test_chat(chat: Chat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: Sequence[str] = (f"/audio {CLIPS[0]}", "What is it?", "/quit")
    answers = iter(lines)
    monkeypatch.setattr("builtins.input", lambda *_: next(answers))
    code, out, _ = cli_run(capsys, "chat", "--model", f"{chat.url}#m")
    assert code == 0 and " at " in out


def test_a_deaf_server_ends_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serving(deaf) as server:
        code, _, err = cli_run(
            capsys, "evaluate", "--data", "starter:val", "--model", f"{server.url}#m", "--out", tmp_path / "e"
        )
    assert code == 2 and "not shown to hear" in err and not (tmp_path / "e").exists()
