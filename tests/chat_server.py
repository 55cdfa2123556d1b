"""A real HTTP server in the test's own process that speaks OpenAI's chat completions and can be told to misbehave."""

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import soundfile


@dataclass
class Say:
    """What the server does with one request."""

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    refusal: str | None = None
    usage: tuple[int, int] | None = (10, 5)
    wait_s: float = 0.0
    raw: bytes | None = None
    hang_up: bool = False
    choices: list[dict[str, Any]] | None = None
    """In place of one choice with `text`."""
    more: dict[str, Any] = field(default_factory=dict)
    """Other fields of the answer."""


@dataclass
class Chat:
    """The server as tests see it: `bodies` in order of arrival, `most` requests were under way at once."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "m", "owned_by": "test"}])
    under_way: int = 0
    most: int = 0
    routes: dict[str, Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]] = field(default_factory=dict)
    """Path -> what a request there is answered: status and body; all other paths are chat completions."""
    asked: Counter[str] = field(default_factory=Counter)
    """How often each text of a first message came (of all messages where there are sounds)."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def sounds(body: dict[str, Any]) -> list[tuple[np.ndarray, int]]:
    """The clips of a request, decoded, with their rates; in either form."""
    found = []
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "input_audio":
                assert part["input_audio"]["format"] == "wav"
                data = part["input_audio"]["data"]
            elif part["type"] == "audio_url":
                data = part["audio_url"]["url"].removeprefix("data:audio/wav;base64,")
            else:
                continue
            found.append(soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32"))
    return found


def texts(body: dict[str, Any]) -> list[str]:
    """The words of a request, one string a message."""
    return [
        message["content"]
        if isinstance(message["content"], str)
        else " ".join(part["text"] for part in message["content"] if part["type"] == "text")
        for message in body["messages"]
    ]


def counted(body: dict[str, Any], said: str = "", tokens_per_s: float = 25.0) -> tuple[int, int]:
    """Tokens as a model that hears counts them: a word is one, a second of sound `tokens_per_s`."""
    words = sum(len(text.split()) for text in texts(body))
    return words + round(sum(len(wave) / rate for wave, rate in sounds(body)) * tokens_per_s), len(said.split())


@contextmanager
def serving(say: Callable[[dict[str, Any], int], Say]) -> Iterator[Chat]:
    """Answer with `say(body, how many times this first message has come, from 1)`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path in chat.routes:
                status, told = chat.routes[self.path](body)
                self._send(status, json.dumps(told).encode(), {})
                return
            with chat.lock:
                chat.bodies.append(body)
                chat.times.append(time.monotonic())
                chat.headers.append({name.lower(): value for name, value in self.headers.items()})
                first = body["messages"][0]["content"]
                first = first if isinstance(first, str) else json.dumps(body["messages"])
                chat.asked[first] += 1
                count = chat.asked[first]
                chat.under_way += 1
                chat.most = max(chat.most, chat.under_way)
            try:
                self._answer(say(body, count))
            finally:
                with chat.lock:
                    chat.under_way -= 1

        def _answer(self, said: Say) -> None:
            time.sleep(said.wait_s)
            if said.hang_up:
                self.close_connection = True
                return
            message = {"role": "assistant", "content": said.text, "refusal": said.refusal}
            one = {"message": message, "finish_reason": said.finish}
            answer: dict[str, Any] = {"choices": said.choices or [one]} | said.more
            if said.usage:
                answer["usage"] = {"prompt_tokens": said.usage[0], "completion_tokens": said.usage[1]}
            self._send(said.status, json.dumps(answer).encode() if said.raw is None else said.raw, said.headers)

        def do_GET(self) -> None:
            self._send(200, json.dumps({"object": "list", "data": chat.models}).encode(), {})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"content-length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    chat = Chat(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def listener(body: dict[str, Any], count: int) -> Say:
    """A model that hears: it says how loud and how long its sounds are."""
    heard = [f"{len(wave) / rate:.2f}s at {np.abs(wave).max():.2f}" for wave, rate in sounds(body)]
    said = " ".join(heard) or "nothing"
    return Say(said, usage=counted(body, said))


def deaf(body: dict[str, Any], count: int) -> Say:
    """A text model behind a lenient server."""
    words = sum(len(text.split()) for text in texts(body))
    return Say("a dog", usage=(words, 2))


def chooser(body: dict[str, Any], count: int) -> Say:
    """Picks an option by what it hears, so silence and sound differ."""
    words = texts(body)[-1]
    options = words.partition("options: [")[2].partition("]")[0].split(", ")
    heard = sounds(body)
    loud = bool(heard) and float(np.abs(heard[0][0]).max()) > 0.01
    said = options[0 if loud else -1].strip("'\"") if "options:" in words else listener(body, count).text
    text = f"<answer>{said}</answer>" if "options:" in words else str(said)
    return Say(text, usage=counted(body, text))
