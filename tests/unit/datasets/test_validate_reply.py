"""Checks of a teacher's replies: usable or not, and why; the language only on clear evidence."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from earwise.datasets.teachers.teacher import TeacherReply, TeacherRequest
from earwise.datasets.teachers.validate_reply import validate_reply, wrong_language


class Colour(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: str


def request_for(text: str, schema: type[BaseModel] | None = None, **more: Any) -> TeacherRequest:
    return TeacherRequest(id=text, kind="test", messages=({"role": "user", "content": text},), schema=schema, **more)


def test_validate_reply() -> None:
    def status(text: str, schema: type[BaseModel] | None = None, **more: Any) -> str:
        return validate_reply(TeacherReply(text, 0, 0), request_for("q", schema, **more)).status

    assert validate_reply(TeacherReply("", 0, 0, refused=True), request_for("q")).status == "refusal"
    assert validate_reply(TeacherReply("a b", 0, 0, finish_reason="length"), request_for("q")).status == "truncated"
    assert (
        validate_reply(TeacherReply('{"colour": "x"}', 0, 0, finish_reason="length"), request_for("q", Colour)).status
        == "ok"
    )
    assert status("<think>long</think>\n") == "empty"
    assert status("As an AI, I have no ears.") == "refusal"
    assert status("申し訳ありませんが、その依頼にはお応えできません。") == "refusal"
    assert status("Es tut mir leid, aber dabei kann ich nicht helfen.") == "refusal"
    # Texts that a translator may have to write
    for text in ("I'm sorry I am late.", "Es tut mir leid.", "Sorry, I can't hear the dog.", "Je ne sais pas."):
        assert status(text) == "ok", text
    assert status('{"colour": "I cannot help with that"}', Colour) == "ok"
    assert status('Sure! {"colour": "red"}', Colour) == "invalid"
    assert status('{"colour": "der Hund ist nicht in dem Haus und die Katze"}', Colour, language="en") == "language"
    assert status('{"colour": "red"}', Colour, language="en") == "ok"


@pytest.mark.parametrize(
    ("text", "expected", "wrong"),
    [
        ("A dog barks twice and then it rains.", "en", None),
        ("Ein Hund bellt und die Katze ist nicht da.", "en", "de"),
        ("Ein Hund bellt und die Katze ist nicht da.", "de", None),
        ("Le chien est dans la rue et les enfants sont avec une dame.", "en", "fr"),
        ("dog barking", "de", None),
        ("A dog barks.", "ja", "Latin script"),
        ("犬が二回吠えて、雨が降り始める。", "ja", None),
        ("狗叫了两声然后开始下大雨了天气很冷", "ja", "zh"),
        ("犬が二回吠えて、雨が降り始める。", "zh", "ja"),
        ("狗叫了两声，然后开始下雨。", "zh", None),
        ("狗叫了两声，然后开始下雨。", "en", "Han script"),
        ("Собака лает дважды.", "en", "Cyrillic script"),
        ("12 + 34", "en", None),
        ("anything at all", "xx", None),
    ],
)
def test_wrong_language_needs_clear_evidence(text: str, expected: str, wrong: str | None) -> None:
    assert wrong_language(text, expected) == wrong
