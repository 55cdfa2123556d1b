"""Rewards: pure functions `(example, completion) -> float`, added up with weights. No torch, no files.

Used by GRPO, difficulty scoring and the curriculum. Two families stand side by side: the `_r1aqa` ones give the
verdicts of the released code (xiaomi-research/r1-aqa@5d24f31, without its math step, which takes one shared number for
a match), the others are the stricter rules of papers/r1-aqa.md section 10 and papers/sari.md section 7. What
Audio-Thinker and CESAR reward beyond that (papers/after-the-seeds.md, section 2) is here as rules on words, ours where
the papers ask a language model or print no rule; `train/judge.py` asks one.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import cache

from earwise.answers import SECTIONS, answer_blocks, mentions, normalise, option_index, parse, r1aqa_extract
from earwise.config.resolve import entry
from earwise.errors import ConfigError, ScoringError
from earwise.types import Example

Reward = Callable[[Example, str], float]

REWARDS: dict[str, str] = {
    "accuracy": "earwise.algorithms.rewards:accuracy",
    "accuracy_r1aqa": "earwise.algorithms.rewards:accuracy_r1aqa",
    "format_answer": "earwise.algorithms.rewards:format_answer",
    "format_think": "earwise.algorithms.rewards:format_think",
    "format_r1aqa": "earwise.algorithms.rewards:format_r1aqa",
    "format_think_r1aqa": "earwise.algorithms.rewards:format_think_r1aqa",
    "length": "earwise.algorithms.rewards:length",
    "brevity": "earwise.algorithms.rewards:brevity",
    "consistency": "earwise.algorithms.rewards:consistency",
    "keyword": "earwise.algorithms.rewards:keyword",
    "format_adaptive": "earwise.algorithms.rewards:format_adaptive",
    "adaptive_thinking": "earwise.algorithms.rewards:adaptive_thinking",
    "adaptive_consistent": "earwise.algorithms.rewards:adaptive_consistent",
    "structured": "earwise.algorithms.rewards:structured",
}

LENGTH_TARGET_WORDS = 50
"""Reasoning up to this many words is rewarded in full (Ke-Omni-R asks for fewer than 50 words)."""
LENGTH_LIMIT_WORDS = 100
"""Reasoning of this many words or more is worth nothing (ours)."""
BRIEF_FROM_WORDS = 35
"""Shorter reasoning than this is worth less (CESAR is best at 35 to 40 tokens)."""
CONSISTENT_BONUS = 0.5
"""What a thought that leads to its answer adds to the worth of a right one (Audio-Thinker)."""

KEYWORDS: dict[str, tuple[str, ...]] = {
    "cause": ("because", "since", "therefore", "thus", "so", "suggests", "indicates", "implies", "means", "hence"),
    "contrast": ("but", "however", "while", "whereas", "unlike", "rather", "instead", "although", "not", "neither"),
    "order": ("first", "then", "next", "after", "before", "finally", "later", "second", "followed"),
    "sound": (
        "pitch", "tone", "timbre", "rhythm", "tempo", "beat", "melody", "loud", "quiet", "voice", "echo", "noise",
        "sharp", "low", "high", "repeated", "steady", "sudden", "accent", "spoken",
    ),
}  # fmt: skip
"""Families of words by which `keyword` tells an argument about a sound (ours; the paper's lists are not published)."""

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


def brevity(example: Example, completion: str) -> float:
    """Reasoning of the right size: rises evenly from 0.0 to 1.0 at 35 words, stays to 50, falls to 0.0 at 100; 0.0
    without an answer block.

    Unlike `length` it does not reward thinking away, which a policy is quick to learn.
    """
    words = len((parse(completion).reasoning or "").split())
    return min(words / BRIEF_FROM_WORDS, length(example, completion))


def keyword(example: Example, completion: str) -> float:
    """Share of the families of `KEYWORDS` that the reasoning has a word of; 0.0 without an answer block.

    A family counts once, so that saying a word again earns nothing. English only.
    """
    reasoning = parse(completion).reasoning
    if not reasoning or not any(answer_blocks(completion)):
        return 0.0
    said = set(re.findall(r"[a-z]+", reasoning.casefold()))
    return sum(not said.isdisjoint(family) for family in KEYWORDS.values()) / len(KEYWORDS)


def format_adaptive(example: Example, completion: str) -> float:
    """1.0 if the form is `format_think`'s or `format_answer`'s: the model may choose."""
    return max(format_think(example, completion), format_answer(example, completion))


def adaptive_thinking(example: Example, completion: str, *, think: float = 1.0, answer: float = 1.0) -> float:
    """Right and wrong, by whether there was thinking: 1.0 and 0.0 with it, 2.0 and -1.0 without, so that it pays to
    answer at once what is sure, and to think about the rest.

    Args:
        example: The row that was asked.
        completion: What the model said.
        think: Below 1 where a batch thinks too often: right is worth as much, wrong as much less as is missing to 1.
        answer: The same of answering at once: right is worth twice as much, wrong -1 less what is missing to 1.
    Raises:
        ScoringError: if the example has no answer.
    Source: Audio-Thinker (arXiv 2508.08039), eq. 5; an empty think block is no thinking (ours).
    """
    right = accuracy(example, completion) == 1.0
    if thinks(completion):
        return think if right else think - 1.0
    return 2.0 * answer if right else answer - 2.0


def adaptive_consistent(example: Example, completion: str, *, think: float = 1.0, answer: float = 1.0) -> float:
    """`adaptive_thinking`; where the answer is right, times 1.5, but for a thought that does not lead to it.

    Source: Audio-Thinker, eqs. 6 and 7: an answer without thought counts as consistent, a wrong one earns nothing by
    it. The paper asks a language model whether a thought leads to its answer; the rule (`consistency`) is ours.
    """
    worth = adaptive_thinking(example, completion, think=think, answer=answer)
    led = not thinks(completion) or consistency(example, completion) == 1.0
    return worth * (1 + CONSISTENT_BONUS) if led and accuracy(example, completion) == 1.0 else worth


def thinks(completion: str) -> bool:
    """Whether there is a thought, finished or not."""
    return bool(parse(completion).reasoning)


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
    function = entry(REWARDS, name, "reward")
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
