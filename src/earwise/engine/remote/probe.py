"""Open an engine on a server: ask who it is, and hand it out only if it was shown to hear.

name -> `address.py` -> the server's list of models -> `remote.py` -> a probe: the same question about no sound, one
second and three seconds of sound. A server that drops the sound on the way (a text model behind a lenient template,
an unknown kind of part, a proxy) would answer all three, and every score after that would be a fiction.
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
TEXT_TOKENS_PER_S = 2000  # the finest codecs give some hundred tokens a second; base64 read as text gives ten thousand


@dataclass(frozen=True, slots=True)
class Server:
    """Who a server says it is: which model it has, its make ("vllm", "sglang", ...), and the weights it names."""

    model: str
    kind: str
    revision: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What a server made of the probe: prompt tokens without sound and with the short and the long one (None: not
    counted), and what it said to both sounds."""

    without: int | None
    short: int | None
    long: int | None
    said: tuple[str, str]

    @property
    def tokens_per_s(self) -> float | None:
        """Of sound, by the server's own count; None where it is the same for any length."""
        if self.short is None or self.long is None or self.long <= self.short:
            return None
        return (self.long - self.short) / (LONG_S - SHORT_S)


def open_remote_engine(
    name: str, *, log: Path | None = None, notify: Callable[[str], None] = lambda _: None, probe: bool = True
) -> RemoteEngine:
    """The engine of a name.

    Args:
        name: See `address.py`.
        log: JSONL file for every prompt and answer.
        notify: Progress.
        probe: False trusts the server to hear.
    Raises:
        ConfigError: if the name is wrong, or the server has several models and none is named.
        EngineError: if nothing answers there, sound is refused, or it was not shown to be heard.
    """
    address = parse_address(name)
    server = run_coroutine(_ask_who(address))
    engine = RemoteEngine(replace(address, model=server.model), kind=server.kind, revision=server.revision, log=log)
    if probe:
        heard = probe_audio(engine)
        rate = f"{heard.tokens_per_s:g} tokens a second" if heard.tokens_per_s else "as many tokens at any length"
        notify(f"{engine.name} at {address.url} ({server.kind or 'unknown make'}) hears: {rate} of sound")
        engine.tokens_per_s = heard.tokens_per_s
    return engine


def probe_audio(engine: RemoteEngine) -> Heard:
    """Ask the probe's three questions.

    Raises:
        EngineError: if sound is refused, or was not shown to be heard.
    """
    rate = engine.sample_rate
    asked = [_question(), _question(chirp(SHORT_S, rate)), _question(bursts(LONG_S, rate))]
    results = engine.generate_raw(asked, PROBE_TOKENS)
    for number, result in enumerate(results):
        if isinstance(result, EngineError):
            other = "audio_url" if engine.address.part == "input_audio" else "input_audio"
            remedy = f"; is it a model that hears? It may want ?part={other} in --model" if number else ""
            raise EngineError(f"{result}{remedy}")
    exchanges: list[Exchange] = [result for result in results if isinstance(result, Exchange)]
    counts = [exchange.usage[0] if exchange.usage else None for exchange in exchanges]
    words = [str(exchange.choices[0]["message"].get("content") or "") for exchange in exchanges[1:]]
    heard = Heard(counts[0], counts[1], counts[2], (words[0], words[1]))
    if (reason := deafness(heard)) is not None:
        raise EngineError(f"{engine.name} at {engine.address.url} is not shown to hear: {reason}")
    return heard


def deafness(heard: Heard) -> str | None:
    """Why a server is not shown to hear; None if it is."""
    differs = heard.said[0] != heard.said[1]
    if heard.without is None or heard.short is None or heard.long is None:
        if differs:
            return None
        return "it counts no tokens and says the same of two very different sounds; serve it with usage counts"
    if heard.short <= heard.without or heard.long <= heard.without:
        return (
            f"a prompt has {heard.without} tokens without sound and {heard.short} and {heard.long} with it: "
            "the sound is dropped; serve a model that hears, with its own chat template"
        )
    if (heard.tokens_per_s or 0) > TEXT_TOKENS_PER_S:
        return f"{heard.tokens_per_s:.0f} tokens a second of sound: it is read as text; serve a model that hears"
    if heard.tokens_per_s is None and not differs:
        return (
            f"{SHORT_S:g} and {LONG_S:g} s of sound both take {heard.short} tokens, and it says the same of two very "
            "different sounds; ask it by hand"
        )
    return None


def chirp(seconds: float, rate: int) -> Waveform:
    """A tone that rises from 200 Hz to 2 kHz."""
    time = np.arange(num_samples(seconds, rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * time + 900 * time**2 / seconds))).astype(np.float32)


def bursts(seconds: float, rate: int) -> Waveform:
    """Noise that is on and off four times a second."""
    samples = num_samples(seconds, rate)
    on = (8 * np.arange(samples) // rate) % 2 == 0
    return (0.3 * on * np.random.default_rng(0).standard_normal(samples)).clip(-1, 1).astype(np.float32)


def _question(*waveforms: Waveform) -> Prompt:
    parts = tuple(Audio("probe") for _ in waveforms)
    return Prompt((Turn("user", (*parts, Text(QUESTION))),), waveforms, "probe")


async def _ask_who(address: ServerAddress) -> Server:
    """What stands in the server's list of models; a server without a list is taken at its user's word."""
    import httpx

    try:
        async with openai_http.connection(address.url, address.api_key, openai_http.CONNECT_S) as client:
            response = await client.get(f"{address.url}/models")
    except httpx.TransportError as error:
        raise EngineError(
            f"{address.url}: nothing answers ({error or type(error).__name__}); "
            "start the server, or correct the address"
        ) from error
    if response.status_code in (404, 405) and address.model:
        return Server(address.model, "", "remote")
    if (refused := openai_http.refusal(address.url, response)) is not None:
        raise EngineError(f"{address.url}/models: {refused.reason}; wait until the server is ready")
    try:
        cards: dict[str, Any] = {str(card["id"]): card for card in response.json()["data"]}
    except (ValueError, LookupError, TypeError) as error:
        raise EngineError(f"{address.url}/models is no list of models; give the address up to /v1") from error
    if not address.model and len(cards) != 1:
        raise ConfigError(f"{address.url} has {', '.join(cards) or 'no models'}; name one: {address.url}#NAME")
    model = address.model or next(iter(cards))
    if model not in cards:
        raise ConfigError(f"{address.url} has no model {model!r}, it has {', '.join(sorted(cards)[:8])}")
    kind = str(cards[model].get("owned_by") or "")
    return Server(model, kind, f"{kind or 'remote'}:{cards[model].get('root') or model}")
