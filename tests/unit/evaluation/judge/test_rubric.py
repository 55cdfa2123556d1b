"""A rubric file: what it must hold, and how its replies are read."""

from pathlib import Path

import pytest

from earwise.errors import ConfigError
from earwise.evaluation.judge.replies import read_json_score
from earwise.evaluation.judge.rubric import read_rubric
from earwise.types import Example, Text, Turn

ROW = {
    "id": "a", "permutation": 0, "output": "<think>x</think>Rain.", "answer": "Rain", "reasoning": "x",
    "choices": ["Rain", "Wind"],
}  # fmt: skip


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_placeholders_and_scale(tmp_path: Path) -> None:
    text = 'name: mine/2\nscale: [0, 10]\nsystem: Be fair.\nprompt: "{question} {reference} {answer} {choices} {x}"\n'
    judging = read_rubric(write(tmp_path / "r.yaml", text))
    example = Example("a", (Turn("user", (Text("What?"),)),), answer=("Rain",))
    (request,) = judging.requests(example, ROW)
    system, user = (message["content"] for message in request.messages)
    assert system == "Be fair." and user.startswith("What? Rain Rain Rain, Wind {x}")
    assert "N from 0 (worst) to 10 (best)" in user and request.prompt == "mine/2"
    assert judging.score(example, ROW, {"rubric": 4.0}) == {"rubric": 0.4}
    assert judging.score(example, ROW, {}) == {"rubric": 0.0}
    for good, value in ((True, 10.0), (False, 0.0)):
        assert judging.read(example, "rubric", judging.sample_reply(example, "rubric", good)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no rubric"),
        ("name: a\nprompt: b", "write all three"),
        ("name: a\nscale: [5, 1]\nprompt: '{response}'", "the worst and the best"),
        ("name: a\nscale: [1, .inf, 3]\nprompt: '{response}'", "the worst and the best"),
        ("name: a\nscale: [1, 5]\nprompt: 'Is it good?'", "shows the judge no answer"),
        ("name: a\nscale: [1, 5]\nprompt: '{response}'\ntemperature: 1", "unknown key 'temperature'"),
    ],
    ids=["yaml", "keys", "scale order", "scale length", "no answer", "unknown key"],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_rubric(write(tmp_path / "r.yaml", text))
    with pytest.raises(ConfigError, match="no rubric"):
        read_rubric(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 3}', 3.0), ('```json\n{"score": 3.5}\n```', 3.5), ('{"score": "4"} and {"score": 2}', 2.0),
        ('{"score": true}', None), ('{"score": NaN}', None), ("4", None), ('{"score": null}', None), ("", None),
        ('<think>{"score": 5}', None),
    ],
    ids=["plain", "fenced", "last", "flag", "nan", "bare", "null", "empty", "cut off"],
)  # fmt: skip
def test_replies(reply: str, score: float | None) -> None:
    assert read_json_score(reply, 1, 5) == score
