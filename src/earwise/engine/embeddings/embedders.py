"""Models of text embeddings.

A model is a server that speaks OpenAI's `/embeddings`, or a folder of weights that transformers can load. Vectors have
length 1, so that a product of two is their cosine. Folders of weights are read as sentence-transformers' plain models
are: the mean of the last hidden states over the tokens.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from earwise.engine.remote import openai_http
from earwise.engine.remote.address import ServerAddress, is_remote, parse_address
from earwise.engine.remote.client import run_coroutine
from earwise.engine.remote.openai_http import JsonObject, RateLimitedSender, RejectedRequest, TemporaryFailure
from earwise.errors import ConfigError, EngineError
from earwise.models.checkpoint import no_progress_bars

Floats = NDArray[np.float64]
BATCH = 64
"""Texts in one request, or in one pass through local weights."""
MAX_TOKENS = 4096


class Embedder(Protocol):
    """Anything that turns texts into vectors."""

    @property
    def name(self) -> str:
        """Name of the model, for the runs that it scored."""
        ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """Vectors of length 1, `(texts, size)`.

        Raises:
            EngineError: if the model does not answer.
        """
        ...


class ServerEmbedder:
    """A model behind a server that speaks OpenAI's embeddings.

    Args:
        address: Server, model and limits.
        notify: Called with a line about every long pause.
    """

    def __init__(self, address: ServerAddress, notify: Callable[[str], None] = lambda _: None) -> None:
        self.address = address
        self._sender = RateLimitedSender[JsonObject](address.limits, lambda reply: 0, notify=notify)

    @property
    def name(self) -> str:
        """The model's name on its server."""
        return self.address.model

    def embed(self, texts: Sequence[str]) -> Floats:
        """The vectors, `BATCH` texts a request; see `Embedder`."""
        vectors: list[list[float]] = run_coroutine(self._embed(texts))
        return unit_length(np.array(vectors, np.float64))

    async def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        address, vectors = self.address, []
        async with openai_http.connection(address.url, address.api_key, address.timeout_s) as client:

            async def post(body: JsonObject) -> JsonObject | TemporaryFailure | RejectedRequest:
                return await openai_http.post_json(client, f"{address.url.rstrip('/')}/embeddings", body)

            for start in range(0, len(texts), BATCH):
                batch = list(texts[start : start + BATCH])
                reply = await self._sender.send(
                    post, {"model": address.model, "input": batch}, 0, random.Random(start)
                )  # fmt: skip
                if isinstance(reply, TemporaryFailure | RejectedRequest):
                    reason = openai_http.without_key(reply.reason, address.api_key)
                    raise EngineError(f"{address.url}/embeddings: {reason}; answers are kept, the same command goes on")
                vectors += _vectors(reply, len(batch), address.url)
        return vectors


class FolderEmbedder:
    """Weights in a folder, as transformers saves them.

    Args:
        folder: The folder.
    Raises:
        ConfigError: if transformers cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.name = folder.name
        self._torch: Any = torch
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            with no_progress_bars():
                self._model: Any = AutoModel.from_pretrained(folder).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"--embeddings {folder}: transformers cannot load it ({reason})") from error

    def embed(self, texts: Sequence[str]) -> Floats:
        """The vectors, `BATCH` texts a pass; see `Embedder`."""
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = self._tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=self._longest(),
                return_tensors="pt",
            )  # fmt: skip
            with self._torch.no_grad():
                states = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
            parts.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1)).double().numpy())
        return unit_length(np.concatenate(parts))

    def _longest(self) -> int:
        """Tokens of a text that the model reads."""
        positions = getattr(self._model.config, "max_position_embeddings", None) or MAX_TOKENS
        return min(MAX_TOKENS, int(positions))


def open_embedder(name: str, notify: Callable[[str], None] = lambda _: None) -> Embedder:
    """The model of a name.

    Args:
        name: `URL#NAME` of a server, or a folder of weights.
        notify: Called with lines about progress.
    Raises:
        ConfigError: if the address names no model, or the folder cannot be loaded.
    """
    if not is_remote(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"--embeddings {name}: no such folder; name a server (URL#NAME) or a folder of weights")
        return FolderEmbedder(folder)
    address = parse_address(name)
    if not address.model:
        raise ConfigError(f"--embeddings {name}: name the model: {name}#NAME")
    return ServerEmbedder(address, notify)


def unit_length(vectors: Floats) -> Floats:
    """Vectors divided by their lengths; one of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float64)


def _vectors(reply: JsonObject, count: int, url: str) -> list[list[float]]:
    """The vectors of a response, in the order of the texts.

    Raises:
        EngineError: if there are not as many as texts.
    """
    try:
        rows = sorted(reply["data"], key=lambda row: int(row["index"]))
        vectors = [[float(value) for value in row["embedding"]] for row in rows]
    except (LookupError, TypeError, ValueError) as error:
        raise EngineError(
            f"{url}/embeddings: the response holds no embeddings ({error}); is this the model?"
        ) from error
    if len(vectors) != count:
        raise EngineError(f"{url}/embeddings: {len(vectors)} vectors for {count} texts; is this the model?")
    return vectors
