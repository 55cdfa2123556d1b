"""An HTTP server in the test's own process that speaks OpenAI's chat completions, and fails as a test needs it."""

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
class ServerReply:
    """What the server does with one request."""

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    refusal: str | None = None
    usage: tuple[int, int] | None = (10, 5)
    """Prompt and completion tokens."""
    wait_s: float = 0.0
    """Seconds to wait before replying."""
    raw: bytes | None = None
    """Body in place of JSON."""
    hang_up: bool = False
    """True closes the connection without a reply."""
    choices: list[dict[str, Any]] | None = None
    """Choices in place of one with `text`."""
    more: dict[str, Any] = field(default_factory=dict)
    """Additional fields of the response."""


@dataclass
class ChatServer:
    """What the server received, for tests to inspect."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Request bodies in order of arrival."""
    times: list[float] = field(default_factory=list)
    """Time of each request, in seconds of a monotonic clock."""
    headers: list[dict[str, str]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "m", "owned_by": "test"}])
    """The list of models that it reports."""
    in_flight: int = 0
    """Number of requests that are being answered."""
    max_in_flight: int = 0
    """Largest number of requests that were being answered at once."""
    routes: dict[str, Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]] = field(default_factory=dict)
    """Path -> function from the body of a request to status and response; other paths are chat completions."""
    message_counts: Counter[str] = field(default_factory=Counter)
    """How often each first message was received (the whole conversation counts if it contains audio)."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def request_clips(body: dict[str, Any]) -> list[tuple[np.ndarray, int]]:
    """The decoded clips of a request with their sample rates, from either type of audio part."""
    clips = []
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "input_audio":
                assert part["input_audio"]["format"] == "wav"
                data = part["input_audio"]["data"]
            elif part["type"] == "audio_url":
                data = part["audio_url"]["url"].removeprefix("data:audio/wav;base64,")
            else:
                continue
            clips.append(soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32"))
    return clips


def request_texts(body: dict[str, Any]) -> list[str]:
    """The texts of a request, one string per message."""
    return [
        message["content"]
        if isinstance(message["content"], str)
        else " ".join(part["text"] for part in message["content"] if part["type"] == "text")
        for message in body["messages"]
    ]


def count_usage(body: dict[str, Any], reply: str = "", tokens_per_s: float = 25.0) -> tuple[int, int]:
    """Prompt and completion tokens as a model with audio input counts them: one per word, plus those of the audio."""
    words = sum(len(text.split()) for text in request_texts(body))
    audio_s = sum(len(waveform) / rate for waveform, rate in request_clips(body))
    return words + round(audio_s * tokens_per_s), len(reply.split())


Respond = Callable[[dict[str, Any], int], ServerReply]
"""From the body of a request, and how often its first message has been received (from 1), to the reply."""


def _handler(chat: ChatServer, respond: Respond) -> type[BaseHTTPRequestHandler]:
    """The request handler of a server that records requests in `chat` and answers them with `respond`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path in chat.routes:
                status, response = chat.routes[self.path](body)
                self._send(status, json.dumps(response).encode(), {})
                return
            with chat.lock:
                chat.bodies.append(body)
                chat.times.append(time.monotonic())
                chat.headers.append({name.lower(): value for name, value in self.headers.items()})
                first = body["messages"][0]["content"]
                first = first if isinstance(first, str) else json.dumps(body["messages"])
                chat.message_counts[first] += 1
                count = chat.message_counts[first]
                chat.in_flight += 1
                chat.max_in_flight = max(chat.max_in_flight, chat.in_flight)
            try:
                self._answer(respond(body, count))
            finally:
                with chat.lock:
                    chat.in_flight -= 1

        def _answer(self, reply: ServerReply) -> None:
            time.sleep(reply.wait_s)
            if reply.hang_up:
                self.close_connection = True
                return
            message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
            choice = {"message": message, "finish_reason": reply.finish}
            response: dict[str, Any] = {"choices": reply.choices or [choice]} | reply.more
            if reply.usage:
                response["usage"] = {"prompt_tokens": reply.usage[0], "completion_tokens": reply.usage[1]}
            self._send(reply.status, json.dumps(response).encode() if reply.raw is None else reply.raw, reply.headers)

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

    return Handler


class _QuietServer(ThreadingHTTPServer):
    """A server that accepts many connections at once and ignores clients that disappear."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


@contextmanager
def run_chat_server(respond: Respond) -> Iterator[ChatServer]:
    """Run a server until the block ends.

    Args:
        respond: Makes the reply to each chat completion request.
    """
    chat = ChatServer("")
    server = _QuietServer(("127.0.0.1", 0), _handler(chat, respond))
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def describe_clips(body: dict[str, Any], count: int) -> ServerReply:
    """Respond like a model with audio input: with the length and loudness of the clips."""
    descriptions = [
        f"{len(waveform) / rate:.2f}s at {np.abs(waveform).max():.2f}" for waveform, rate in request_clips(body)
    ]
    text = " ".join(descriptions) or "nothing"
    return ServerReply(text, usage=count_usage(body, text))


def text_only_reply(body: dict[str, Any], count: int) -> ServerReply:
    """Respond like a text model behind a lenient server, which ignores the audio."""
    words = sum(len(text.split()) for text in request_texts(body))
    return ServerReply("a dog", usage=(words, 2))


def choose_by_loudness(body: dict[str, Any], count: int) -> ServerReply:
    """Choose the first option if the clip is audible, else the last; without options, describe the clips."""
    question = request_texts(body)[-1]
    options = question.partition("options: [")[2].partition("]")[0].split(", ")
    clips = request_clips(body)
    is_audible = bool(clips) and float(np.abs(clips[0][0]).max()) > 0.01
    if "options:" in question:
        choice = options[0 if is_audible else -1].strip("'\"")
        text = f"<answer>{choice}</answer>"
    else:
        text = str(describe_clips(body, count).text)
    return ServerReply(text, usage=count_usage(body, text))
