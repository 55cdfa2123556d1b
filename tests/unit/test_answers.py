"""Parsing of completions: which answers are recognised, and that nothing is ever guessed."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from earwise.answers import (
    answer_blocks,
    extract_answer,
    extract_answer_r1aqa,
    mentions,
    option_index,
    parse,
    parse_sections,
    split_reasoning,
)
from earwise.answers.option_texts import normalise

ANIMALS = ("dog barking", "cat", "car horn", "dog")
PAIR = ("Like", "Dislike")


@pytest.mark.parametrize(
    ("text", "choices", "index"),
    [
        ("car horn", ANIMALS, 2),
        ("<answer>Car Horn.</answer>", ANIMALS, 2),
        ("<answer>\n car  horn \n</answer>", ANIMALS, 2),
        ("<ANSWER>cat</ANSWER>", ANIMALS, 1),
        ("<RESPONSE>cat</RESPONSE>", ANIMALS, 1),
        ("<think>dog or cat</think>\n<answer>cat</answer>", ANIMALS, 1),
        ("<think><answer>dog</answer></think><answer>cat</answer>", ANIMALS, 1),
        ("It may be a dog. <answer>cat</answer>", ANIMALS, 1),
        ("it could be a dog</think>cat", ANIMALS, 1),
        ("<answer>cat</answer> because it is not a dog", ANIMALS, 1),
        ("<answer>cat</answer><answer>Cat</answer>", ANIMALS, 1),
        ("<answer>B</answer><answer>cat</answer>", ANIMALS, 1),
        ("<answer><answer>cat</answer></answer>", ANIMALS, 1),
        ("<think>never closed <answer>cat</answer>", ANIMALS, 1),
        ("I hear fur.\nANSWER: B", ANIMALS, 1),
        ("ANSWER: A\nno, wait\nAnswer: B", ANIMALS, 1),
        ("**Final answer:** car horn", ANIMALS, 2),
        ("B", ANIMALS, 1),
        ("(b)", ANIMALS, 1),
        ("C.", ANIMALS, 2),
        ("D. dog", ANIMALS, 3),
        ("(A) dog barking", ANIMALS, 0),
        ("The answer is B.", ANIMALS, 1),
        ("I would say the correct answer is **C**, clearly.", ANIMALS, 2),
        ("Option B because of the purr", ANIMALS, 1),
        ("A dog barking loudly", ANIMALS, 0),
        ("I hear a dog", ANIMALS, 3),
        ("$\\boxed{\\text{cat}}$", ANIMALS, 1),
        ('{"answer": "cat"}', ANIMALS, 1),
        ("<b>cat</b>", ANIMALS, 1),
        ("E. dog", ANIMALS, 3),
        ("Not familiar", ("Familiar", "Not familiar"), 1),
        ("It is not familiar", ("Familiar", "Not familiar"), 1),
        ("No, it is silent.", ("Yes", "No"), 1),
        ("The answer is no.", ("Yes", "No"), 1),
        ("C", ("F", "C", "G", "E"), 1),
        ("The answer is C.", ("F", "C", "G", "E"), 1),
        ("C#", ("C", "C#"), 1),
        ("-5", ("5", "-5"), 1),
        ("There are 12 of them", ("2", "12"), 1),
        ("It’s “loud”", ("it's quiet", 'it\'s "loud"'), 1),
        ("答案是电钢琴。", ("钢琴", "电钢琴", "吉他"), 1),
        ("eight", ("seven", "eight", "eight"), 1),
        ("C", ("seven", "eight", "eight"), 1),
        ("Dog", ("dog", "Dog", "cat"), 1),
        ("...", ("...", "!!!"), 0),
        ("The answer is B. Note that option A is a common distractor.", ANIMALS, 1),
        ("ANSWER IS C. (A) is incorrect.", ANIMALS, 2),
        ("I considered (A), but it is incorrect. Final answer: B.", ANIMALS, 1),
        ("The correct answer is B. Here is why: the call is short, so option B fits better than option A.", ANIMALS, 1),
        ("The correct answer is b.", ANIMALS, 1),
        ("Yes, the stone carries a death notice.", ("yes", "no"), 0),
    ],
)
def test_parsed_answers(text: str, choices: tuple[str, ...], index: int) -> None:
    parsed = parse(text, choices)
    assert (parsed.status, parsed.choice, parsed.answer) == ("ok", index, choices[index])


@pytest.mark.parametrize(
    ("text", "choices", "status"),
    [
        ("", ANIMALS, "unparsed"),
        (" \n", ANIMALS, "unparsed"),
        ("<answer></answer>", ANIMALS, "unparsed"),
        ("<answer>bird</answer>", ANIMALS, "unparsed"),
        ("<answer>cat", ANIMALS, "unparsed"),
        ("<answer>cat<answer>", ANIMALS, "unparsed"),
        ("<think>It is a cat", ANIMALS, "unparsed"),
        ("<think>It is a <answer>cat</answer> or so", ANIMALS, "unparsed"),
        ("<think>cat</think>", ANIMALS, "unparsed"),
        ("hotdog", ANIMALS, "unparsed"),
        ("E", ANIMALS, "unparsed"),
        ("A loud noise", ANIMALS, "unparsed"),
        ("This is not a cat", ANIMALS, "unparsed"),
        ("I have no idea", ("Yes", "No"), "unparsed"),
        ("No one knows", ("one", "two"), "unparsed"),
        ("I cannot hear a sound", ("a", "b", "c", "d"), "unparsed"),
        ("Sorry, I cannot hear any audio.", ANIMALS, "unparsed"),
        ("The answer is not B.", ANIMALS, "unparsed"),
        ("dog or cat", ANIMALS, "ambiguous"),
        ("Yes or No", ("Yes", "No"), "ambiguous"),
        ("It is Like, not Dislike.", PAIR, "ambiguous"),
        ("<answer>dog</answer><answer>cat</answer>", ANIMALS, "ambiguous"),
        ("<answer>cat</answer><answer>bird</answer>", ANIMALS, "ambiguous"),
        ("(A) cat", ANIMALS, "ambiguous"),
        ("The answer is B. I hear a car horn.", ANIMALS, "ambiguous"),
        ("The answer is A. No, the answer is B.", ANIMALS, "ambiguous"),
        ("Final answer: B. Or the answer is C.", ANIMALS, "ambiguous"),
        ("the answer is 14004", ("94107", "-8", "94106"), "unparsed"),
        ("A. dog barking\nB. cat\nC. car horn", ANIMALS, "ambiguous"),
        ("DOG", ("dog", "Dog", "cat"), "ambiguous"),
    ],
)
def test_unparsed_and_ambiguous_answers(text: str, choices: tuple[str, ...], status: str) -> None:
    parsed = parse(text, choices)
    assert parsed.status == status
    assert parsed.answer is None and parsed.choice is None


@pytest.mark.parametrize(
    ("text", "answer", "status"),
    [
        ("a dog barks", "a dog barks", "ok"),
        ("<think>fur</think> <answer> A dog. </answer>", "A dog.", "ok"),
        ("<answer>a</answer><answer>b</answer>", None, "ambiguous"),
        ("<answer>a dog", None, "unparsed"),
        ("  ", None, "unparsed"),
    ],
)
def test_free_answers(text: str, answer: str | None, status: str) -> None:
    parsed = parse(text)
    assert (parsed.answer, parsed.choice, parsed.status) == (answer, None, status)


def test_reasoning() -> None:
    assert parse("<think> fur </think><answer>cat</answer>", ANIMALS).reasoning == "fur"
    assert parse("It purrs. <answer>cat</answer>", ANIMALS).reasoning == "It purrs."
    assert parse("opened by the prompt</think>cat", ANIMALS).reasoning == "opened by the prompt"
    assert parse("<answer>cat</answer>", ANIMALS).reasoning is None
    assert parse("cat", ANIMALS).reasoning is None
    assert split_reasoning("<think>a</think>x<think>b</think>y") == ("a\nb", "x y")


def test_structured_reasoning() -> None:
    text = "<think><planning>p</planning>\n<caption>a dog</caption><reasoning>r</reasoning><summary>s</summary></think>"
    parsed = parse(text + "<answer>cat</answer>", ANIMALS)
    assert (parsed.answer, parsed.status) == ("cat", "ok")
    assert parse_sections(parsed.reasoning or "") == {
        "planning": "p",
        "caption": "a dog",
        "reasoning": "r",
        "summary": "s",
    }
    bare = parse("<PLANNING>dog</PLANNING><SUMMARY>dog</SUMMARY><RESPONSE>cat</RESPONSE>", ANIMALS)
    assert (bare.answer, bare.reasoning) == ("cat", "dog\ndog")


def test_helper_functions() -> None:
    assert normalise(" ‘A  Dog!’ ") == "a dog"
    assert normalise("$100") == "$100" and normalise("(C#)") == "c#"
    assert answer_blocks("<think><answer>x</answer></think><answer> y </answer>z<answer>w</answer>") == ("y", "w")
    assert (
        extract_answer("so <answer> Cat. </answer>") == "Cat."
        and extract_answer("<answer>a</answer><answer>b</answer>") is None
    )
    assert (
        option_index(" cat ", ANIMALS) == 1
        and option_index("", ("", "x")) == 0
        and option_index("bird", ANIMALS) is None
    )
    assert mentions("a Car  horn!", "car horn") and not mentions("car, or horn", "car horn") and not mentions("x", "")
    assert extract_answer_r1aqa("<answer>a\nb</answer>") == "<answer>a\nb</answer>"


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<caption>", "\\boxed{", "}"]
WORDS = [
    "A",
    "b",
    "(C)",
    "dog",
    "cat",
    "car horn",
    "ANSWER:",
    "answer is",
    "not",
    "or",
    "no",
    " ",
    "\n",
    ".",
    "é",
    "电",
    "\x00",
]
PIECES = st.sampled_from(TAGS + WORDS)
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(PIECES, max_size=12).map("".join), st.lists(PIECES, max_size=12).map(" ".join)
)
CHOICES = st.lists(st.one_of(st.sampled_from(ANIMALS), st.text(max_size=12)), max_size=6).map(tuple)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, choices=CHOICES)
@example(text="<think>" * 50 + "</answer>", choices=("a",))
def test_never_raises_and_never_guesses(text: str, choices: tuple[str, ...]) -> None:
    parsed = parse(text, choices)
    if parsed.status != "ok":
        assert parsed.answer is None and parsed.choice is None
        return
    assert parsed.answer is not None
    if not choices:
        assert parsed.choice is None and all(word in text for word in parsed.answer.split())
        return
    assert parsed.choice is not None and choices[parsed.choice] == parsed.answer
    equal_options = [index for index, choice in enumerate(choices) if choice.strip() == parsed.answer.strip()]
    assert parsed.choice == equal_options[0]  # options with equal texts count as one, whichever letter names it
    answer_text = "".join(split_reasoning(text)[1].casefold().split())
    words = [word for word in normalise(parsed.answer).split() if word]
    assert any(chr(ord("a") + index) in answer_text for index in equal_options) or all(
        normalise(word).replace("“", '"') in normalise(answer_text) or word in answer_text for word in words
    )


@settings(max_examples=80, deadline=None)
@given(text=TEXTS, choices=CHOICES, seed=st.randoms(use_true_random=False))
def test_option_order_matters_only_for_letters(text: str, choices: tuple[str, ...], seed: object) -> None:
    """In a text without option letters, the parsed option does not depend on the order of the options."""
    distinct = tuple(dict.fromkeys(choice.strip() for choice in choices if len(choice.strip()) > 1))
    plain = "".join(
        character
        for character in text
        if not (character.isascii() and character.isalpha() and character in "ABCDEFabcdef")
    )
    assert parse(plain, distinct).answer == parse(plain, distinct[::-1]).answer


@settings(max_examples=80, deadline=None)
@given(
    choices=st.lists(st.text("abcdXYZ 0123#-$%", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=6),
    data=st.data(),
)
def test_gold_answer_is_always_parsed(choices: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(choices) - 1))
    gold = choices[index]
    for text in (gold, f"<answer>{gold}</answer>", f"<think>{choices[0]}?</think>\n<answer> {gold} </answer>"):
        parsed = parse(text, tuple(choices))
        assert parsed.status == "ok" and parsed.answer is not None and parsed.answer.strip() == gold.strip()
