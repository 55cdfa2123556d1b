"""The reward `judge`: a language model behind a server scores how well the reasoning of a completion holds together.

Audio-Thinker (arXiv:2508.08039) asks Qwen3-8B for the consistency and quality of the reasoning; its prompt is not
published, ours is in the recipe (`judge.rubric`). The judge reads the question, the options, the reasoning and the
answer of the completion; it does not get the audio or the right answer. A completion without reasoning is not sent to
the judge and gets, as in the paper, the mean score of the batch, so that this reward neither favours nor discourages
reasoning. A reply that cannot be read is an error, treated as the recipe says (`on_reward_error`), never a score.

Ours where the paper is silent: a batch is all completions of one round of sampling, of all processes, without errors;
the mean is 0 where no completion has reasoning.
"""

import json
import math
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

from earwise.answers import parse, split_reasoning
from earwise.config.servers import JudgeConfig
from earwise.engine.remote import openai_http
from earwise.engine.remote.address import parse_address
from earwise.engine.remote.openai_http import JsonObject, RejectedRequest, TemporaryFailure
from earwise.errors import EngineError, ScoringError
from earwise.training.rollout.reward_runner import NeutralReward
from earwise.types import Example

MAX_REPLY_TOKENS = 64


def judge_reward(config: JudgeConfig, timeout_s: float) -> Callable[[Example, str], Awaitable[float | NeutralReward]]:
    """Make the reward function of a judge.

    Args:
        config: Server, rubric and scale.
        timeout_s: Longest time for one reply, in seconds.
    Raises:
        ConfigError: if the server's address is wrong.
    """
    address = parse_address(config.server)
    sender = openai_http.RateLimitedSender[JsonObject](
        address.limits, lambda reply: sum(openai_http.token_usage(reply) or (0, 0))
    )

    async def judge(example: Example, completion: str) -> float | NeutralReward:
        parsed = parse(completion, example.choices)
        if not parsed.reasoning:
            return NeutralReward.BATCH_MEAN
        body = judge_request(config, address.model, example, parsed.reasoning, parsed.answer)
        async with openai_http.connection(address.url, address.api_key, timeout_s) as client:
            reply = await sender.send(
                lambda request: openai_http.post(client, address.url, request),
                body,
                openai_http.estimate_tokens(body["messages"]) + MAX_REPLY_TOKENS,
                random.Random(example.id),
            )
        if isinstance(reply, TemporaryFailure | RejectedRequest):
            raise EngineError(f"the judge at {address.url}: {reply.reason}")
        return parse_score(str(reply["choices"][0]["message"].get("content") or ""), config.max_score)

    return judge


def judge_request(config: JudgeConfig, model: str, example: Example, reasoning: str, answer: str | None) -> JsonObject:
    """The request to the judge: temperature 0, one number as JSON.

    Args:
        config: Rubric and scale.
        model: Name of the judge's model on its server.
        example: The row, for question and options.
        reasoning: Reasoning of the completion.
        answer: Answer of the completion; None if it has none.
    """
    lines = [
        config.rubric,
        f'Answer with {{"score": N}}, N from 1 (worst) to {config.max_score} (best), and nothing else.',
        f"Question: {example.question}",
        *([f"Options: {', '.join(example.choices)}"] if example.choices else []),
        f"Argument: {reasoning}",
        f"Answer given: {answer or '(none)'}",
    ]
    message = {"role": "user", "content": "\n".join(lines)}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": MAX_REPLY_TOKENS}


def parse_score(reply: str, max_score: int) -> float:
    """The final score in a judge's reply, mapped to [0, 1].

    Reasoning in a <think> block is left out; of several scores after it the last one counts. Numbers may be written as
    text ("4") or with a point (4.0).

    Args:
        reply: Text of the reply.
        max_score: Best score of the scale, which begins at 1.
    Raises:
        ScoringError: if the reply has no score on the scale.

    >>> parse_score('{"score": 4}', 5)
    0.75
    >>> parse_score('<think>{"score": 1}</think>{"score": "5"}', 5)
    1.0
    """
    final = split_reasoning(reply)[1]
    scores = []
    for match in re.finditer(r"\{[^{}]*\}", final):
        with suppress(ValueError, KeyError, TypeError):
            scores.append(json.loads(match[0])["score"])
    try:
        score = float(scores[-1])
    except (IndexError, TypeError, ValueError):
        score = math.nan
    if (scores and isinstance(scores[-1], bool)) or not 1 <= score <= max_score:
        raise ScoringError(f"the judge's reply {reply[:60]!r} has no score from 1 to {max_score}")
    return (score - 1) / (max_score - 1)
