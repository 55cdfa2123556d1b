"""Options and answers as people type them."""

import pytest

from earwise.data.interchange.choice_cells import resolve_answer, split_choices, strip_letters
from earwise.errors import DataError


@pytest.mark.parametrize(
    ("cell", "choices"),
    [
        ('["dog", "cat, small"]', ("dog", "cat, small")),
        ("['dog', \"cat's\"]", ("dog", "cat's")),
        ('{"A": "dog", "B": "cat"}', ("dog", "cat")),
        ("dog|cat, small", ("dog", "cat, small")),
        ("dog; cat ;", ("dog", "cat")),
        ("dog\ncat\n", ("dog", "cat")),
        ("dog, cat", ("dog", "cat")),
        ("A) dog B) cat C) a cow", ("dog", "cat", "a cow")),
        ("(A) dog\n(B) cat", ("dog", "cat")),
        ("A. dog; B. cat", ("dog", "cat")),
        (["(A) dog", "(B) cat"], ("dog", "cat")),
        (["a.m.", "p.m."], ("a.m.", "p.m.")),
        (["B: dog", "A: cat"], ("B: dog", "A: cat")),
        ([1, 2, 10], ("1", "2", "10")),
        ("[unclear] | speech", ("[unclear]", "speech")),
        (None, ()),
        ("  ", ()),
    ],
)
def test_options_of_a_cell(cell: object, choices: tuple[str, ...]) -> None:
    assert split_choices(cell, "row 1") == choices


def test_a_value_that_is_no_list_is_refused_with_its_row() -> None:
    with pytest.raises(DataError, match=r"^t\.csv:row 3: choices is 7;"):
        split_choices(7, "t.csv:row 3")
    with pytest.raises(DataError, match="write a list of texts"):
        split_choices([["dog"], ["cat"]], "row 1")


def test_letters_are_taken_off_only_if_all_options_have_theirs_in_order() -> None:
    assert strip_letters(["A. dog", "B. cat"]) == ("dog", "cat")
    assert strip_letters(["A. dog", "cat"]) == ("A. dog", "cat")
    assert strip_letters(["a) dog"]) == ("a) dog",)


@pytest.mark.parametrize("answer", ["cat", "B", "b", "(B)", "B.", "B) cat", "(b) Cat", " CAT "])
def test_an_answer_is_a_text_a_letter_or_both(answer: str) -> None:
    assert resolve_answer(answer, ("dog", "cat"), "row 1") == "cat"


def test_an_option_that_is_a_letter_is_meant_by_its_text() -> None:
    assert resolve_answer("B", ("C", "B", "A"), "row 1") == "B"
    assert resolve_answer("A", ("C", "B", "A"), "row 1") == "A"


@pytest.mark.parametrize("answer", ["1", "E", "B) dog", "mouse", "cat dog"])
def test_an_answer_is_never_guessed(answer: str) -> None:
    with pytest.raises(DataError, match=r"^row 9: answer .* is none of the choices 'dog', 'cat'"):
        resolve_answer(answer, ("dog", "cat"), "row 9")
