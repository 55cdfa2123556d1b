"""Rewards for reasoning that first says what is heard: HyPeR's format, consistency and length. Pure, no torch.

HyPeR (arXiv:2604.14806) has the model describe background, speakers, words and the whole of a sound before it reasons.
Its released code (JOY-SWang/HyPeR@7fa65ee, `reward4myData.py`) weighs accuracy, consistency and length 0.7 : 0.2 : 0.1
and adds a format reward; its tags are upper-case and ours are lower-case. Where the paper names a perceptual
consistency reward, the released code compares the option that the reasoning arrives at with the final answer, and that
is what `perception_consistency` does. Named in recipes through `rewards.REWARDS`.
"""

import re

from earwise.answers import parse, parse_sections
from earwise.types import Example

PERCEPTION_SECTIONS = ("background", "speakers", "transcript", "description")
"""What the caption of a completion in style `perception` consists of, in order."""
NO_CONCLUSION = 0.2
"""Consistency of reasoning that arrives at no option (released code)."""
SHORT_WORDS, LONG_WORDS = 250, 600
"""Numbers of words between which the reasoning gets the full `perception_length` (released code)."""
WRONG_SHARE = 0.5
"""Share of the length reward that a wrong answer gets (released code)."""

_TAGS = "think|answer|planning|caption|reasoning|summary|background|speakers|transcript|description"


def _block(name: str) -> str:
    """Pattern of a block that is not empty and holds no tag."""
    return rf"<{name}>(?=\s*[^\s<])(?:(?!</?(?:{_TAGS})>).)*</{name}>"


_CAPTION = r"\s*".join(map(_block, PERCEPTION_SECTIONS))
_COMPLETION = re.compile(
    rf"<think>\s*{_block('planning')}\s*<caption>\s*{_CAPTION}\s*</caption>\s*{_block('reasoning')}\s*"
    rf"{_block('summary')}\s*</think>\s*{_block('answer')}",
    re.DOTALL,
)


def format_perception(example: Example, completion: str) -> float:
    """1.0 if the completion has all parts of style `perception`, once each, in order and not empty, else 0.0.

    Source: HyPeR's released code, which also allows a reflection and a corrected answer behind the answer; ours does
    not.
    """
    return float(_COMPLETION.fullmatch(completion.strip()) is not None)


def perception_consistency(example: Example, completion: str) -> float:
    """1.0 if the option that summary or reasoning arrive at is that of the answer, 0.0 if it is another, 0.2 if they
    arrive at none.

    Source: HyPeR's released code, by the option's letter; ours reads the option as an answer is read
    (`earwise.answers`).
    """
    final = parse(completion, example.choices).choice
    sections = parse_sections(completion)
    conclusions = [parse(sections.get(name, ""), example.choices).choice for name in ("summary", "reasoning")]
    conclusion = next((choice for choice in conclusions if choice is not None), None)
    if final is None or conclusion is None:
        return NO_CONCLUSION
    return float(final == conclusion)


def perception_length(example: Example, completion: str) -> float:
    """1.0 for reasoning of 250 to 600 words; 0.0 at 125 words and at 900; half of it for a wrong answer.

    Source: HyPeR's released code.
    """
    parsed = parse(completion, example.choices)
    words = len(re.findall(r"\S+", parsed.reasoning or ""))
    rising = (words - SHORT_WORDS / 2) / (SHORT_WORDS / 2)
    falling = (1.5 * LONG_WORDS - words) / (0.5 * LONG_WORDS)
    value = min(1.0, max(0.0, rising)) if words <= LONG_WORDS else max(0.0, falling)
    is_right = parsed.answer is not None and parsed.answer in example.answer
    return value if is_right else WRONG_SHARE * value
