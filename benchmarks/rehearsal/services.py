"""Stands in for the language models that the pages start as servers: SARI's teacher and Audio-Thinker's judge.

One server on the loopback address that speaks OpenAI's chat completions. What it writes fits the request's schema, and
its questions have the options that the random models of the rehearsal choose from.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rehearsal.random_text_model import OPTIONS

PUBLISHED_ADDRESS = "http://127.0.0.1:8000"
"""Address of the servers in the pages and recipes."""


def reply_to(body: Mapping[str, Any]) -> str:
    """The text of the reply to one request.

    Args:
        body: A chat completion request: by its schema for a question or a chain, without one for a score.
    """
    task = str(body["messages"][-1]["content"])
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
    if "questions" in schema:
        number = len(task) % len(OPTIONS)
        question = {"question": "Which of these can be heard?", "choices": [*OPTIONS], "answer": OPTIONS[number]}
        return json.dumps({"questions": [question]})
    if "Right answer: " in task:
        answer = task.partition("Right answer: ")[2].partition("\n")[0]
        ending = f"So the sound is that of {answer}."
        if "thought" in schema:
            return json.dumps({"thought": f"I listen closely. {ending}"})
        parts = {"planning": "I listen for it.", "caption": "Something sounds.", "reasoning": "It fits best."}
        return json.dumps(parts | {"summary": ending})
    return json.dumps({"score": 1 + len(task) % 11})


class _Handler(BaseHTTPRequestHandler):
    """Answers every chat completion."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer one request."""
        text = reply_to(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._send({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": len(text.split())}})

    def do_GET(self) -> None:
        """The list of models."""
        self._send({"object": "list", "data": [{"id": "stand-in", "owned_by": "rehearsal"}]})

    def _send(self, value: Mapping[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def language_model_server() -> Iterator[str]:
    """Run the server until the block ends.

    Yields:
        Its address, in place of `PUBLISHED_ADDRESS`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
