"""Rewards: pure functions `(example, completion) -> float`, added up with weights. No torch, no files.

Used by GRPO, difficulty scoring and the curriculum. Two families stand side by side: the `_r1aqa` ones give the
verdicts of the released code (xiaomi-research/r1-aqa@5d24f31, without its math step, which takes one shared number for
a match), the others are the stricter rules of papers/r1-aqa.md section 10 and papers/sari.md section 7.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache

from earwise.answers import SECTIONS, answer_blocks, mentions, normalise, option_index, parse, r1aqa_extract
from earwise.errors import ConfigError, ScoringError
from earwise.types import Example

Reward = Callable[[Example, str], float]

REWARDS: dict[str, str] = {
    "accuracy": "earwise.rewards:accuracy",
    "accuracy_r1aqa": "earwise.rewards:accuracy_r1aqa",
    "format_answer": "earwise.rewards:format_answer",
    "format_think": "earwise.rewards:format_think",
    "format_r1aqa": "earwise.rewards:format_r1aqa",
    "format_think_r1aqa": "earwise.rewards:format_think_r1aqa",
    "length": "earwise.rewards:length",
    "consistency": "earwise.rewards:consistency",
    "structured": "earwise.rewards:structured",
}

LENGTH_TARGET_WORDS = 50
"""Reasoning up to this many words is rewarded in full (Ke-Omni-R asks for fewer than 50 words)."""
LENGTH_LIMIT_WORDS = 100
"""Reasoning of this many words or more is worth nothing (ours)."""

_INNER = r"((?:(?!</?(?:think|answer)>).)*)"
_ANSWER_ONLY = re.compile(rf"<answer>{_INNER}</answer>", re.DOTALL)
_THINK_ANSWER = re.compile(rf"<think>{_INNER}</think>\s*<answer>{_INNER}</answer>", re.DOTALL)
_R1AQA_ANSWER = re.compile(r"<answer>.*?</answer>", re.DOTALL)
_R1AQA_THINK = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_SECTION_TAG = rf"</?(?:{'|'.join(SECTIONS)})>"
_SECTIONS = re.compile(r"\s*".join(rf"<{name}>((?:(?!{_SECTION_TAG}).)*)</{name}>" for name in SECTIONS), re.DOTALL)


def _answers(example: Example) -> tuple[str, ...]:
    if not example.answer:
        raise ScoringError(f"example {example.id!r} has no answer to compare with; add one or leave the example out")
    return example.answer


def accuracy(example: Example, completion: str) -> float:
    """1.0 if the first well-formed answer block names an accepted answer, up to case, blanks and outer punctuation.

    An answer without tags is worth 0, and so is a letter in place of the option's text. `<think>` is not read.
    Options that differ only in case or punctuation need the exact text.

    Raises:
        ScoringError: if the example has no answer.
    """
    answers = _answers(example)
    blocks = answer_blocks(completion)
    if not blocks:
        return 0.0
    if example.choices:
        index = option_index(blocks[0], example.choices)
        return float(index is not None and example.choices[index].strip() in {answer.strip() for answer in answers})
    return float(blocks[0] != "" and normalise(blocks[0]) in {normalise(answer) for answer in answers})


def accuracy_r1aqa(example: Example, completion: str) -> float:
    """R1-AQA's string rule: both sides extracted, stripped, compared exactly; an untagged exact answer passes.

    Raises:
        ScoringError: if the example has no answer.
    Source: papers/r1-aqa.md section 4. The accepted answer may itself be tagged, as R1-AQA's solutions are.
    """
    return float(r1aqa_extract(completion) in {r1aqa_extract(answer) for answer in _answers(example)})


def format_answer(example: Example, completion: str) -> float:
    """1.0 if the completion, outer blanks aside, is exactly one answer block with something in it."""
    found = _ANSWER_ONLY.fullmatch(completion.strip())
    return float(found is not None and found[1].strip() != "")


def format_think(example: Example, completion: str) -> float:
    """1.0 if the completion, outer blanks aside, is one think block, then one answer block, neither empty."""
    found = _THINK_ANSWER.fullmatch(completion.strip())
    return float(found is not None and all(part.strip() for part in found.groups()))


def format_r1aqa(example: Example, completion: str) -> float:
    """R1-AQA's format rule for prompt <2>: from `<answer>` to `</answer>` with nothing around; several blocks pass."""
    return float(_R1AQA_ANSWER.fullmatch(completion) is not None)


def format_think_r1aqa(example: Example, completion: str) -> float:
    """R1-AQA's format rule for prompt <3>; an empty think block passes."""
    return float(_R1AQA_THINK.fullmatch(completion) is not None)


def length(example: Example, completion: str) -> float:
    """Brevity of the reasoning: 1.0 up to 50 words, falling evenly to 0.0 at 100; 0.0 without an answer block."""
    if not any(answer_blocks(completion)):
        return 0.0
    words = len((parse(completion).reasoning or "").split())
    return min(1.0, max(0.0, (LENGTH_LIMIT_WORDS - words) / (LENGTH_LIMIT_WORDS - LENGTH_TARGET_WORDS)))


def consistency(example: Example, completion: str) -> float:
    """1.0 if there is reasoning and it mentions the answer that is given, right or wrong, as whole words."""
    parsed = parse(completion, example.choices)
    return float(
        parsed.status == "ok" and bool(parsed.reasoning) and mentions(parsed.reasoning or "", parsed.answer or "")
    )


def structured(example: Example, completion: str) -> float:
    """1.0 if the form is `format_think`'s and the think block is the four sections, once each, in order, none empty.

    Source: papers/sari.md section 7 (the tags are ours: planning, caption, reasoning, summary).
    """
    outer = _THINK_ANSWER.fullmatch(completion.strip())
    if outer is None or not outer[2].strip():
        return 0.0
    inner = _SECTIONS.fullmatch(outer[1].strip())
    return float(inner is not None and all(part.strip() for part in inner.groups()))


@cache
def load_reward(name: str) -> Reward:
    """The reward of a table name, or a user's own `module:function`.

    Raises:
        ConfigError: if there is no such name, module or function.
    """
    target = REWARDS.get(name, name)
    module_name, colon, function_name = target.partition(":")
    if not (module_name and colon and function_name):
        near = get_close_matches(name, REWARDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(REWARDS)}; your own: module:function"
        raise ConfigError(f"reward {name!r} is unknown; {hint}")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"reward {name!r} cannot be loaded ({error}); put the module on the Python path and check both names"
        ) from error
    if not callable(function):
        raise ConfigError(f"reward {name!r} is a {type(function).__name__}, not a function of (example, completion)")
    return function  # type: ignore[no-any-return]


def total(example: Example, completion: str, weights: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Weighted sum of rewards.

    Args:
        example: The row that was asked.
        completion: What the model said, without the end token.
        weights: Reward name (or `module:function`) -> weight.
    Returns:
        The sum, and each reward's own value without its weight.
    Raises:
        ConfigError: if a reward cannot be loaded.
        ScoringError: if a reward is not a finite number.
    """
    parts: dict[str, float] = {}
    for name in weights:
        value = load_reward(name)(example, completion)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ScoringError(
                f"reward {name!r} gave {value!r} for example {example.id!r}; it must give a finite number"
            )
        parts[name] = float(value)
    return sum(weights[name] * value for name, value in parts.items()), parts
