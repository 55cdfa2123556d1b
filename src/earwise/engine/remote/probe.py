"""Open an engine on a server, after checking which model it serves and that it really uses the audio.

A server that loses the audio on the way (a text model behind a lenient chat template, an unknown type of message part,
a proxy) would still answer every question, and all scores would be meaningless. Therefore the same question is asked
without audio, with one second and with three seconds of audio: the number of prompt tokens or the answers must show
that the audio arrives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from earwise.audio import num_samples
from earwise.engine.base import Prompt
from earwise.engine.remote import openai_http
from earwise.engine.remote.address import ServerAddress, parse_address
from earwise.engine.remote.client import Exchange, RemoteEngine, run_coroutine
from earwise.errors import ConfigError, EngineError
from earwise.types import Audio, Text, Turn, Waveform

SHORT_S, LONG_S = 1.0, 3.0
QUESTION = "Describe this sound in a few words."
PROBE_TOKENS = 16
MAX_TOKENS_PER_S = 2000
"""More prompt tokens per second of audio mean that base64 data is read as text (about ten thousand per second). The
finest audio codecs have some hundred."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server reports about itself.

    Attributes:
        model: Name of the model.
        kind: Make of the server ("vllm", "earwise", ...), "" if it does not say.
        revision: Version of the weights, for result rows.
    """

    model: str
    kind: str
    revision: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The responses to the three questions of the probe.

    Attributes:
        tokens_without_audio: Prompt tokens without audio; None if the server does not count.
        tokens_short: Prompt tokens with the short clip.
        tokens_long: Prompt tokens with the long clip.
        answers: The answers to both clips.
    """

    tokens_without_audio: int | None
    tokens_short: int | None
    tokens_long: int | None
    answers: tuple[str, str]

    @property
    def tokens_per_s(self) -> float | None:
        """Prompt tokens per second of audio by the server's count; None if clips of any length take as many."""
        if self.tokens_short is None or self.tokens_long is None or self.tokens_long <= self.tokens_short:
            return None
        return (self.tokens_long - self.tokens_short) / (LONG_S - SHORT_S)


def open_remote_engine(
    name: str, *, log: Path | None = None, notify: Callable[[str], None] = lambda _: None, probe: bool = True
) -> RemoteEngine:
    """Open the engine of a server address.

    Args:
        name: Server address; see `engine.remote.address`.
        log: JSONL file that every exchange is appended to; None keeps no log.
        notify: Called with a line about the server.
        probe: False skips the check that the server uses the audio.
    Raises:
        ConfigError: if the address is invalid, or the server has several models and none is named.
        EngineError: if the server does not answer, rejects audio, or does not show that it uses it.
    """
    address = parse_address(name)
    server = run_coroutine(query_server(address))
    engine = RemoteEngine(
        replace(address, model=server.model), kind=server.kind, revision=server.revision, log=log, notify=notify
    )
    if probe:
        result = probe_audio(engine)
        rate = f"{result.tokens_per_s:g} tokens per second" if result.tokens_per_s else "as many tokens for any length"
        notify(f"{engine.name} at {address.url} ({server.kind or 'unknown make'}) uses the audio, {rate} of sound")
        engine.tokens_per_s = result.tokens_per_s
    return engine


def probe_audio(engine: RemoteEngine) -> ProbeResult:
    """Ask the probe's three questions.

    Raises:
        EngineError: if audio is rejected, or the responses do not show that it is used.
    """
    rate = engine.sample_rate
    prompts = [_prompt(), _prompt(chirp(SHORT_S, rate)), _prompt(noise_bursts(LONG_S, rate))]
    results = engine.generate_raw(prompts, PROBE_TOKENS)
    for number, result in enumerate(results):
        if isinstance(result, EngineError):
            other_part = "audio_url" if engine.address.part == "input_audio" else "input_audio"
            remedy = f"; is it a model with audio input? It may need ?part={other_part} in --model" if number else ""
            raise EngineError(f"{result}{remedy}")
    exchanges: list[Exchange] = [result for result in results if isinstance(result, Exchange)]
    counts = [exchange.usage[0] if exchange.usage else None for exchange in exchanges]
    answers = [str(exchange.choices[0]["message"].get("content") or "") for exchange in exchanges[1:]]
    probe_result = ProbeResult(counts[0], counts[1], counts[2], (answers[0], answers[1]))
    if (reason := unused_audio_reason(probe_result)) is not None:
        raise EngineError(f"{engine.name} at {engine.address.url} does not show that it uses audio: {reason}")
    return probe_result


def unused_audio_reason(result: ProbeResult) -> str | None:
    """Why a server does not show that it uses the audio; None if it does."""
    answers_differ = result.answers[0] != result.answers[1]
    if result.tokens_without_audio is None or result.tokens_short is None or result.tokens_long is None:
        if answers_differ:
            return None
        return "it counts no tokens and gives the same answer to two very different sounds; serve it with usage counts"
    if min(result.tokens_short, result.tokens_long) <= result.tokens_without_audio:
        return (
            f"a prompt has {result.tokens_without_audio} tokens without sound and {result.tokens_short} and "
            f"{result.tokens_long} with it, so the sound is dropped; serve a model with audio input, with its own chat "
            "template"
        )
    if (result.tokens_per_s or 0) > MAX_TOKENS_PER_S:
        return (
            f"{result.tokens_per_s:.0f} tokens per second of sound mean that it is read as text; "
            "serve a model with audio input"
        )
    if result.tokens_per_s is None and not answers_differ:
        return (
            f"{SHORT_S:g} and {LONG_S:g} s of sound both take {result.tokens_short} tokens, and the answers to two "
            "very different sounds are the same; try it by hand"
        )
    return None


def chirp(seconds: float, rate: int) -> Waveform:
    """A tone that rises from 200 Hz to 2 kHz, at a sample rate in Hz."""
    time = np.arange(num_samples(seconds, rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * time + 900 * time**2 / seconds))).astype(np.float32)


def noise_bursts(seconds: float, rate: int) -> Waveform:
    """Noise that switches on and off four times a second, at a sample rate in Hz."""
    samples = num_samples(seconds, rate)
    is_on = (8 * np.arange(samples) // rate) % 2 == 0
    return (0.3 * is_on * np.random.default_rng(0).standard_normal(samples)).clip(-1, 1).astype(np.float32)


def _prompt(*waveforms: Waveform) -> Prompt:
    """The probe's question about some clips."""
    parts = tuple(Audio("probe") for _ in waveforms)
    return Prompt((Turn("user", (*parts, Text(QUESTION))),), waveforms, "probe")


async def query_server(address: ServerAddress) -> ServerInfo:
    """Read the server's list of models. Without such a list, or with an empty one (transformers' server lists only
    what is in its cache), the model of the address is taken as given.

    Raises:
        ConfigError: if the address names no model and the server has not exactly one, or not the named one.
        EngineError: if the server does not answer or refuses.
    """
    import httpx

    try:
        async with openai_http.connection(address.url, address.api_key, openai_http.CONNECT_TIMEOUT_S) as client:
            response = await client.get(f"{address.url}/models")
    except httpx.TransportError as error:
        raise EngineError(
            f"{address.url}: nothing answers ({error or type(error).__name__}); "
            "start the server, or correct the address"
        ) from error
    if response.status_code in (404, 405) and address.model:
        return ServerInfo(address.model, "", "remote")
    if (failure := openai_http.failure_of(address.url, response)) is not None:
        raise EngineError(f"{address.url}/models: {failure.reason}; wait until the server is ready")
    try:
        cards: dict[str, Any] = {str(card["id"]): card for card in response.json()["data"]}
    except (ValueError, LookupError, TypeError) as error:
        raise EngineError(f"{address.url}/models is not a list of models; give the address up to /v1") from error
    if not address.model and len(cards) != 1:
        raise ConfigError(f"{address.url} has {', '.join(cards) or 'no models'}; name one: {address.url}#NAME")
    model = address.model or next(iter(cards))
    if not cards:
        return ServerInfo(model, "", "remote")
    if model not in cards:
        raise ConfigError(f"{address.url} has no model {model!r}, it has {', '.join(sorted(cards)[:8])}")
    kind = str(cards[model].get("owned_by") or "")
    return ServerInfo(model, kind, f"{kind or 'remote'}:{cards[model].get('root') or model}")
