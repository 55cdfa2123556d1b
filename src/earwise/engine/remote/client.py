"""The remote engine: vLLM, transformers' server, or any server that speaks OpenAI's chat completions and accepts audio.

Every prompt becomes the messages of one request (`engine.remote.chat_format`); requests are sent concurrently under
rate limits with retries (`engine.remote.openai_http`), and every exchange is appended to a log. Engines are opened by
`engine.remote.probe.open_remote_engine`, which checks that the server really uses the audio.

Deviations from the local engine: (1) clips are sent as 16-bit WAV; (2) draws depend on `(seed, key)` only as far as the
server honours `seed`; (3) log-probabilities, token ids and `score` are available only where the server provides them.

Source: OpenAI's reference of the chat completions API, and the additional fields that vLLM documents.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.remote import chat_format, exchange_log, openai_http, token_prompts
from earwise.engine.remote.address import ServerAddress
from earwise.engine.remote.openai_http import JsonObject, RateLimitedSender, RejectedRequest, TemporaryFailure
from earwise.engine.remote.token_prompts import TokenPrompts
from earwise.errors import AudioError, EngineError, ServerUnavailable
from earwise.types import Audio, Completion, Text, Turn

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
AUDIO_TOKENS_PER_S = 25
"""Assumed prompt tokens per second of audio, for the token limit, until the probe has measured them."""
NUM_SEEDS = 2**30
"""Seeds are reduced modulo this number: the protocol's integers are signed, and servers count up from the seed."""
EXPLICIT_FIELDS: dict[str, JsonObject] = {
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True},
    "earwise": {"return_token_ids": True},
}
"""Fields beyond OpenAI's for servers of a known kind. Without them a server would fill in the checkpoint's own
generation settings, which `SamplingParams` promises never to use."""
SCORING_KINDS = ("vllm",)
"""Kinds of servers that return the log-probabilities of a given text (`prompt_logprobs`)."""
MAX_TOP_LOGPROBS = 20
"""Largest number of likeliest tokens that the protocol lets a client ask for."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The response to one prompt.

    Attributes:
        choices: The choices of the response, as the server sent them.
        usage: Number of prompt and completion tokens; None if the server did not count them.
        prompt_ids: Token ids of the prompt on the server; None if it did not return them.
    """

    choices: tuple[JsonObject, ...]
    usage: tuple[int, int] | None
    prompt_ids: tuple[int, ...] | None = None


class RemoteEngine:
    """An `Engine` on a server. `open_remote_engine` makes one whose audio input is verified.

    Args:
        address: Server, model, form of the audio parts, and limits.
        kind: What the server calls itself ("vllm", "earwise", ...); decides which fields beyond OpenAI's are sent.
        revision: Version of the weights, stored in result rows.
        log: JSONL file that every exchange is appended to, readable by its owner only; None keeps no log.
        notify: Called with a line about every long pause that the server asks for.
    """

    def __init__(
        self, address: ServerAddress, *, kind: str = "", revision: str = "remote", log: Path | None = None,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.address, self.kind, self.log = address, kind, log
        self.name, self.revision = address.model, revision
        self.sample_rate, self.max_audio_s = address.sample_rate, address.max_audio_s
        self.tokens_per_s: float | None = None
        """Prompt tokens per second of audio, as the probe measured them. A response whose prompt has fewer than half
        of the expected tokens is an error: the server dropped or cut the audio."""
        self.prompt_check: Callable[[Prompt, Sequence[int]], str | None] | None = None
        """Called by `generate` with each prompt and its token ids on the server, if the server returns them (vLLM).
        What it returns becomes the error of that prompt."""
        self.token_prompts: TokenPrompts | None = None
        """Encodes the prompts of `generate` here and sends token ids; None sends messages, which the server encodes."""
        self._sender = RateLimitedSender[JsonObject](
            address.limits, lambda answer: sum(openai_http.token_usage(answer) or (0, 0)), notify=notify
        )
        self._unavailable = False
        """True after a request that used up its attempts; until a request succeeds, each gets only one."""
        self._unclaimed: dict[str, list[Completion]] = {}
        """Completions of a batch in which other prompts failed, by fingerprint of the prompt."""
        self._suffix_tokens: int | None = None

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        """Sample `n` completions of every prompt; see `Engine`. Greedy completions are requested once and repeated.

        Raises:
            EngineError: if a prompt is rejected, or the server does not answer (`ServerUnavailable`). Completions of
                the other prompts are kept, and returned without a request when these prompts are sent again.
            AudioError: if a clip is longer than the address allows.
        """
        for prompt in prompts:
            self._check(prompt)
        if sampling_params.pause is not None:
            raise EngineError(f"{self.name}: servers make no pauses; leave them out, or give a model of this machine")
        num_choices = n if sampling_params.temperature > 0 else 1

        async def complete(client: "httpx.AsyncClient", prompt: Prompt) -> list[Completion] | EngineError:
            fields = self._sampling_fields(sampling_params, prompt.key)
            exchange = await self._exchange(client, prompt, fields, num_choices)
            if isinstance(exchange, EngineError):
                return exchange
            if self.prompt_check is not None and exchange.prompt_ids is not None:
                difference = self.prompt_check(prompt, exchange.prompt_ids)
                if difference is not None:
                    return EngineError(f"{self.name}: {difference} (prompt {prompt.key!r})")
            return [chat_format.completion(choice) for choice in exchange.choices]

        keys = [
            chat_format.fingerprint([chat_format.loggable(prompt), prompt.key, sampling_params.as_dict(), num_choices])
            for prompt in prompts
        ]
        completions = {key: self._unclaimed.pop(key) for key in set(keys) if key in self._unclaimed}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in completions}
        results = dict(zip(missing, self._run_all(complete, list(missing.values())), strict=True))
        errors = [result for result in results.values() if isinstance(result, EngineError)]
        errors.sort(key=lambda error: isinstance(error, ServerUnavailable))  # rejections first: retrying cannot help
        completions |= {key: result for key, result in results.items() if not isinstance(result, EngineError)}
        if errors:
            self._unclaimed |= completions
            share = f" ({len(errors)} of {len(prompts)} prompts)" if errors[1:] else ""
            raise type(errors[0])(f"{errors[0]}{share}")
        return [completions[key] * (n // num_choices) for key in keys]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams) -> Iterator[str]:
        """Sample one completion; all of its text comes in one piece."""
        yield self.generate([prompt], sampling_params)[0][0].text

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-likelihood of each continuation and its end token; see `Engine`.

        Every prompt takes one request, which counts its tokens, and every continuation another. The continuation
        starts where the prompt ends; its end token is found by counting back the tokens that the server's chat template
        appends to an assistant turn (measured once).

        Raises:
            EngineError: if the server does not return log-probabilities of given text.
        """
        if self.kind not in SCORING_KINDS:
            raise EngineError(
                f"{self.name}: {self.address.url} does not return log-probabilities of given text (prompt_logprobs); "
                "serve the model with vLLM, or load it in this process"
            )
        for prompt in prompts:
            self._check(prompt)
        self._suffix_tokens = self._suffix_tokens or _raise_first_error(self._run_all(self._count_suffix, [None]))[0]

        async def count(client: "httpx.AsyncClient", prompt: Prompt) -> int | EngineError:
            return await self._count_prompt_tokens(client, prompt, {})

        starts = _raise_first_error(self._run_all(count, prompts))
        requests = [
            (prompt, start, text)
            for prompt, start, texts in zip(prompts, starts, continuations, strict=True)
            for text in texts
        ]
        scores = iter(_raise_first_error(self._run_all(self._likelihood, requests)))
        return [[next(scores) for _ in texts] for texts in continuations]

    def generate_raw(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Exchange | EngineError]:
        """Greedy completions as the server sent them, with its token counts; for the audio probe.

        Args:
            prompts: Prompts to complete.
            max_tokens: Longest completion.
        """

        async def complete(client: "httpx.AsyncClient", prompt: Prompt) -> Exchange | EngineError:
            fields = self._sampling_fields(SamplingParams(max_new_tokens=max_tokens), "")
            return await self._exchange(client, prompt, fields, 1)

        return self._run_all(complete, prompts)

    def _run_all(self, work: Any, items: Sequence[Any]) -> list[Any]:
        """Results of `await work(client, item)` for all items, as many at a time as the limits allow."""

        async def run() -> list[Any]:
            semaphore = asyncio.Semaphore(self.address.limits.concurrency)

            async def run_one(item: Any) -> Any:
                async with semaphore:
                    return await work(client, item)

            address = self.address
            async with openai_http.connection(address.url, address.api_key, address.timeout_s) as client:
                return await asyncio.gather(*(run_one(item) for item in items))

        return run_coroutine(run())

    async def _exchange(
        self, client: "httpx.AsyncClient", prompt: Prompt, fields: JsonObject, num_choices: int
    ) -> Exchange | EngineError:
        """Request choices for a prompt; a server that returns fewer than requested is asked again for the rest.

        Args:
            client: Connection pool.
            prompt: Prompt to complete.
            fields: Fields of the request besides model and messages.
            num_choices: Number of choices to collect.
        """
        encoded = self.token_prompts.encode(prompt) if self.token_prompts is not None else None
        messages = self._messages(prompt) if encoded is None else []
        audio_s = sum(len(waveform) for waveform in prompt.waveforms) / self.sample_rate
        texts = [part.text for turn in prompt.turns for part in turn.parts if isinstance(part, Text)]
        audio_tokens = audio_s * (self.tokens_per_s or AUDIO_TOKENS_PER_S)
        expected = round(openai_http.estimate_tokens(texts) + audio_tokens + fields["max_tokens"] * num_choices)
        choices: list[JsonObject] = []
        usage: tuple[int, int] | None = None
        prompt_ids: tuple[int, ...] | None = None
        while len(choices) < num_choices:
            missing, started = num_choices - len(choices), time.monotonic()
            body: JsonObject = {"model": self.address.model, "messages": messages} | fields
            if "seed" in body:
                body["seed"] += len(choices)
            if missing > 1:
                body["n"] = missing
            if encoded is not None:
                body = token_prompts.request_body(prompt, encoded, self.sample_rate, body)
            reply = await self._send(client, body, expected, prompt.key)
            self._append_to_log(prompt, body, reply, time.monotonic() - started)
            if isinstance(reply, TemporaryFailure) and reply.is_server_error:
                return EngineError(f"{self.name}: {self.address.url} fails with this request: {reply.reason}")
            if isinstance(reply, TemporaryFailure):
                return ServerUnavailable(f"{self.name}: {self.address.url} does not answer: {reply.reason}")
            if isinstance(reply, RejectedRequest):
                return EngineError(f"{self.name}: {self.address.url} rejects this request: {reply.reason}")
            usage = openai_http.token_usage(reply) or usage
            if usage and self.tokens_per_s and usage[0] < audio_tokens / 2:
                return EngineError(
                    f"{self.name}: a prompt with {audio_s:.1f} s of sound took {usage[0]} tokens, about "
                    f"{audio_tokens:.0f} were due: the server dropped or cut the audio; send fewer or shorter clips"
                )
            choices += reply["choices"][:missing]
            prompt_ids = tuple(reply.get("prompt_token_ids") or ()) or prompt_ids
        return Exchange(tuple(choices), usage, prompt_ids)

    def _messages(self, prompt: Prompt) -> list[JsonObject]:
        """The messages of a request for a prompt."""
        keep = self.kind in chat_format.TREATS_TEXT_AS_TEXT
        return chat_format.messages(prompt, self.sample_rate, self.address.part, keep_control_tokens=keep)

    async def _send(
        self, client: "httpx.AsyncClient", body: JsonObject, expected_tokens: int, key: str
    ) -> JsonObject | TemporaryFailure | RejectedRequest:
        """Send one request with retries, or with a single attempt while the server is known to be unavailable."""

        async def attempt(body: JsonObject) -> JsonObject | TemporaryFailure | RejectedRequest:
            if self.token_prompts is not None and "token_ids" in body:
                return await token_prompts.post(client, self.address.url, body, self.token_prompts)
            return await openai_http.post(client, self.address.url, body)

        tries = 1 if self._unavailable else None
        reply = await self._sender.send(attempt, body, expected_tokens, random.Random(key), tries)
        self._unavailable = isinstance(reply, TemporaryFailure) and not reply.is_server_error
        return reply

    async def _count_suffix(self, client: "httpx.AsyncClient", _: None) -> int | EngineError:
        """Number of tokens that the server's chat template appends to an assistant turn, the end token included."""
        prompt = Prompt((Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),))), ())
        closed = await self._count_prompt_tokens(client, prompt, {"add_generation_prompt": False})
        open_turn = {"add_generation_prompt": False, "continue_final_message": True}
        opened = await self._count_prompt_tokens(client, prompt, open_turn)
        if isinstance(closed, EngineError) or isinstance(opened, EngineError):
            return closed if isinstance(closed, EngineError) else opened
        if closed <= opened:
            return EngineError(
                f"{self.name}: its chat template appends no end token to an answer, so answers cannot be scored"
            )
        return closed - opened

    async def _count_prompt_tokens(
        self, client: "httpx.AsyncClient", prompt: Prompt, extra_fields: JsonObject
    ) -> int | EngineError:
        """Number of tokens of a prompt, as the server counts them."""
        fields = self._sampling_fields(SamplingParams(max_new_tokens=1), "") | extra_fields
        exchange = await self._exchange(client, prompt, fields, 1)
        if isinstance(exchange, EngineError):
            return exchange
        if exchange.usage is None:
            return EngineError(f"{self.name}: {self.address.url} does not count prompt tokens, which scoring needs")
        return exchange.usage[0]

    async def _likelihood(self, client: "httpx.AsyncClient", request: tuple[Prompt, int, str]) -> float | EngineError:
        """Log-likelihood of one continuation.

        Args:
            client: Connection pool.
            request: The prompt, its number of tokens, and the continuation.
        """
        prompt, start, text = request
        answered = Prompt((*prompt.turns, Turn("assistant", (Text(text),))), prompt.waveforms, prompt.key)
        fields = self._sampling_fields(SamplingParams(max_new_tokens=1), "")
        fields |= {"prompt_logprobs": 0, "add_generation_prompt": False}
        body = {"model": self.address.model, "messages": self._messages(answered)} | fields
        reply = await self._send(client, body, start + openai_http.estimate_tokens(text), prompt.key)
        self._append_to_log(answered, body, reply, 0.0)
        if isinstance(reply, TemporaryFailure | RejectedRequest):
            return EngineError(f"{self.name}: {self.address.url} returns no likelihood: {reply.reason}")
        logprobs = reply.get("prompt_logprobs") or []
        stop = len(logprobs) - (self._suffix_tokens or 0) + 1
        if not 0 < start < stop:
            return EngineError(f"{self.name}: {self.address.url} returns no prompt_logprobs; is it vLLM's server?")
        ids = reply.get("prompt_token_ids") or [next(iter(entry or {}), None) for entry in logprobs]
        return sum(float(logprobs[index][str(ids[index])]["logprob"]) for index in range(start, stop))

    def _sampling_fields(self, sampling_params: SamplingParams, key: str) -> JsonObject:
        """The fields of a request that decide how it is sampled.

        Args:
            sampling_params: Length limit, temperature, truncation and seed.
            key: Key of the prompt, which the seed sent to the server also depends on.
        """
        fields: JsonObject = {
            "max_tokens": sampling_params.max_new_tokens,
            "temperature": sampling_params.temperature,
            "top_p": sampling_params.top_p,
        }
        fields |= EXPLICIT_FIELDS.get(self.kind, {})
        if sampling_params.top_k:
            fields["top_k"] = sampling_params.top_k
        if sampling_params.temperature > 0:
            digest = hashlib.blake2b(f"{sampling_params.seed}\0{key}".encode(), digest_size=8).digest()
            fields["seed"] = int.from_bytes(digest, "little") % NUM_SEEDS
        if self.address.logprobs if self.address.logprobs is not None else self.kind in EXPLICIT_FIELDS:
            fields["logprobs"] = True
            if sampling_params.confidence_top_k and self.kind != "earwise":  # whose server returns none
                fields["top_logprobs"] = min(MAX_TOP_LOGPROBS, sampling_params.confidence_top_k)
        return fields

    def _check(self, prompt: Prompt) -> None:
        """Reject prompts with too long clips or a wrong number of them."""
        parts = sum(isinstance(part, Audio) for turn in prompt.turns for part in turn.parts)
        if parts != len(prompt.waveforms):
            raise EngineError(
                f"{self.name}: {parts} audio parts but {len(prompt.waveforms)} sounds; give one sound for each part"
            )
        for waveform in prompt.waveforms:
            if len(waveform) > self.max_audio_s * self.sample_rate:
                raise AudioError(
                    f"clip of {len(waveform) / self.sample_rate:.1f} s is longer than the {self.max_audio_s:g} s that "
                    f"are sent to {self.name}; cut it, or set ?max_s= in --model if the server accepts longer clips"
                )

    def _append_to_log(
        self, prompt: Prompt, body: JsonObject, reply: JsonObject | TemporaryFailure | RejectedRequest, seconds: float
    ) -> None:
        """Append an exchange to the log, if there is one."""
        if self.log is not None:
            exchange_log.append(self.log, self.address, prompt, body, reply, seconds)


def _raise_first_error(results: list[Any]) -> list[Any]:
    """Return the results, or raise the first error among them."""
    for result in results:
        if isinstance(result, EngineError):
            raise result
    return results


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its result; inside a running event loop (a notebook) it runs in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
