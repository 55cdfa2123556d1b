"""An engine on somebody else's server: vLLM, SGLang, or any API that speaks OpenAI's chat completions and takes sound.

prompts -> messages with a WAV a clip -> `wire.py` (many at a time, at an allowed pace, patient) -> completions, and a
row of the log for every exchange. Opened by `connect`, which asks the server who it is and does not hand out an engine
that was not shown to hear (`hearing.py`). Deviations from the local engine: (1) clips go as 16-bit WAV, (2) draws
depend on `(seed, key)` as far as the server honours `seed`, (3) log-probabilities, token ids and `score` exist where
the server gives them. Forms of the wire: OpenAI's reference of chat completions; vLLM's and SGLang's own fields.
"""

import asyncio
import base64
import hashlib
import json
import random
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from earwise.audio import encode_wav, waveform_sha256
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.remote import openai_http
from earwise.engine.remote.address import ServerAddress
from earwise.engine.remote.openai_http import JsonObject, RateLimitedSender, RejectedRequest, TemporaryFailure
from earwise.errors import AudioError, EngineError, ServerUnavailable
from earwise.files import append_jsonl
from earwise.types import Audio, Completion, Text, Turn, Waveform

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
TOKENS_PER_S = 25  # of sound, for the pace, before the server has counted any
SEEDS = 2**30  # the wire's integers are signed, and servers count on from the seed
# What a server that says who it is takes beside OpenAI's fields. Without them it would fill in the checkpoint's own
# generation settings, which `Decoding` promises never to use.
EXPLICIT: dict[str, JsonObject] = {
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "earwise": {"return_token_ids": True},
}
SCORES = ("vllm",)  # servers that tell the log-probabilities of a given text: `prompt_logprobs`


@dataclass(frozen=True, slots=True)
class Exchange:
    """What came back for one prompt: the server's choices, and its counts where it gave them."""

    choices: tuple[JsonObject, ...]
    usage: tuple[int, int] | None


class RemoteEngine:
    """An `Engine` on a server; `connect` makes one that is known to hear.

    Args:
        address: Where, which model, how sound is sent, how hard it may be worked.
        kind: What the server is ("vllm", "sglang", or anything else); decides which fields beyond OpenAI's are sent.
        revision: Of the weights, for result rows.
        log: JSONL file that every prompt and answer is appended to; None keeps none.
    """

    def __init__(
        self, address: ServerAddress, *, kind: str = "", revision: str = "remote", log: Path | None = None
    ) -> None:
        self.address, self.kind, self.log = address, kind, log
        self.name, self.revision = address.model, revision
        self.sample_rate, self.max_audio_s = address.sample_rate, address.max_audio_s
        self.tokens_per_s: float | None = None
        """Prompt tokens of a second of sound, as the probe found; every later answer is held to half of it."""
        self._line = RateLimitedSender[JsonObject](
            address.limits, lambda answer: sum(openai_http.token_usage(answer) or (0, 0))
        )
        self._down = False
        self._spared: dict[str, list[Completion]] = {}
        self._suffix: int | None = None

    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams, n: int = 1
    ) -> list[list[Completion]]:
        """Answer every prompt `n` times; see `Engine`. Greedy answers are asked for once.

        Raises:
            EngineError: if a prompt is rejected, or the server stays away (`ServerUnavailable`); what the others were answered
                is kept, and given out without asking when they come again.
            AudioError: if a clip is longer than the server hears whole.
        """
        for prompt in prompts:
            self._check(prompt)
        wanted = n if sampling_params.temperature > 0 else 1

        async def answer(client: "httpx.AsyncClient", prompt: Prompt) -> list[Completion] | EngineError:
            got = await self._exchange(client, prompt, self._settings(sampling_params, prompt.key), wanted)
            return got if isinstance(got, EngineError) else [_completion(choice) for choice in got.choices]

        keys = [_fingerprint([_shown(prompt), prompt.key, sampling_params.as_dict(), wanted]) for prompt in prompts]
        found = {key: self._spared.pop(key) for key in set(keys) if key in self._spared}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in found}
        results = dict(zip(missing, self._all(answer, list(missing.values())), strict=True))
        failed = [result for result in results.values() if isinstance(result, EngineError)]
        failed.sort(
            key=lambda error: isinstance(error, ServerUnavailable)
        )  # a refusal first: waiting would not mend it
        found |= {key: result for key, result in results.items() if not isinstance(result, EngineError)}
        if failed:
            self._spared |= found
            share = f" ({len(failed)} of {len(prompts)} prompts)" if failed[1:] else ""
            raise type(failed[0])(f"{failed[0]}{share}")
        return [found[key] * (n // wanted) for key in keys]

    def stream(self, prompt: Prompt, sampling_params: SamplingParams) -> Iterator[str]:
        """Answer one prompt; all of it in one piece."""
        yield self.generate([prompt], sampling_params)[0][0].text

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-likelihood of each continuation, end mark included; see `Engine`. One request each, and one a prompt.

        Where the answer begins is where the prompt alone ends; where its end mark stands is counted back from the end,
        by as many tokens as the server's template puts behind an answer (asked once).

        Raises:
            EngineError: if this server tells no log-probabilities of a given text.
        """
        if self.kind not in SCORES:
            raise EngineError(
                f"{self.name}: {self.address.url} tells no log-probabilities of a given text (prompt_logprobs); "
                "serve the model with vLLM, or load it here"
            )
        for prompt in prompts:
            self._check(prompt)
        self._suffix = self._suffix or _whole(self._all(self._count_suffix, [None]))[0]

        async def count(client: "httpx.AsyncClient", prompt: Prompt) -> int | EngineError:
            return await self._prompt_tokens(client, prompt, {})

        starts = _whole(self._all(count, prompts))
        asked = [
            (prompt, start, text)
            for prompt, start, texts in zip(prompts, starts, continuations, strict=True)
            for text in texts
        ]
        told = iter(_whole(self._all(self._likelihood, asked)))
        return [[next(told) for _ in texts] for texts in continuations]

    def generate_raw(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Exchange | EngineError]:
        """Ask greedily and give what the server said, with its counts; for the probe of its hearing."""

        async def ask(client: "httpx.AsyncClient", prompt: Prompt) -> Exchange | EngineError:
            return await self._exchange(
                client, prompt, self._settings(SamplingParams(max_new_tokens=max_tokens), ""), 1
            )

        return self._all(ask, prompts)

    def _all(self, work: Any, items: Sequence[Any]) -> list[Any]:
        """`work(client, item)` for all items, so many at a time as the limits allow."""

        async def run() -> list[Any]:
            gate = asyncio.Semaphore(self.address.limits.concurrency)

            async def one(item: Any) -> Any:
                async with gate:
                    return await work(client, item)

            address = self.address
            async with openai_http.connection(address.url, address.api_key, address.timeout_s) as client:
                return await asyncio.gather(*(one(item) for item in items))

        return run_coroutine(run())

    async def _exchange(
        self, client: "httpx.AsyncClient", prompt: Prompt, settings: JsonObject, wanted: int
    ) -> Exchange | EngineError:
        """Ask for `wanted` choices; a server that gives fewer than asked for is asked again for the rest."""
        messages = self._messages(prompt)
        seconds = sum(len(wave) for wave in prompt.waveforms) / self.sample_rate
        words = [part.text for turn in prompt.turns for part in turn.parts if isinstance(part, Text)]
        heard = seconds * (self.tokens_per_s or TOKENS_PER_S)
        expected = round(openai_http.estimate_tokens(words) + heard + settings["max_tokens"] * wanted)
        choices: list[JsonObject] = []
        usage: tuple[int, int] | None = None
        while len(choices) < wanted:
            missing, started = wanted - len(choices), time.monotonic()
            body: JsonObject = {"model": self.address.model, "messages": messages} | settings
            if "seed" in body:
                body["seed"] += len(choices)
            if missing > 1:
                body["n"] = missing
            reply = await self._send(client, body, expected, prompt.key)
            self._record(prompt, body, reply, time.monotonic() - started)
            if isinstance(reply, TemporaryFailure):
                return ServerUnavailable(f"{self.name}: {self.address.url} does not answer: {reply.reason}")
            if isinstance(reply, RejectedRequest):
                return EngineError(f"{self.name}: {self.address.url} rejects this request: {reply.reason}")
            usage = openai_http.token_usage(reply) or usage
            if usage and self.tokens_per_s and usage[0] < heard / 2:
                return EngineError(
                    f"{self.name}: a prompt with {seconds:.1f} s of sound took {usage[0]} tokens, "
                    f"about {heard:.0f} were due: it was dropped or cut on the server; give it fewer or shorter clips"
                )
            choices += reply["choices"][:missing]
        return Exchange(tuple(choices), usage)

    async def _send(
        self, client: "httpx.AsyncClient", body: JsonObject, expected: int, key: str
    ) -> JsonObject | TemporaryFailure | RejectedRequest:
        """One request with patience; a server that used it all up gets one try a request until it answers again."""

        async def ask(what: JsonObject) -> JsonObject | TemporaryFailure | RejectedRequest:
            return await openai_http.post(client, self.address.url, what)

        reply = await self._line.send(ask, body, expected, random.Random(key), 1 if self._down else None)
        self._down = isinstance(reply, TemporaryFailure)
        return reply

    async def _count_suffix(self, client: "httpx.AsyncClient", _: None) -> int | EngineError:
        """Tokens that the server's template puts behind an assistant's words, end mark included."""
        prompt = Prompt((Turn("user", (Text("a"),)), Turn("assistant", (Text("b"),))), ())
        closed = await self._prompt_tokens(client, prompt, {"add_generation_prompt": False})
        opened = await self._prompt_tokens(
            client, prompt, {"add_generation_prompt": False, "continue_final_message": True}
        )
        if isinstance(closed, EngineError) or isinstance(opened, EngineError):
            return closed if isinstance(closed, EngineError) else opened
        if closed <= opened:
            return EngineError(f"{self.name}: its chat template ends no answer; its likelihoods have no end mark")
        return closed - opened

    async def _prompt_tokens(self, client: "httpx.AsyncClient", prompt: Prompt, more: JsonObject) -> int | EngineError:
        got = await self._exchange(client, prompt, self._settings(SamplingParams(max_new_tokens=1), "") | more, 1)
        if isinstance(got, EngineError):
            return got
        return got.usage[0] if got.usage else EngineError(f"{self.name}: the server counts no prompt tokens")

    async def _likelihood(self, client: "httpx.AsyncClient", asked: tuple[Prompt, int, str]) -> float | EngineError:
        prompt, start, text = asked
        said = Prompt((*prompt.turns, Turn("assistant", (Text(text),))), prompt.waveforms, prompt.key)
        more = {"prompt_logprobs": 0, "add_generation_prompt": False}
        settings = self._settings(SamplingParams(max_new_tokens=1), "") | more
        body = {"model": self.address.model, "messages": self._messages(said)} | settings
        reply = await self._send(client, body, start + openai_http.estimate_tokens(text), prompt.key)
        self._record(said, body, reply, 0.0)
        if isinstance(reply, TemporaryFailure | RejectedRequest):
            return EngineError(f"{self.name}: {self.address.url} gives no likelihood: {reply.reason}")
        told = reply.get("prompt_logprobs") or []
        stop = len(told) - (self._suffix or 0) + 1
        if not 0 < start < stop:
            return EngineError(f"{self.name}: {self.address.url} gives no prompt_logprobs; is it vLLM's server?")
        ids = reply.get("prompt_token_ids") or [next(iter(one or {}), None) for one in told]
        return sum(float(told[at][str(ids[at])]["logprob"]) for at in range(start, stop))

    def _settings(self, sampling_params: SamplingParams, key: str) -> JsonObject:
        """All that decides an answer but the words."""
        settings: JsonObject = {
            "max_tokens": sampling_params.max_new_tokens, "temperature": sampling_params.temperature, "top_p": sampling_params.top_p,
        }  # fmt: skip
        settings |= EXPLICIT.get(self.kind, {})
        if sampling_params.top_k:
            settings["top_k"] = sampling_params.top_k
        if sampling_params.temperature > 0:
            digest = hashlib.blake2b(f"{sampling_params.seed}\0{key}".encode(), digest_size=8).digest()
            settings["seed"] = int.from_bytes(digest, "little") % SEEDS
        if self.address.logprobs if self.address.logprobs is not None else self.kind in EXPLICIT:
            settings["logprobs"] = True
        return settings

    def _messages(self, prompt: Prompt) -> list[JsonObject]:
        """The conversation as the wire wants it."""
        waveforms = iter(prompt.waveforms)
        messages = []
        for turn in prompt.turns:
            parts = [
                {"type": "text", "text": part.text} if isinstance(part, Text) else self._sound(next(waveforms))
                for part in turn.parts
            ]
            plain = len(parts) == 1 and "text" in parts[0]
            messages.append({"role": turn.role, "content": parts[0]["text"] if plain else parts})
        return messages

    def _sound(self, wave: Waveform) -> JsonObject:
        data = base64.b64encode(encode_wav(wave, self.sample_rate)).decode()
        if self.address.part == "audio_url":
            return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    def _check(self, prompt: Prompt) -> None:
        parts = sum(isinstance(part, Audio) for turn in prompt.turns for part in turn.parts)
        if parts != len(prompt.waveforms):
            raise EngineError(f"{self.name}: {parts} audio parts but {len(prompt.waveforms)} sounds; give one for each")
        for wave in prompt.waveforms:
            if len(wave) > self.max_audio_s * self.sample_rate:
                raise AudioError(
                    f"clip of {len(wave) / self.sample_rate:.1f} s is longer than the {self.max_audio_s:g} s that "
                    f"{self.name} is said to hear; cut it, or say ?max_s= in --model if the server hears more"
                )

    def _record(
        self, prompt: Prompt, body: JsonObject, reply: JsonObject | TemporaryFailure | RejectedRequest, seconds: float
    ) -> None:
        """One row of the log; sounds stand in it by their hash, keys never."""
        if self.log is None:
            return
        row: JsonObject = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "model": self.name, "key": prompt.key,
            "prompt": _shown(prompt), "settings": {name: value for name, value in body.items() if name != "messages"},
            "seconds": round(seconds, 3),
        }  # fmt: skip
        if isinstance(reply, TemporaryFailure | RejectedRequest):
            row |= {"answers": [], "error": reply.reason}
        else:
            answers = [
                {"text": _text(choice), "finish_reason": choice.get("finish_reason")} for choice in reply["choices"]
            ]
            row |= {
                "answers": answers,
                "usage": openai_http.token_usage(reply),
                "fingerprint": reply.get("system_fingerprint"),
            }
        append_jsonl(self.log, row)


def _shown(prompt: Prompt) -> list[Any]:
    """The conversation as plain values, sounds by their hash."""
    hashes = map(waveform_sha256, prompt.waveforms)
    return [
        [turn.role, *(part.text if isinstance(part, Text) else {"sha256": next(hashes)} for part in turn.parts)]
        for turn in prompt.turns
    ]


def _fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _text(choice: Mapping[str, Any]) -> str:
    """What was said; reasoning that a server took out of the text is put back before it, in its tags."""
    message = choice["message"]
    text = message.get("content") or message.get("refusal") or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    return f"<think>{thought}</think>\n{text}" if isinstance(thought, str) and thought else text


def _completion(choice: Mapping[str, Any]) -> Completion:
    content = (choice.get("logprobs") or {}).get("content") or ()
    return Completion(
        _text(choice),
        tuple(choice.get("token_ids") or ()),
        tuple(float(token["logprob"]) for token in content),
        "length" if choice.get("finish_reason") == "length" else "stop",
    )


def _whole(results: list[Any]) -> list[Any]:
    """The results, if none of them is an error."""
    for result in results:
        if isinstance(result, EngineError):
            raise result
    return results


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also inside a loop that runs already (a notebook), then in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
