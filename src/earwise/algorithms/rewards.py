"""Rewards: pure functions `(example, completion) -> float` that GRPO adds up with weights. No torch, no file access.

They are used by GRPO, by `earwise build difficulty` and by the online curriculum. There are two families. The `_r1aqa`
rewards give the values of R1-AQA's released code (xiaomi-research/r1-aqa@5d24f31), without its math verifier, for which
one shared number is already a match. The others follow stricter rules: whole-completion formats, exact option texts.
The rewards of Audio-Thinker (arXiv:2508.08039) and CESAR (arXiv:2510.20867) are implemented here as rules on words;
where the papers ask a language model or print no rule, the rule is ours. A language model as judge is
`training/rollout/judge.py`.

To add a reward, write such a function and a row of `REWARDS`, or name your own as `module:function` in a recipe.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import cache

from earwise.answers import SECTIONS, answer_blocks, extract_answer_r1aqa, mentions, option_index, parse
from earwise.answers.option_texts import canonical, normalise
from earwise.config.resolve import check_parameters, resolve_entry
from earwise.errors import ScoringError
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
    "format_perception": "earwise.algorithms.perception_rewards:format_perception",
    "perception_consistency": "earwise.algorithms.perception_rewards:perception_consistency",
    "perception_length": "earwise.algorithms.perception_rewards:perception_length",
}

LENGTH_TARGET_WORDS = 50
"""Reasoning of at most this many words gets the full `length` reward (Ke-Omni-R asks for fewer than 50 words)."""
LENGTH_LIMIT_WORDS = 100
"""Reasoning of this many words or more gets a `length` reward of 0 (value ours)."""
SHORTEST_FULL_REWARD_WORDS = 35
"""Reasoning of fewer words gets less than the full `brevity` reward (CESAR reports its best results at 35 to 40
tokens)."""
CONSISTENCY_BONUS = 0.5
"""Share by which reasoning that supports its answer increases the reward of a correct answer (Audio-Thinker)."""

KEYWORDS: dict[str, tuple[str, ...]] = {
    "cause": ("because", "since", "therefore", "thus", "so", "suggests", "indicates", "implies", "means", "hence"),
    "contrast": ("but", "however", "while", "whereas", "unlike", "rather", "instead", "although", "not", "neither"),
    "order": ("first", "then", "next", "after", "before", "finally", "later", "second", "followed"),
    "sound": (
        "pitch", "tone", "timbre", "rhythm", "tempo", "beat", "melody", "loud", "quiet", "voice", "echo", "noise",
        "sharp", "low", "high", "repeated", "steady", "sudden", "accent", "spoken",
    ),
}  # fmt: skip
"""Word families that the `keyword` reward looks for in reasoning about sound (ours; CESAR's lists are not
published)."""

_TAG_CONTENT = r"((?:(?!</?(?:think|answer)>).)*)"
_ANSWER_ONLY = re.compile(rf"<answer>{_TAG_CONTENT}</answer>", re.DOTALL)
_THINK_ANSWER = re.compile(rf"<think>{_TAG_CONTENT}</think>\s*<answer>{_TAG_CONTENT}</answer>", re.DOTALL)
_R1AQA_ANSWER = re.compile(r"<answer>.*?</answer>", re.DOTALL)
_R1AQA_THINK = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_SECTION_TAG = rf"</?(?:{'|'.join(SECTIONS)})>"
_SECTIONS = re.compile(r"\s*".join(rf"<{name}>((?:(?!{_SECTION_TAG}).)*)</{name}>" for name in SECTIONS), re.DOTALL)


def _accepted_answers(example: Example) -> tuple[str, ...]:
    """Answers that count as correct; a ScoringError if the example has none."""
    if not example.answer:
        raise ScoringError(f"example {example.id!r} has no answer to compare with; add one or leave the example out")
    return example.answer


def accuracy(example: Example, completion: str) -> float:
    """1.0 if the first complete `<answer>` block holds an accepted answer, else 0.0.

    Case, whitespace, Unicode forms and surrounding punctuation are ignored, except where options differ only in these.
    An answer outside of tags scores 0, and so does an option's letter in place of its text. The `<think>` block is not
    read.

    Raises:
        ScoringError: if the example has no answer.
    """
    answers = _accepted_answers(example)
    blocks = answer_blocks(completion)
    if not blocks:
        return 0.0
    if example.choices:
        index = option_index(blocks[0], example.choices)
        accepted = {canonical(answer).strip() for answer in answers}
        return float(index is not None and canonical(example.choices[index]).strip() in accepted)
    return float(blocks[0] != "" and normalise(blocks[0]) in {normalise(answer) for answer in answers})


def accuracy_r1aqa(example: Example, completion: str) -> float:
    """R1-AQA's accuracy rule: the extracted, stripped answers are compared exactly; an untagged exact answer passes.

    The accepted answer may itself be tagged, as the solutions in R1-AQA's training data are.

    Raises:
        ScoringError: if the example has no answer.
    Source: xiaomi-research/r1-aqa, `accuracy_reward` without the math verifier.
    """
    return float(
        extract_answer_r1aqa(completion) in {extract_answer_r1aqa(answer) for answer in _accepted_answers(example)}
    )


def format_answer(example: Example, completion: str) -> float:
    """1.0 if the completion is exactly one non-empty `<answer>` block (surrounding whitespace allowed), else 0.0."""
    match = _ANSWER_ONLY.fullmatch(completion.strip())
    return float(match is not None and match[1].strip() != "")


def format_think(example: Example, completion: str) -> float:
    """1.0 if the completion is one `<think>` block followed by one `<answer>` block, neither empty, else 0.0."""
    match = _THINK_ANSWER.fullmatch(completion.strip())
    return float(match is not None and all(part.strip() for part in match.groups()))


def format_r1aqa(example: Example, completion: str) -> float:
    """R1-AQA's format rule for its prompt <2>: the completion begins with `<answer>` and ends with `</answer>`.

    Several answer blocks pass, surrounding whitespace does not (as in the released code).
    """
    return float(_R1AQA_ANSWER.fullmatch(completion) is not None)


def format_think_r1aqa(example: Example, completion: str) -> float:
    """R1-AQA's format rule for its prompt <3>: a `<think>` block, then an `<answer>` block; both may be empty."""
    return float(_R1AQA_THINK.fullmatch(completion) is not None)


def length(example: Example, completion: str) -> float:
    """1.0 for reasoning of up to 50 words, falling linearly to 0.0 at 100 words; 0.0 without an answer block."""
    if not any(answer_blocks(completion)):
        return 0.0
    words = len((parse(completion).reasoning or "").split())
    return min(1.0, max(0.0, (LENGTH_LIMIT_WORDS - words) / (LENGTH_LIMIT_WORDS - LENGTH_TARGET_WORDS)))


def brevity(example: Example, completion: str) -> float:
    """Prefers reasoning of 35 to 50 words: rises linearly from 0.0 to 1.0 at 35 words, falls from 50 to 0.0 at 100.

    It is 0.0 without an answer block. Unlike `length`, it does not reward leaving the reasoning out, which a policy is
    quick to learn.
    """
    words = len((parse(completion).reasoning or "").split())
    return min(words / SHORTEST_FULL_REWARD_WORDS, length(example, completion))


def keyword(example: Example, completion: str) -> float:
    """Share of the word families of `KEYWORDS` that occur in the reasoning; 0.0 without an answer block.

    Each family counts once, so that repeating a word earns nothing. English only.
    """
    reasoning = parse(completion).reasoning
    if not reasoning or not any(answer_blocks(completion)):
        return 0.0
    words = set(re.findall(r"[a-z]+", reasoning.casefold()))
    return sum(not words.isdisjoint(family) for family in KEYWORDS.values()) / len(KEYWORDS)


def format_adaptive(example: Example, completion: str) -> float:
    """1.0 if the completion satisfies `format_think` or `format_answer`: the model may choose whether to reason."""
    return max(format_think(example, completion), format_answer(example, completion))


def adaptive_thinking(example: Example, completion: str, *, think: float = 1.0, answer: float = 1.0) -> float:
    """Accuracy reward that makes it pay to answer easy questions directly and to reason about hard ones.

    With reasoning, a correct answer earns `think` and a wrong one `think - 1` (1 and 0 by default). Without reasoning,
    a correct answer earns `2 * answer` and a wrong one `answer - 2` (2 and -1 by default).

    Args:
        example: The example with its accepted answers.
        completion: The model's completion.
        think: Multiplier in (0, 1] for completions with reasoning; below 1 when a batch reasons too often.
        answer: Multiplier in (0, 1] for direct answers; below 1 when a batch answers directly too often.
    Raises:
        ScoringError: if the example has no answer.
    Source: Audio-Thinker (arXiv:2508.08039), eq. 5. An empty `<think>` block counts as no reasoning (ours).
    """
    correct = accuracy(example, completion) == 1.0
    if has_reasoning(completion):
        return think if correct else think - 1.0
    return 2.0 * answer if correct else answer - 2.0


def adaptive_consistent(example: Example, completion: str, *, think: float = 1.0, answer: float = 1.0) -> float:
    """`adaptive_thinking` with a bonus of 50 % for a correct answer that is consistent with its reasoning.

    An answer without reasoning counts as consistent. A wrong answer gets no bonus.

    Args:
        example: The example with its accepted answers.
        completion: The model's completion.
        think: See `adaptive_thinking`.
        answer: See `adaptive_thinking`.
    Raises:
        ScoringError: if the example has no answer.
    Source: Audio-Thinker (arXiv:2508.08039), eqs. 6 and 7. The paper asks a language model whether the reasoning
    supports the answer; here the rule `consistency` decides (ours).
    """
    reward = adaptive_thinking(example, completion, think=think, answer=answer)
    consistent = not has_reasoning(completion) or consistency(example, completion) == 1.0
    return reward * (1 + CONSISTENCY_BONUS) if consistent and accuracy(example, completion) == 1.0 else reward


def has_reasoning(completion: str) -> bool:
    """Whether the completion holds reasoning, finished or cut off."""
    return bool(parse(completion).reasoning)


def consistency(example: Example, completion: str) -> float:
    """1.0 if the reasoning mentions the answer of the completion (correct or not) as whole words, else 0.0."""
    parsed = parse(completion, example.choices)
    return float(
        parsed.status == "ok" and bool(parsed.reasoning) and mentions(parsed.reasoning or "", parsed.answer or "")
    )


def structured(example: Example, completion: str) -> float:
    """1.0 if the completion satisfies `format_think` and its reasoning has SARI's four sections, else 0.0.

    The sections planning, caption, reasoning and summary must each occur once, in this order, and not be empty.

    Source: SARI (arXiv:2504.15900), structured reasoning; the tags themselves are ours.
    """
    match = _THINK_ANSWER.fullmatch(completion.strip())
    if match is None or not match[2].strip():
        return 0.0
    sections = _SECTIONS.fullmatch(match[1].strip())
    return float(sections is not None and all(part.strip() for part in sections.groups()))


@cache
def load_reward(name: str) -> Reward:
    """Load a reward by its name in `REWARDS`, or a user's own as `module:function`.

    Raises:
        ConfigError: if there is no such name, module or function.
    """
    function = resolve_entry(REWARDS, name, "reward")
    check_parameters(function, ("example", "completion"), name, "reward")
    return function  # type: ignore[no-any-return]


def total(example: Example, completion: str, weights: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Weighted sum of several rewards.

    Args:
        example: The example that the completion answers.
        completion: The model's completion, without the end token.
        weights: Reward name (or `module:function`) -> weight.
    Returns:
        The sum, and the unweighted value of each reward.
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
