"""Models of text embeddings: a server that speaks OpenAI's form, and weights in a folder."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, BertTokenizer

import benchmark_files
from earwise.cli import run as run_earwise
from earwise.engine.embeddings.embedders import FolderEmbedder, open_embedder, unit_length
from earwise.errors import ConfigError, EngineError

WORDS = ["dog", "cat", "rain", "wind", "piano", "a", "the"]


def word_counts(text: str) -> list[float]:
    """A vector that a reader can check: how often each of `WORDS` stands in a text, and a constant."""
    words = text.lower().replace(".", "").split()
    return [float(words.count(word)) for word in WORDS] + [0.01]


@contextmanager
def embedding_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append({"path": self.path, **body})
            data = [{"index": k, "embedding": word_counts(text)} for k, text in enumerate(body["input"])]
            reply = json.dumps({"data": data[::-1]}).encode()
            if body["model"] == "broken":
                reply = b'{"data": []}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies
    finally:
        server.shutdown()
        thread.join()


def test_a_server(tmp_path: Path) -> None:
    with embedding_server() as (url, bodies):
        embedder = open_embedder(f"{url}#counts")
        texts = [f"dog {number}" for number in range(70)] + ["rain"]
        vectors = embedder.embed(texts)
        assert [len(body["input"]) for body in bodies] == [64, 7] and bodies[0]["path"] == "/v1/embeddings"
        assert vectors == pytest.approx(unit_length(np.array([word_counts(text) for text in texts]))), "sorted by index"
        with pytest.raises(EngineError, match="0 vectors for 1 texts"):
            open_embedder(f"{url}#broken").embed(["dog"])
        data = benchmark_files.FILES["mmau-pro"](tmp_path / "data")
        arguments = [
            "evaluate",
            "--task",
            "mmau-pro",
            "--data",
            str(data),
            "--no-controls",
            "--out",
            str(tmp_path / "r"),
        ]
        assert run_earwise([*arguments, "--embeddings", url]) == 2
    assert run_earwise([*arguments, "--embeddings", str(tmp_path / "nowhere")]) == 2
    assert (
        run_earwise(["evaluate", "--data", "starter:val", "--embeddings", f"{url}#m", "--out", str(tmp_path / "s")])
        == 2
    )


def test_weights_in_a_folder(tmp_path: Path) -> None:
    """Mean of the last hidden states, without the padding: a text alone and beside a longer one is the same."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    folder = tmp_path / "weights"
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    embedder = open_embedder(str(folder))
    assert isinstance(embedder, FolderEmbedder) and embedder.name == "weights"
    both = embedder.embed(["dog", "the cat the cat the cat"])
    assert both[0] == pytest.approx(embedder.embed(["dog"])[0], abs=1e-6)
    with torch.no_grad():
        states = model(torch.tensor([[2, 5, 3]])).last_hidden_state[0]
    assert both[0] == pytest.approx(normalize(states.mean(0), dim=0).double().numpy(), abs=1e-6)
    assert len(embedder.embed(["dog " * 100])) == 1, "longer than the model reads"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="transformers cannot load it"):
        open_embedder(str(tmp_path / "empty"))
