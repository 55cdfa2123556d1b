"""Prompts as token ids, for a server that takes them together with sound: vLLM's `/inference/v1/generate`.

A chat request is written out by the server's own chat template, which obeys control tokens that a user typed and may
differ from the policy's. A request of token ids is exactly what the policy is trained on. vLLM offers the address if it
was started with `--enable-scale-out`.

Source: vLLM 0.32, `entrypoints/scale_out/token_in_token_out`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from earwise.engine.base import Prompt
from earwise.engine.remote import chat_format, openai_http
from earwise.engine.remote.address import ServerAddress
from earwise.engine.remote.openai_http import JsonObject, RejectedRequest, TemporaryFailure

if TYPE_CHECKING:
    import httpx

PATH = "/inference/v1/generate"
"""Address beside `/v1`."""
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "n")
"""Fields of a chat request that have the same names in vLLM's sampling parameters."""


@dataclass(frozen=True, slots=True)
class TokenPrompts:
    """The tokenizer of the policy, for a server that takes and returns token ids.

    Attributes:
        encode: Function from a prompt to its token ids, with one audio placeholder for each clip.
        decode: Function from the ids of a completion to its text.
    """

    encode: Callable[[Prompt], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def address_of(url: str) -> str:
    """Where a server takes token ids.

    >>> address_of("http://127.0.0.1:8000/v1")
    'http://127.0.0.1:8000/inference/v1/generate'
    """
    return url.removesuffix("/v1") + PATH


async def are_accepted(address: ServerAddress) -> bool:
    """Whether a server takes prompts as token ids: an empty request is then refused as such, not as unknown."""
    import httpx

    try:
        async with openai_http.connection(address.url, address.api_key, openai_http.CONNECT_TIMEOUT_S) as client:
            response = await client.post(address_of(address.url), json={})
    except httpx.TransportError:
        return False
    return response.status_code in (400, 422)


def request_body(prompt: Prompt, token_ids: Sequence[int], sample_rate: int, chat_body: JsonObject) -> JsonObject:
    """The body of a request for token ids.

    Args:
        prompt: The prompt, for its clips.
        token_ids: Its token ids, with one placeholder for each clip.
        sample_rate: Sample rate of the clips, in Hz.
        chat_body: Body of a chat request with the same settings.
    """
    urls = [chat_format.audio_data_url(waveform, sample_rate) for waveform in prompt.waveforms]
    sampling_params = {name: chat_body[name] for name in SAMPLING_FIELDS if name in chat_body}
    return {
        "model": chat_body["model"],
        "token_ids": list(token_ids),
        "content_parts": [{"type": "audio_url", "url": url} for url in urls],
        "sampling_params": sampling_params | {"logprobs": 0},
        "return_token_ids": True,
    }


async def post(
    client: "httpx.AsyncClient", url: str, body: JsonObject, token_prompts: TokenPrompts
) -> JsonObject | TemporaryFailure | RejectedRequest:
    """Send one request of token ids, once.

    Args:
        client: Connection pool.
        url: Base URL of the server, up to `/v1`.
        body: Body of the request; see `request_body`.
        token_prompts: Decodes the completions.
    Returns:
        The response in the form of chat completions, or why there is none.
    Raises:
        EngineError: if the server would refuse every request (address, model, key, quota).
    """
    reply = await openai_http.post_json(client, address_of(url), body)
    if isinstance(reply, TemporaryFailure | RejectedRequest):
        return reply
    try:
        choices = [
            {
                "message": {"content": token_prompts.decode(choice["token_ids"])},
                "token_ids": choice["token_ids"],
                "logprobs": choice["logprobs"],
                "finish_reason": choice["finish_reason"],
            }
            for choice in reply["choices"]
        ]
    except (LookupError, TypeError) as error:
        return RejectedRequest(f"a reply without token ids and log-probabilities ({error!r})")
    return {"choices": choices, "usage": reply.get("usage"), "prompt_token_ids": reply.get("prompt_token_ids")}
