"""The reward `judge`: a language model behind a server says how well a completion's reasoning holds together.

Audio-Thinker (arXiv 2508.08039) asks Qwen3-8B for consistency and quality of a thought; its prompt is not published,
ours is in the recipe (`judge.rubric`). The judge reads the question, the options, the thought and the answer given; it
does not hear, and is not told the right answer. A completion without a thought is not asked about and gets, as in the
paper, the mean of the batch's thoughts, so that this reward says nothing about whether to think. An answer that cannot
be read is an error, which the recipe's policy counts, never a score.

Ours where the paper is silent: a batch is all completions of one round of sampling, of all processes, errors left out;
0 where nobody thinks.
"""

import json
import random
import re
from collections.abc import Awaitable, Callable

from earwise.answers import parse
from earwise.config.stages import JudgeConfig
from earwise.engine.remote import openai_http
from earwise.engine.remote.address import parse_address
from earwise.engine.remote.openai_http import JsonObject, TemporaryFailure, RejectedRequest
from earwise.errors import EngineError, ScoringError
from earwise.train.rollout.reward_runner import Worth
from earwise.types import Example

MAX_TOKENS = 64


def reward(config: JudgeConfig, limit_s: float) -> Callable[[Example, str], Awaitable[float | Worth]]:
    """The reward function of a judge.

    Args:
        config: Server, rubric, scale.
        limit_s: Time for one answer.
    Raises:
        ConfigError: if the server's address is wrong.
    """
    address = parse_address(config.server)
    line = openai_http.RateLimitedSender[JsonObject](address.limits, lambda answer: sum(openai_http.token_usage(answer) or (0, 0)))

    async def judge(example: Example, completion: str) -> float | Worth:
        parsed = parse(completion, example.choices)
        if not parsed.reasoning:
            return Worth.MEAN
        body = request(config, address.model, example, parsed.reasoning, parsed.answer)
        async with openai_http.connection(address.url, address.api_key, limit_s) as client:
            reply = await line.send(
                lambda asked: openai_http.post(client, address.url, asked), body,
                openai_http.estimate_tokens(body["messages"]) + MAX_TOKENS, random.Random(example.id),
            )  # fmt: skip
        if isinstance(reply, TemporaryFailure | RejectedRequest):
            raise EngineError(f"the judge at {address.url}: {reply.reason}")
        return points(str(reply["choices"][0]["message"].get("content") or ""), config.points)

    return judge


def request(config: JudgeConfig, model: str, example: Example, reasoning: str, answer: str | None) -> JsonObject:
    """What the judge is asked: temperature 0, one number as JSON."""
    lines = [
        config.rubric,
        f'Answer with {{"score": N}}, N from 1 (worst) to {config.points} (best), and nothing else.',
        f"Question: {example.question}",
        *([f"Options: {', '.join(example.choices)}"] if example.choices else []),
        f"Argument: {reasoning}",
        f"Answer given: {answer or '(none)'}",
    ]
    message = {"role": "user", "content": "\n".join(lines)}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": MAX_TOKENS}


def points(text: str, scale: int) -> float:
    """The score of a judge's answer, 0 to 1.

    >>> points('{"score": 4}', 5)
    0.75

    Raises:
        ScoringError: if there is none on the scale.
    """
    found = re.search(r"\{[^{}]*\}", text)
    try:
        score = json.loads(found[0])["score"] if found else None
    except (ValueError, KeyError):
        score = None
    if not isinstance(score, int) or isinstance(score, bool) or not 1 <= score <= scale:
        raise ScoringError(f"the judge said {text[:60]!r}, no score from 1 to {scale}")
    return (score - 1) / (scale - 1)
