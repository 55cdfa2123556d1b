"""HyPeR's rewards by hand."""

import pytest

from earwise.algorithms.perception_rewards import format_perception, perception_consistency, perception_length
from earwise.algorithms.rewards import load_reward
from earwise.types import Example

EXAMPLE = Example("a", (), ("dog",), ("dog", "cat", "rain"))
CAPTION = (
    "<background>none</background><speakers>none</speakers><transcript>none</transcript>"
    "<description>barking</description>"
)


def completion(reasoning: str = "It barks.", summary: str = "So the answer is dog.", answer: str = "dog") -> str:
    return (
        f"<think><planning>Listen.</planning>\n<caption>{CAPTION}</caption>\n<reasoning>{reasoning}</reasoning>\n"
        f"<summary>{summary}</summary></think>\n<answer>{answer}</answer>"
    )


def test_all_parts_once_and_in_order() -> None:
    assert format_perception(EXAMPLE, completion()) == 1
    assert load_reward("format_perception") is format_perception
    broken = [
        completion(summary=" "),
        completion().replace("<speakers>none</speakers>", ""),
        completion().replace("<background>none</background>", "").replace("</caption>", "<background>x</background>"),
        completion() + "<answer>dog</answer>",
        completion().replace("</think>", ""),
        completion(reasoning="<summary>a</summary>"),
        "",
    ]
    assert [format_perception(EXAMPLE, text) for text in broken] == [0] * len(broken)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (completion(), 1.0),
        (completion(answer="cat"), 0.0),
        (completion(summary="It is hard to say.", reasoning="The answer is dog."), 1.0),
        (completion(summary="Unclear.", reasoning="It moves."), 0.2),
        (completion(answer="a bird"), 0.2),
        ("<answer>dog</answer>", 0.2),
    ],
    ids=["agrees", "contradicts", "reasoning-agrees", "no-conclusion", "no-option", "no-reasoning"],
)
def test_consistency(text: str, value: float) -> None:
    assert perception_consistency(EXAMPLE, text) == value


@pytest.mark.parametrize(
    ("words", "value"), [(0, 0), (125, 0), (200, 0.6), (250, 1), (600, 1), (750, 0.5), (900, 0), (2000, 0)]
)
def test_length_by_hand_and_half_of_it_for_a_wrong_answer(words: int, value: float) -> None:
    thought = "word " * words
    assert perception_length(EXAMPLE, f"<think>{thought}</think><answer>dog</answer>") == pytest.approx(value)
    assert perception_length(EXAMPLE, f"<think>{thought}</think><answer>cat</answer>") == pytest.approx(value / 2)
