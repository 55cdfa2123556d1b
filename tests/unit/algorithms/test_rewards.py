"""rewards.py: every rule on cases worked out by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from earwise.algorithms import rewards
from earwise.errors import ConfigError, ScoringError
from earwise.training.rollout.adaptive_rewards import reward_factors
from earwise.types import Example

CHOICES = Example("x", (), answer=("car horn",), choices=("dog", "car horn", "Dog"))
OPEN = Example("x", (), answer=("rain", "light rain"))
SECTIONS = "<planning>p</planning><caption>c</caption>\n<reasoning>r</reasoning><summary>s</summary>"


@pytest.mark.parametrize(
    ("completion", "ours", "official"),
    [
        ("<answer>car horn</answer>", 1, 1),
        ("<answer> Car  Horn. </answer>", 1, 0),
        ("<answer>\ncar horn\n</answer>", 1, 0),
        ("car horn", 0, 1),
        (" car horn \n", 0, 1),
        ("<answer>B</answer>", 0, 0),
        ("<answer>dog</answer>", 0, 0),
        ("<answer>car horn</answer><answer>dog</answer>", 1, 1),
        ("<answer>dog</answer><answer>car horn</answer>", 0, 0),
        ("<think><answer>car horn</answer></think><answer>dog</answer>", 0, 1),
        ("<think>car horn</think><answer>car horn</answer>", 1, 1),
        ("<answer>car horn", 0, 0),
        ("<answer></answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_accuracy(completion: str, ours: float, official: float) -> None:
    assert rewards.accuracy(CHOICES, completion) == ours
    assert rewards.accuracy_r1aqa(CHOICES, completion) == official


def test_accuracy_of_options_that_differ_in_case_alone() -> None:
    example = Example("x", (), answer=("Dog",), choices=("dog", "Dog"))
    scores = [rewards.accuracy(example, f"<answer>{text}</answer>") for text in ("Dog", "dog", "DOG")]
    assert scores == [1.0, 0.0, 0.0]


def test_accuracy_of_open_answers() -> None:
    scores = [rewards.accuracy(OPEN, f"<answer>{text}</answer>") for text in ("Rain.", "light rain", "heavy rain", "")]
    assert scores == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["accuracy", "accuracy_r1aqa"])
def test_accuracy_needs_an_answer(name: str) -> None:
    with pytest.raises(ScoringError, match="'row-7' has no answer"):
        rewards.load_reward(name)(Example("row-7", ()), "<answer>x</answer>")


@pytest.mark.parametrize(
    ("completion", "ours", "official"),
    [
        ("<answer>x</answer>", 1, 1),
        (" <answer>x</answer>\n", 1, 0),
        ("<answer>a\nb</answer>", 1, 1),
        ("<answer>x</answer><answer>y</answer>", 0, 1),
        ("<answer></answer>", 0, 1),
        ("<answer> </answer>", 0, 1),
        ("so <answer>x</answer>", 0, 0),
        ("<answer>x", 0, 0),
        ("<ANSWER>x</ANSWER>", 0, 0),
        ("<think>t</think><answer>x</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_format_answer(completion: str, ours: float, official: float) -> None:
    assert rewards.format_answer(CHOICES, completion) == ours
    assert rewards.format_r1aqa(CHOICES, completion) == official


@pytest.mark.parametrize(
    ("completion", "ours", "official"),
    [
        ("<think>t</think><answer>x</answer>", 1, 1),
        ("<think>t\nu</think>\n\n<answer>x</answer>", 1, 1),
        (" <think>t</think><answer>x</answer>", 1, 0),
        ("<think></think><answer>x</answer>", 0, 1),
        ("<think>t</think><answer> </answer>", 0, 1),
        ("<think>t</think> so <answer>x</answer>", 0, 0),
        ("<think>t</think><answer>x</answer><answer>y</answer>", 0, 1),
        ("<think>t</think><think>u</think><answer>y</answer>", 0, 1),
        ("<answer>x</answer><think>t</think>", 0, 0),
        ("<answer>x</answer>", 0, 0),
    ],
)
def test_format_think(completion: str, ours: float, official: float) -> None:
    assert rewards.format_think(CHOICES, completion) == ours
    assert rewards.format_think_r1aqa(CHOICES, completion) == official


@pytest.mark.parametrize(
    ("words", "value"), [(0, 1.0), (49, 1.0), (50, 1.0), (51, 0.98), (75, 0.5), (99, 0.02), (100, 0.0), (400, 0.0)]
)
def test_length(words: int, value: float) -> None:
    completion = f"<think>{'w ' * words}</think><answer>x</answer>"
    assert rewards.length(CHOICES, completion) == pytest.approx(value)
    assert rewards.length(CHOICES, completion.replace("</answer>", "")) == 0.0


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>A Car horn, surely.</think><answer>car horn</answer>", 1),
        ("<think>It barks like a dog.</think><answer>dog</answer>", 1),
        ("<think>It is a dog.</think><answer>car horn</answer>", 0),
        ("<think>carhorn horn car</think><answer>car horn</answer>", 0),
        ("<think></think><answer>car horn</answer>", 0),
        ("<answer>car horn</answer>", 0),
        ("<think>bird</think><answer>bird</answer>", 0),
    ],
)
def test_consistency(completion: str, value: float) -> None:
    assert rewards.consistency(CHOICES, completion) == value


@pytest.mark.parametrize(
    ("thought", "value"),
    [
        (SECTIONS, 1),
        (f"\n{SECTIONS}\n", 1),
        (SECTIONS.replace("<summary>s</summary>", ""), 0),
        (SECTIONS.replace("s</summary>", " </summary>"), 0),
        (SECTIONS + "<summary>s</summary>", 0),
        (SECTIONS.replace("planning", "PLAN"), 0),
        ("<caption>c</caption><planning>p</planning><reasoning>r</reasoning><summary>s</summary>", 0),
        (SECTIONS.replace("</caption>", "</caption>loose"), 0),
        (SECTIONS.replace("r</reasoning>", "r<caption>c</caption></reasoning>"), 0),
        ("p c r s", 0),
    ],
)
def test_structured(thought: str, value: float) -> None:
    assert rewards.structured(CHOICES, f"<think>{thought}</think>\n<answer>x</answer>") == value
    assert rewards.structured(CHOICES, f"<think>{thought}</think>\n<answer> </answer>") == 0
    assert rewards.structured(CHOICES, f"{thought}\n<answer>x</answer>") == 0


@pytest.mark.parametrize("name", rewards.REWARDS)
def test_table(name: str) -> None:
    reward = rewards.load_reward(name)
    assert reward.__doc__ and reward is rewards.load_reward(rewards.REWARDS[name])
    without_conclusion = 0.2 if name == "perception_consistency" else 0.0  # as HyPeR's released code gives
    for completion in ("", " ", "<answer>", "</think>", "garbage"):
        assert reward(CHOICES, completion) <= without_conclusion


def test_total_weighs_each_part() -> None:
    right = "<answer>car horn</answer>"
    assert rewards.total(CHOICES, right, {"accuracy": 2.0, "format_answer": 0.5}) == (
        2.5,
        {"accuracy": 1.0, "format_answer": 1.0},
    )
    assert rewards.total(CHOICES, "car horn", {"accuracy": 2.0, "accuracy_r1aqa": -3.0}) == (
        -3.0,
        {"accuracy": 0.0, "accuracy_r1aqa": 1.0},
    )
    assert rewards.total(CHOICES, right, {}) == (0, {})


def test_a_users_own_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {"shout": "float(completion.isupper())", "broken": "None"}
    source = "\n".join(f"def {name}(example, completion):\n    return {value}" for name, value in functions.items())
    source += "\nNUMBER = 3\n"
    (tmp_path / "own_rewards_of_a_user.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert rewards.total(CHOICES, "HEY", {"own_rewards_of_a_user:shout": 0.5})[0] == 0.5
    with pytest.raises(ScoringError, match="gave None for example 'x'"):
        rewards.total(CHOICES, "HEY", {"own_rewards_of_a_user:broken": 1.0})
    with pytest.raises(ConfigError, match="is a int, not a function"):
        rewards.load_reward("own_rewards_of_a_user:NUMBER")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        rewards.load_reward("own_rewards_of_a_user:absent")


def test_unknown_rewards() -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        rewards.load_reward("acuracy")
    with pytest.raises(ConfigError, match=r"file\.py:function"):
        rewards.load_reward("zzz")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        rewards.load_reward("no_such_module_anywhere:f")


def test_imports_no_torch() -> None:
    code = "import sys, earwise.algorithms.rewards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


QUESTION = Example("x", (), answer=("car horn",), choices=("dog", "car horn"))
CORRECT, WRONG = "<answer>car horn</answer>", "<answer>dog</answer>"


def with_reasoning(reasoning: int | str, answer: str = CORRECT) -> str:
    """A completion with the given reasoning, or with as many words of it."""
    text = reasoning if isinstance(reasoning, str) else " ".join(["w"] * reasoning)
    return f"<think>{text}</think>{answer}"


@pytest.mark.parametrize(
    ("words", "value"), [(0, 0.0), (7, 0.2), (35, 1.0), (50, 1.0), (75, 0.5), (100, 0.0), (300, 0.0)]
)
def test_brevity(words: int, value: float) -> None:
    assert rewards.brevity(QUESTION, with_reasoning(words)) == pytest.approx(value)
    assert rewards.brevity(QUESTION, with_reasoning(words).replace("</answer>", "")) == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It is loud.", 0.25),
        ("It is loud, loud, and louder noise.", 0.25),
        ("First it is loud, but then quiet; so a horn.", 1.0),
        ("Because it is loud.", 0.5),
        ("Soothing butter thenar.", 0.0),
        ("", 0.0),
    ],
)
def test_keyword_counts_families_once(text: str, value: float) -> None:
    assert rewards.keyword(QUESTION, with_reasoning(text)) == value
    assert rewards.keyword(QUESTION, with_reasoning(text, answer="")) == 0.0


@pytest.mark.parametrize(
    ("completion", "adaptive", "consistent", "form"),
    [
        (CORRECT, 2, 3, 1),
        (WRONG, -1, -1, 1),
        (with_reasoning("A car horn."), 1, 1.5, 1),
        (with_reasoning("A dog."), 1, 1, 1),
        (with_reasoning("A dog.", WRONG), 0, 0, 1),
        (with_reasoning("A car horn.", WRONG), 0, 0, 1),
        (with_reasoning("", CORRECT), 2, 3, 0),
        ("car horn", -1, -1, 0),
        ("<think>It is long and never", 0, 0, 0),
        ("", -1, -1, 0),
    ],
)
def test_adaptive_thinking(completion: str, adaptive: float, consistent: float, form: float) -> None:
    assert rewards.adaptive_thinking(QUESTION, completion) == adaptive
    assert rewards.adaptive_consistent(QUESTION, completion) == consistent
    assert rewards.format_adaptive(QUESTION, completion) == form


def test_the_more_frequent_behaviour_earns_less() -> None:
    for share in (0.0, 0.3, 0.5, 0.7, 1.0):
        think, answer = reward_factors(share, 0.25)
        assert (think < answer) == (share > 0.5) or share == 0.5
        correct, wrong = (rewards.adaptive_thinking(QUESTION, with_reasoning("w", final)) for final in (CORRECT, WRONG))
        lower = rewards.adaptive_thinking(QUESTION, with_reasoning("w", WRONG), think=think)
        assert correct == 1 and wrong == 0 and lower == think - 1 <= 0
