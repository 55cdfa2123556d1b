"""Mellow's wording of questions and answers, for the prompt style `mellow`. No torch.

Everything is lower case. Options are written into the question (`which sound is it? a) rain b) wind`), and the answer
is letter and text (`b) wind`); questions to be answered by yes or no get no letters. A caption of one clip begins with
`the audio 1 is`. Descriptions of a difference keep their case.

Source: Mellow (arXiv:2503.08540), the ReasonAQA files and the loader of soham97/mellow@c8204d8.
"""

from collections.abc import Sequence

from earwise.types import Audio, Example, Text, Turn

YES_NO = frozenset({"yes", "no"})
CAPTION_START = "the audio 1 is "


def lettered(choices: Sequence[str]) -> dict[str, str]:
    """Option -> the same with its letter, in lower case; empty for the options yes and no.

    >>> lettered(("A car", "Rain")), lettered(("yes", "no"))
    ({'A car': 'a) a car', 'Rain': 'b) rain'}, {})
    """
    if {choice.lower() for choice in choices} <= YES_NO:
        return {}
    return {choice: f"{chr(ord('a') + place)}) {choice.lower()}" for place, choice in enumerate(choices)}


def question(text: str, choices: Sequence[str]) -> str:
    """A question with its options.

    >>> question("What Is It?", ("Wind", "Rain"))
    'what is it? a) wind b) rain'
    """
    return " ".join(filter(None, [text.lower(), *lettered(choices).values()]))


def lower_turns(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A conversation whose texts are in lower case."""
    return tuple(
        Turn(turn.role, tuple(Text(part.text.lower()) if isinstance(part, Text) else part for part in turn.parts))
        for turn in turns
    )


def target(example: Example, answer: str) -> str:
    """The completion for one of the answers of an example.

    Args:
        example: The example, for its options and its task.
        answer: The answer; an option if the example has options.

    >>> target(Example("x", (), choices=("Wind", "Rain")), "Rain"), target(Example("x", (), task="difference"), "A. B.")
    ('b) rain', 'A. B.')
    """
    if example.task == "difference":
        return answer
    num_clips = sum(isinstance(part, Audio) for turn in example.turns for part in turn.parts)
    start = CAPTION_START if example.task == "caption" and num_clips == 1 else ""
    return start + lettered(example.choices).get(answer, answer.lower())
