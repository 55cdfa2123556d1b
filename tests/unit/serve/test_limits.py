"""What a client may send: every bound over real HTTP, hostile requests and files, slow requests, other sites."""

import base64
import io
import json
import logging
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from builders import tone
from earwise import cli
from earwise.engine.local import LocalEngine
from earwise.serve import api, audio_inputs
from earwise.serve.http import access_middleware, connection
from earwise.serve.http.limits import AudioAccess, ServerLimits
from earwise_server import Client, part, running, tiny

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import serve_attack

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("EARWISE_API_KEY", raising=False)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(tiny())


@pytest.fixture(scope="module")
def client(engine: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with everything allowed, so that more can go wrong."""
    folder = tmp_path_factory.mktemp("open")
    (folder / "loop").symlink_to(folder / "loop")
    limits = ServerLimits(access=AudioAccess(("127.0.0.1",), folder), max_tokens=8, default_tokens=4)
    with running(engine, limits) as client:
        yield client


def message(response: httpx.Response) -> str:
    """The message of an error that the client caused."""
    assert 400 <= response.status_code < 500, response.text
    return str(response.json()["error"]["message"])


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0}


def url_part(url: str) -> list[dict[str, Any]]:
    return [{"type": "audio_url", "audio_url": {"url": url}}]


# --- hostile requests


def test_nothing_that_is_sent_is_a_fault_of_the_server(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The attack of benchmarks/serve_attack.py, smaller."""
    outcomes: Counter[str] = Counter()
    with client.http() as http, caplog.at_level(logging.ERROR):
        serve_attack.send_all(http, outcomes, serve_attack.mutated_requests(300, random.Random(1)))
        for data in serve_attack.hostile_files(60, random.Random(2))[3:]:  # the first ones take long to write
            serve_attack.send(http, outcomes, serve_attack.request_body(serve_attack.audio_part(data)))
    assert set(outcomes) <= {"200", "400", "404", "413", "415"} and outcomes["200"] > 20, outcomes
    assert not caplog.records


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": {}, "content": "x"}]},
        {"\ud800": 1},
        user("x") | {"x" * 10**6: 1},
        user("\ud800"),
        *(
            user(url_part(url))
            for url in ("data:,\ud800", "file://[", "file:///%00", "file:///" + "a" * 5000, "file:///loop",
                        "http://127.0.0.1:99999/", "http://127.0.0.1:1/", "http://[::1", "http://127.0.0.1:x/")
        ),
    ],
)  # fmt: skip
def test_odd_values_are_refused_in_one_short_line(client: Client, body: dict[str, Any]) -> None:
    with client.http() as http:
        response = http.post(CHAT, content=json.dumps(body), headers=JSON)
    assert len(message(response)) < 700 and "\n" not in message(response)


@pytest.mark.parametrize("depth", [40, 970, 50_000])
def test_deep_nesting_is_refused(client: Client, depth: int) -> None:
    text = json.dumps(user("x"))[:-1] + ', "tools": ' + "[" * depth + "]" * depth + "}"
    with client.http() as http:
        message(http.post(CHAT, content=text, headers=JSON))


def test_links_in_a_circle_are_no_file(client: Client, engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with running(engine, ServerLimits(access=AudioAccess((), tmp_path))) as client:
        assert "is not a file in the folder" in message(client.post(user(url_part(f"file://{tmp_path}/a"))))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (user("a" * 40_000), "40,000 bytes of text are more than the 32,768"),
        (user("é" * 20_000), "40,000 bytes of text"),
        ({"messages": [{"role": "user", "content": "x"}] * 300}, "300 messages, 256 are allowed"),
        (user([{"type": "text", "text": "x"}] * 300), "300 parts, 256 are allowed"),
        (user([part(tone(0.01))] * 40), "the 40 clips up to here are more than the 32"),
        (user("x") | {"stop": ["a"] * 17}, "17 strings, 16 are allowed"),
        (user("x") | {"stop": "a" * 300}, "a string of 300 characters"),
        (user("x") | {f"f{k}": 1 for k in range(70)}, "fields, 64 are allowed"),
        (user("x") | {"y" * 200: 1}, "a field name has 200 characters, 128 are allowed"),
        (user("x") | {"tools": serve_attack.nested(40)}, "nested more than 32 levels deep"),
        (user("x") | {"tools": [[]] * 60_000}, "values, 100,000 are allowed"),
        (user(url_part("data:,%00" + "%00" * 100_000)), "a large data URL without base64"),
    ],
)
def test_every_number_is_bounded(client: Client, body: dict[str, Any], expected: str) -> None:
    started = time.monotonic()
    assert expected in message(client.post(body))
    assert time.monotonic() - started < 5


def test_memory_of_a_request_is_bounded(engine: LocalEngine) -> None:
    with running(engine, ServerLimits(max_request_mb=0.05, max_tokens=10_000)) as client:
        assert client.post(user("x")).status_code == 200
        assert "take" in message(client.post(user("x") | {"n": 8, "max_tokens": 5000, "temperature": 1}))


def test_text_is_measured_before_it_is_tokenised(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*_: object, **__: object) -> None:
        raise AssertionError("tokenised")

    monkeypatch.setattr(api, "conversation_path", must_not_run)
    with running(engine) as client:
        assert client.post(user("a" * 50_000)).status_code == 400
        assert client.post(user("a")).status_code == 500, "otherwise it would be"


# --- slow, half and too many


def raw_request(client: Client, data: bytes, *, wait_s: float = 10.0) -> bytes:
    """What the server sends to a client that sends these bytes and then nothing."""
    host, port = client.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), wait_s) as connection_:
        connection_.sendall(data)
        received = b""
        while block := connection_.recv(65536):
            received += block
        return received


def head(client: Client, length: int) -> bytes:
    lines = (
        f"POST {CHAT} HTTP/1.1", f"Host: {client.root.removeprefix('http://')}", "Content-Type: application/json",
        f"Content-Length: {length}",
    )  # fmt: skip
    return "".join(f"{line}\r\n" for line in lines).encode()


def test_half_headers_and_half_bodies_are_given_up(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(access_middleware, "DRAIN_S", 0.2)
    with running(engine, ServerLimits(upload_timeout_s=0.5)) as client:
        assert raw_request(client, head(client, 100)).startswith(b"HTTP/1.1 408")
        assert raw_request(client, b"") == b"", "a connection without a request is closed"
        assert raw_request(client, head(client, 100) + b"X: " + b"a" * 100_000).startswith(b"HTTP/1.1 431")
        late = raw_request(client, head(client, 100) + b'\r\n{"messages"')
        assert late.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.5 s" in late
        assert client.post(user("x")).status_code == 200


def test_a_half_body_delays_nobody_and_bodies_are_counted(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_middleware, "MAX_UPLOADS", 2)
    monkeypatch.setattr(access_middleware, "DRAIN_S", 0.2)
    with running(engine) as client:
        client.post(user("x"))
        host, port = client.root.removeprefix("http://").split(":")
        half = [socket.create_connection((host, int(port)), 10) for _ in range(2)]
        for connection_ in half:
            connection_.sendall(head(client, 10**6) + b"\r\n" + b" " * 1000)
        time.sleep(0.2)
        started = time.monotonic()
        for _ in range(5):
            assert client.post(user("x")).status_code == 200
        assert time.monotonic() - started < 2, "a body that does not arrive delays no other request"
        with client.http() as http:
            refused = http.post(CHAT, content=b" " * 100_000, headers=JSON)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        for connection_ in half:
            connection_.close()
        deadline = time.monotonic() + 10
        while client.post(user([part(tone(2.0))])).status_code != 200:  # more than a small body
            assert time.monotonic() < deadline


def test_a_refused_body_is_read_so_that_the_response_arrives(engine: LocalEngine) -> None:
    with running(engine, ServerLimits(max_body_bytes=10_000)) as client, client.http() as http:
        for _ in range(5):
            assert http.post(CHAT, content=b" " * 15_000, headers=JSON | {"connection": "close"}).status_code == 413
            assert http.post("/v1/nothing", content=b" " * 9000, headers=JSON).status_code == 404


def test_an_upload_that_is_broken_off_is_one_line_of_the_log(
    engine: LocalEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with running(engine) as client, caplog.at_level(logging.INFO):
        host, port = client.root.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection_:
            connection_.sendall(head(client, 1000) + b"\r\n{")
            time.sleep(0.1)
        deadline = time.monotonic() + 10
        while not [record for record in caplog.records if "499" in record.getMessage()]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    lines = [record for record in caplog.records if record.name.startswith(("earwise", "uvicorn"))]
    assert len(lines) == 1 and lines[0].levelno == logging.INFO and lines[0].exc_info is None


# --- who may ask


def test_other_host_names_are_refused_without_a_key(engine: LocalEngine) -> None:
    def status(client: Client, host: str) -> int:
        return httpx.get(f"{client.root}/health", headers={"host": host}, trust_env=False).status_code

    with running(engine) as client:
        for host in ("127.0.0.1:8000", "localhost:1", "[::1]:8000", "10.0.0.7", socket.gethostname(), "a.localhost"):
            assert status(client, host) == 200, host
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"):
            assert status(client, host) == 403, host
    with running(engine, ServerLimits(trusted_hosts=("Ears.example",))) as client:
        assert (status(client, "ears.example"), status(client, "evil.example")) == (200, 403)
    with running(engine, ServerLimits(api_key="secret")) as client:
        assert status(client, "ears.example") == 200, "without the key a page of another site gets nothing"


def test_pages_of_other_sites_are_refused(engine: LocalEngine) -> None:
    with running(engine) as client, client.http() as http:
        form = {"file": ("a.wav", serve_attack.audio_file())}
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://["):
            for path, body in ((CHAT, {"json": user("x")}), ("/v1/audio/transcriptions", {"files": form})):
                assert http.post(path, headers={"origin": origin}, **body).status_code == 403
        assert http.post(CHAT, headers={"origin": client.root}, json=user("x")).status_code == 200


@pytest.mark.parametrize("variable", [False, True])
def test_an_empty_key_is_refused(
    variable: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("EARWISE_API_KEY", "")
    assert cli.run(["serve", *([] if variable else ["--api-key", " "])]) == 2
    assert "is empty, which would let everyone in" in capsys.readouterr().err


def test_a_key_may_be_any_text(engine: LocalEngine) -> None:
    with running(engine, ServerLimits(api_key="schlüssel-鍵")) as client:
        for key, status in (("schlüssel-鍵", 200), ("-", 401), ("schlüssel", 401)):
            headers = {b"authorization": b"Bearer " + key.encode()}
            assert httpx.get(f"{client.url}/models", headers=headers, trust_env=False).status_code == status


# --- what is new for clients


def test_every_response_has_an_id_and_a_line_in_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with client.http() as http, caplog.at_level(logging.INFO, "earwise.access"):
        own = http.get("/health", headers={"x-request-id": "mine-1"})
        other = http.get("/v1/a%0Ab", headers={"x-request-id": "not mine"})
        assert http.head("/health").status_code == 200
    assert own.headers["x-request-id"] == "mine-1" and len(other.headers["x-request-id"]) == 32
    lines = [record.getMessage() for record in caplog.records if record.name == "earwise.access"]
    assert lines[0].startswith("127.0.0.1 GET /health 200 0 bytes ") and lines[0].endswith(" mine-1")
    assert "GET /v1/a?b 404" in lines[1] and "HEAD /health 200" in lines[2]


def test_base64_in_every_common_form(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_inputs, "BASE64_PIECE", 400)
    data = serve_attack.audio_file(seconds=0.25)
    standard = base64.b64encode(data).decode()
    wrapped = base64.encodebytes(data).decode()
    forms = (standard, standard.rstrip("="), base64.urlsafe_b64encode(data).decode().rstrip("="), wrapped)
    texts = {
        client.post(user([{"type": "input_audio", "input_audio": {"data": form}}])).json()["choices"][0]["message"][
            "content"
        ]
        for form in forms
    }
    assert len(texts) == 1
    for wrong in ("A", standard[:-3] + "é==", "%%%%", standard[:400] + "====" + standard[400:]):
        assert "base64" in message(client.post(user([{"type": "input_audio", "input_audio": {"data": wrong}}])))


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_common_containers(client: Client, container: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5), 16000, format=container)
    part_ = {"type": "input_audio", "input_audio": {"data": base64.b64encode(buffer.getvalue()).decode()}}
    assert client.post(user([part_])).status_code == 200


def test_an_assistant_turn_without_content(client: Client) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": "b"},
    ]
    assert client.post({"messages": turns, "max_tokens": 1}).status_code == 200
    assert "content" in message(client.post({"messages": [{"role": "user", "content": None}]}))


def test_a_tiny_temperature_is_greedy(client: Client) -> None:
    bodies = [user("abc") | {"temperature": temperature, "max_tokens": 8} for temperature in (0, 1e-39, 1e-5)]
    assert len({client.post(body).json()["choices"][0]["message"]["content"] for body in bodies}) == 1


def test_the_openapi_document_names_every_route_and_field(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/health", "/openapi.json", "/metrics", "/v1/models", "/v1/models/{name}", CHAT, "/v1/load_lora_adapter",
        "/v1/audio/transcriptions",
    }  # fmt: skip
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "n", "stop", "max_completion_tokens", "return_token_ids"} <= set(fields)
    assert fields["messages"]["maxItems"] == 256 and fields["max_tokens"]["maximum"] == 8
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    assert {text.partition('"')[0] for text in references} <= set(document["components"]["schemas"])


def test_health_is_not_delayed_by_large_requests(client: Client) -> None:
    """Bounds on work, not on a busy machine: the longest of many delays is far below what one body used to cost."""
    large = serve_attack.large_requests(8)
    names = ("words", "percent data url", "empty lists", "base64 of zeros", "field name")
    outcomes: Counter[str] = Counter()
    with client.http() as http, serve_attack.HealthProbe(client.root) as probe, ThreadPoolExecutor(2) as pool:
        for result in [pool.submit(serve_attack.send, http, outcomes, large[name]()) for name in names]:
            result.result()
    assert outcomes == {"400": len(names)} and max(probe.delays_s, default=0) < 2.0


def test_a_damaged_file_makes_nothing_print_a_traceback(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes at which PyAV finds no codec, and at which libsndfile seeks to before the beginning."""
    wav = serve_attack.riff(16000, 1, 0, bytes(4000))
    files = [wav, *serve_attack.hostile_files(300, random.Random(2))[200:]]
    outcomes: Counter[str] = Counter()
    with client.http() as http:
        bodies = [serve_attack.request_body(serve_attack.audio_part(data)) for data in files]
        serve_attack.send_all(http, outcomes, bodies)
    assert set(outcomes) <= {"200", "400"} and "Traceback" not in capfd.readouterr().err
