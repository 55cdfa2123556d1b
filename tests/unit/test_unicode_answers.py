"""Texts are compared as people mean them: Unicode forms, options with letters of their own, Chinese and Japanese."""

import itertools
import unicodedata

import pytest

from earwise.algorithms.rewards import accuracy
from earwise.answers import mentions, option_index, parse
from earwise.answers.option_texts import canonical, normalise
from earwise.errors import ScoringError
from earwise.evaluation.metrics.mmau import score, string_match
from earwise.training.rollout.judge import parse_score
from earwise.types import Example, Text, Turn

LABELLED = ("(A) Man", "(D) Robot", "(B) Woman", "(C) Child")


def row(answer: str, *choices: str) -> Example:
    return Example("e", (Turn("user", (Text("?"),)),), (answer,), choices)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("C", 3), ("(B)", 2), ("The answer is D.", 1), ("d", 1), ("Robot", 1), ("(D) Robot", 1),
        ("<answer>woman</answer>", 2),
        ("Answer: A", 0), ("It is a robot.", 1), ("B) Woman", 2),
    ],
)  # fmt: skip
def test_the_letter_that_an_option_carries_wins(text: str, index: int) -> None:
    assert parse(text, LABELLED).choice == index


def test_a_letter_against_the_text_is_ambiguous() -> None:
    assert parse("(A) Robot", LABELLED).status == "ambiguous"
    assert parse("E", LABELLED).status == "unparsed"


@pytest.mark.parametrize("choices", [("(A) Man", "Robot", "Woman"), ("(A) Man", "(A) Robot", "(B) Woman")])
def test_letters_are_not_read_where_they_are_not_certain(choices: tuple[str, ...]) -> None:
    for letter in "ABC":
        assert parse(letter, choices).choice is None
    assert parse(choices[-1], choices).choice == 2


def test_every_labelled_order_and_letter() -> None:
    """24 orders of the labels x 4 letters: the option with the letter is named, never the one at its place."""
    texts = ("Man", "Robot", "Woman", "Child")
    for order in itertools.permutations("ABCD"):
        choices = tuple(f"{letter}. {text}" for letter, text in zip(order, texts, strict=True))
        for letter in "ABCD":
            for reply in (letter, f"({letter})", f"<answer>{letter}</answer>"):
                assert parse(reply, choices).choice == order.index(letter)


@pytest.mark.parametrize(
    "reply",
    [
        "答案是A",
        "答案是 A。",
        "选A。",
        "選A",
        "\uff21",
        "\uff08\uff21\uff09",
        "答案：\uff08A\uff09",
        "正确答案是A。",
        "答えはAです。",
    ],
)
def test_letters_in_chinese_and_japanese(reply: str) -> None:
    assert parse(reply, ("犬", "猫")).choice == 0
    assert parse(f"<answer>{reply}</answer>", ("dog", "cat")).choice == 0


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("答えは犬です。", 0), ("犬です", 0), ("犬", 0), ("答案是猫。", 1), ("答えは猫だ", 1),
        ("犬ではありません。", None),
        ("答えは犬ではない", None), ("不是犬", None), ("犬か猫です", None), ("犬と猫の鳴き声", None),
    ],
)  # fmt: skip
def test_options_of_one_character(reply: str, choice: int | None) -> None:
    assert parse(reply, ("犬", "猫")).choice == choice


def test_japanese_denials_of_longer_options() -> None:
    assert parse("小型犬ではありません。", ("小型犬", "子猫")).status == "unparsed"
    assert parse("小型犬ではなく子猫です。", ("小型犬", "子猫")).status == "ambiguous"
    assert parse("小型犬です。", ("小型犬", "子猫")).choice == 0


def test_options_that_contain_each_other() -> None:
    choices = ("dog", "dog barking", "a dog barking loudly")
    assert [parse(choice, choices).choice for choice in choices] == [0, 1, 2]
    assert parse("It is a dog barking loudly.", choices).choice == 2
    assert parse("狗叫声", ("狗", "狗叫声")).choice == 1


FORMS = [
    ("Caf\u00e9", "Cafe\u0301"),
    ("\u30ac\u30e9\u30b9", "\u30ab\u3099\u30e9\u30b9"),
    ("dog 12", "\uff44\uff4f\uff47\u3000\uff11\uff12"),
    ("dog", "do\u200bg\ufeff"),
    ("STRASSE", "stra\u00dfe"),
]


@pytest.mark.parametrize(("one", "other"), FORMS)
def test_forms_of_one_text_are_equal_in_rewards_parser_and_scores(one: str, other: str) -> None:
    for gold, said in ((one, other), (other, one)):
        assert normalise(gold) == normalise(said)
        assert option_index(said, ("cat", gold)) == 1 and parse(said, ("cat", gold)).choice == 1
        assert mentions(f"I hear {said}, far away", gold)
        for choices in ((), ("cat", gold)):
            assert accuracy(row(gold, *choices), f"<answer>{said}</answer>") == 1
            assert score(row(gold, *choices), said).values["lenient"] == 1
    assert accuracy(row(unicodedata.normalize("NFC", one), other, "cat"), f"<answer>{one}</answer>") == float(
        canonical(one) == canonical(other)
    )


def test_strict_is_letter_for_letter_in_any_form() -> None:
    assert score(row("Caf\u00e9", "Caf\u00e9", "Bar"), "Cafe\u0301").values["strict"] == 1
    assert score(row("Caf\u00e9", "Caf\u00e9", "Bar"), "caf\u00e9").values["strict"] == 0


def test_options_that_differ_in_form_only_must_be_repeated_exactly() -> None:
    choices = ("Dog", "dog")
    assert option_index("DOG", choices) is None and option_index("dog", choices) == 1


def test_official_verdicts_do_not_change() -> None:
    """The official matcher sees code points, in whatever form they come."""
    assert not string_match("Caf\u00e9", "Cafe\u0301", ["Caf\u00e9", "Bar"])
    assert not string_match("dog", "\uff44\uff4f\uff47", ["dog", "cat"])
    assert score(row("dog", "dog", "cat"), "\uff44\uff4f\uff47").values["official"] == 0


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('<think>{"score": 1}</think>{"score": 5}', 1.0), ('{"score": "4"}', 0.75), ('{"score": 4.0}', 0.75),
        ('First {"score": 2}, no: {"score": 3}', 0.5), ('```json\n{"score": 5}\n```', 1.0), ('{"score": 4.5}', 0.875),
        ('{"score": 3} ({"note": 1})', 0.5),
    ],
)  # fmt: skip
def test_the_judge_s_final_score_counts(reply: str, expected: float) -> None:
    assert parse_score(reply, 5) == expected


@pytest.mark.parametrize(
    "reply",
    [
        '<think>{"score": 1}</think>',
        '{"score": true}',
        '{"score": 6}',
        '{"score": "good"}',
        "5",
        '{"score": NaN}',
        '{"score": null}',
    ],
)
def test_a_reply_without_a_final_score_is_an_error(reply: str) -> None:
    with pytest.raises(ScoringError, match="no score from 1 to 5"):
        parse_score(reply, 5)
