"""Opening a remote engine: the probe of its audio input, server addresses, and the command line on a server."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import tone, user_question
from chat_server import (
    ChatServer,
    ServerReply,
    choose_by_loudness,
    count_usage,
    describe_clips,
    request_clips,
    request_texts,
    run_chat_server,
    text_only_reply,
)
from earwise import cli
from earwise.data.manifest_path import STARTER
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.remote.address import parse_address, slug
from earwise.engine.remote.probe import ProbeResult, chirp, noise_bursts, open_remote_engine, unused_audio_reason
from earwise.errors import ConfigError, EngineError

pytestmark = pytest.mark.usefixtures("own_home")
CLIPS = sorted(STARTER.rglob("*.ogg"))


# --- the probe


def test_a_server_that_uses_audio_is_opened_and_described() -> None:
    lines: list[str] = []
    with run_chat_server(describe_clips) as chat:
        chat.models = [{"id": "m", "owned_by": "vllm", "root": "org/m-7b"}]
        engine = open_remote_engine(chat.url, notify=lines.append)
    assert (engine.name, engine.kind, engine.revision) == ("m", "vllm", "vllm:org/m-7b")
    assert engine.tokens_per_s == 25.0 and "25 tokens per second" in lines[0]
    assert len(chat.bodies) == 3 and len({tuple(request_texts(body)) for body in chat.bodies}) == 1


def reject_audio(body: dict[str, Any], count: int) -> ServerReply:
    """Reject requests with audio parts."""
    return ServerReply(status=400, raw=b"no such part") if request_clips(body) else ServerReply("x")


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (text_only_reply, r"not show that it uses audio: a prompt has 7 tokens without sound and 7 and 7 with it"),
        (lambda body, count: ServerReply("a dog", usage=None), "counts no tokens and gives the same answer"),
        (
            lambda body, count: ServerReply("a dog", usage=(7 + 375 * bool(request_clips(body)), 2)),
            "both take 382 tokens",
        ),
        (
            lambda body, count: ServerReply("a", usage=count_usage(body, "", 20000.0)),
            "20000 tokens per second of sound",
        ),
        (reject_audio, "part=audio_url"),
    ],
)
def test_a_server_that_does_not_show_that_it_uses_audio_is_rejected(
    respond: Callable[[dict[str, Any], int], ServerReply], message: str
) -> None:
    with run_chat_server(respond) as chat, pytest.raises(EngineError, match=message):
        open_remote_engine(chat.url)


def test_audio_that_is_dropped_later_is_noticed() -> None:
    def use_first_clip_only(body: dict[str, Any], count: int) -> ServerReply:
        audio_s = sum(len(waveform) / rate for waveform, rate in request_clips(body)[:1])
        return ServerReply("a tone", usage=(9 + round(25 * audio_s), 2))

    with run_chat_server(use_first_clip_only) as chat:
        engine = open_remote_engine(f"{chat.url}#m")
        one_clip = Prompt(user_question("question 0"), (tone(4.0, 200.0),), "key 0")
        assert engine.generate([one_clip], SamplingParams())[0][0].text == "a tone"
        with pytest.raises(EngineError, match=r"16\.0 s of sound took 109 tokens, about 400 were due"):
            engine.generate([Prompt(user_question("?", 4), (tone(4.0),) * 4)], SamplingParams())


def test_what_the_probe_accepts() -> None:
    assert unused_audio_reason(ProbeResult(7, 32, 82, ("a", "a"))) is None
    # A fixed number of tokens, but different answers:
    assert unused_audio_reason(ProbeResult(7, 382, 382, ("a tone", "noise"))) is None
    assert unused_audio_reason(ProbeResult(None, None, None, ("a tone", "noise"))) is None
    assert unused_audio_reason(ProbeResult(7, 32, 7, ("a tone", "noise"))) is not None
    assert ProbeResult(7, 32, 82, ("", "")).tokens_per_s == 25.0
    assert ProbeResult(7, 382, 382, ("", "")).tokens_per_s is None
    assert len(chirp(1.0, 16000)) == 16000 and np.abs(noise_bursts(3.0, 8000)).max() <= 1


# --- addresses


def test_unreachable_servers_and_wrong_models_are_reported() -> None:
    with pytest.raises(EngineError, match="nothing answers"):
        open_remote_engine("http://127.0.0.1:9/v1#m")
    with run_chat_server(describe_clips) as chat:
        chat.models = [{"id": "one"}, {"id": "two"}]
        with pytest.raises(ConfigError, match=r"has one, two; name one: .*#NAME"):
            open_remote_engine(chat.url)
        with pytest.raises(ConfigError, match=r"no model 'three', it has one, two"):
            open_remote_engine(f"{chat.url}#three")
        assert open_remote_engine(f"{chat.url}#two").name == "two"


def test_a_server_with_an_empty_list_of_models_is_taken_at_the_name_of_the_address() -> None:
    """transformers' server lists only what is in its cache, not the folder that it was started with."""
    with run_chat_server(describe_clips) as chat:
        chat.models = []
        engine = open_remote_engine(f"{chat.url}#/models/mine")
        assert (engine.name, engine.kind, engine.revision) == ("/models/mine", "", "remote")
        with pytest.raises(ConfigError, match="has no models; name one"):
            open_remote_engine(chat.url)


def test_addresses_are_parsed() -> None:
    keys = {"EARWISE_API_KEY": "k", "OPENAI_API_KEY": "o", "OPENAI_BASE_URL": "https://api/v1/"}
    address = parse_address("http://h:1/v1/?part=audio_url&max_s=60&rate=24000&concurrency=3&logprobs=1#org/name", keys)
    assert (address.url, address.model, address.api_key) == ("http://h:1/v1", "org/name", "k")
    assert (address.part, address.max_audio_s, address.sample_rate) == ("audio_url", 60.0, 24000)
    assert (address.limits.concurrency, address.logprobs) == (3, True)
    assert parse_address("http://h:1/v1#n?max_s=60", keys).max_audio_s == 60.0
    openai = parse_address("remote:gpt-audio?requests_per_minute=60", keys)
    assert (openai.url, openai.model, openai.api_key) == ("https://api/v1", "gpt-audio", "o")
    assert openai.limits.requests_per_minute == 60
    assert "'k'" not in repr(address) and slug("http://h:1/v1#org/name") == "h-1-org-name"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://h/v1?parts=x#m", "did you mean 'part'"),
        ("http://h/v1?part=mp3#m", "part is 'mp3'; it must be one of"),
        ("http://h/v1?rate=high#m", "rate='high' is not a valid value"),
        ("http://h/v1?concurrency=0#m", "concurrency is 0"),
        ("http://me:pw@h/v1#m", "set EARWISE_API_KEY instead"),
        ("http:///v1#m", "not an address"),
        ("http://h:x/v1#m", "not an address"),
        ("remote:x", "OPENAI_BASE_URL is ''"),
    ],
)
def test_invalid_addresses_are_reported(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_address(name, {})


# --- the command line, on real clips


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command; its exit code, standard output and standard error."""
    code = cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with run_chat_server(choose_by_loudness) as server:
        yield server


def test_ask(chat: ChatServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run_cli(capsys, "ask", CLIPS[0], "What is it?", "--model", f"{chat.url}#m")
    assert code == 0 and " at " in out and "25 tokens per second" in err
    (log,) = (tmp_path / "home" / "remote").glob("*.jsonl")
    assert len(log.read_text().splitlines()) == 4 and str(log) in err
    code, out, err = run_cli(
        capsys, "ask", CLIPS[0], "Which?", "--choices", "a dog,a car", "--json", "--model", f"{chat.url}#m"
    )
    answer = json.loads(out)
    assert code == 0 and answer["answer"] == "a dog" and answer["model"] == "m" and "likelihood" not in answer
    assert "does not return log-probabilities of given text" in err


def test_evaluate_and_difficulty(chat: ChatServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = f"{chat.url}?concurrency=4#m"
    evaluate = (
        "evaluate", "--data", "starter:val", "--limit", 6, "--model", model, "--out", tmp_path / "e", "--json"
    )  # fmt: skip
    code, out, _ = run_cli(capsys, *evaluate)
    metrics = json.loads(out)
    assert code == 0 and metrics["n"] == 6 and metrics["model"] == "m"
    assert set(metrics["blind"]) == {"silence", "shuffled"}
    num_requests = len(chat.bodies)
    assert num_requests == 3 + 3 * 6 and 1 < chat.max_in_flight <= 4
    code, _, _ = run_cli(capsys, *evaluate)
    assert code == 0 and len(chat.bodies) == num_requests + 3  # the probe, and nothing that was answered before

    code, out, _ = run_cli(
        capsys, "build", "difficulty", "starter:val", "--model", model, "--attempts", 2, "--out",
        tmp_path / "d.jsonl", "--json", "--shard", "1/40", "--log", tmp_path / "log",
    )  # fmt: skip
    assert code == 0 and json.loads(out)["model"] == "m"
    assert any(body.get("n") == 2 for body in chat.bodies)


def test_chat(chat: ChatServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: Sequence[str] = (f"/audio {CLIPS[0]}", "What is it?", "/quit")
    typed = iter(lines)
    monkeypatch.setattr("builtins.input", lambda *_: next(typed))
    code, out, _ = run_cli(capsys, "chat", "--model", f"{chat.url}#m")
    assert code == 0 and " at " in out


def test_a_text_only_server_ends_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with run_chat_server(text_only_reply) as server:
        code, _, err = run_cli(
            capsys, "evaluate", "--data", "starter:val", "--model", f"{server.url}#m", "--out", tmp_path / "e"
        )
    assert code == 2 and "not show that it uses audio" in err and not (tmp_path / "e").exists()
