"""Questions in many wordings: validation meets none that were trained on, options do not give the answer away."""

import json
from collections import Counter
from pathlib import Path

import pytest

import earwise
from earwise import cli
from earwise.data import manifest
from earwise.datasets.labels import collection, label_names
from earwise.datasets.labels.varied import clip_questions as varied_questions
from earwise.datasets.labels.varied import wordings
from earwise.types import Example, Text

STARTER = Path(earwise.__file__).parent / "assets" / "starter"


def text(example: Example) -> str:
    return next(part.text for part in example.turns[0].parts if isinstance(part, Text))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rows, root = collection.load(STARTER / "labels.jsonl")
    return varied_questions.build_varied_questions(rows, root, seed=1, draws=3)


def test_a_wording_is_trained_on_or_validated_with_never_both() -> None:
    for table in (wordings.label_wordings(), wordings.question_wordings()):
        for key, words in table.items():
            train, val = ({word.removeprefix("~").lower() for word in side} for side in (words.train, words.val))
            assert train and not train & val, key
            assert len(train) == len(words.train), f"{key} has a wording twice"


def test_no_two_labels_of_a_field_share_a_wording() -> None:
    owners: dict[tuple[str, str], set[str]] = {}
    for key, words in wordings.label_wordings().items():
        field = key.split(".")[0]
        for word in (*words.train, *words.val):
            owners.setdefault((field, word.removeprefix("~").lower()), set()).add(key)
    shared = {word: keys for word, keys in owners.items() if len(keys) > 1}
    assert not shared


def test_validation_uses_no_wording_of_training(examples: list[Example]) -> None:
    trained = {word.removeprefix("~").lower() for words in wordings.label_wordings().values() for word in words.train}
    held_back = {word.removeprefix("~").lower() for words in wordings.label_wordings().values() for word in words.val}
    seen = {"train": set[str](), "val": set[str]()}
    for example in examples:
        if example.meta["form"] == "list":
            seen[example.split].update(
                choice.lower().removeprefix("a ").removeprefix("an ") for choice in example.choices
            )
    assert not seen["train"] & (held_back - trained)
    assert len(seen["val"] & held_back) > 20
    questions = {split: {text(e) for e in examples if e.split == split and e.task == "varied"} for split in seen}
    assert not questions["train"] & questions["val"]


def test_every_form_names_its_answer(examples: list[Example]) -> None:
    forms = Counter(example.meta["form"] for example in examples if example.split == "train")
    assert set(forms) == {"list", "sentence", "letters", "yes_no"}
    for example in examples:
        (answer,) = example.answer
        if example.choices:
            assert answer in example.choices and len(set(example.choices)) == len(example.choices)
        elif example.meta["form"] == "letters":
            assert answer in varied_questions.LETTERS and len(answer) == 1
            assert any(
                layout.format(letter=answer, option="") in text(example) for layout in varied_questions.LETTER_LAYOUTS
            )
        elif example.meta["form"] == "sentence":
            assert answer.lower() in text(example).lower()
        else:
            assert answer in ("yes", "no")
    assert {len(example.choices) for example in examples if example.split == "val"} <= {2, 3, 4}


def test_yes_is_as_frequent_as_no_and_labels_are_asked_as_often_as_they_are_true(examples: list[Example]) -> None:
    for split in ("train", "val"):
        answers = Counter(e.answer[0] for e in examples if e.meta["form"] == "yes_no" and e.split == split)
        assert answers["yes"] == answers["no"] > 20
    asked = Counter(
        (e.meta["field"], e.meta["asked"], e.answer[0])
        for e in examples
        if e.meta["form"] == "yes_no" and e.split == "train"
    )
    for (field, name, answer), count in asked.items():
        assert asked[field, name, "no" if answer == "yes" else "yes"] == count


def test_none_of_these_is_right_as_often_as_any_other_option() -> None:
    rows = [
        {"path": f"{number:04}.ogg", "labels": [label], "category": "sound", "group": f"g{number}", "split": "train"}
        for number, label in enumerate(("dog", "rain", "siren", "owl", "drilling", "cow", "train", "bell") * 150)
    ]
    built = varied_questions.build_varied_questions(rows, Path(), seed=3, draws=2)
    with_none = [e for e in built if set(e.choices) & set(varied_questions.NONE)]
    expected = sum(1 / len(e.choices) for e in with_none)
    right = sum(e.answer[0] in varied_questions.NONE for e in with_none)
    assert len(with_none) > 60 and abs(right - expected) < 3 * expected**0.5


def test_scenes_are_asked_about_what_their_plan_says(tmp_path: Path) -> None:
    out = tmp_path / "scenes.jsonl"
    command = ["build", "labels", str(STARTER / "labels.jsonl"), "--out", str(out), "--limit", "12", "--workers", "1"]
    assert cli.run([*command, "--tasks", "varied,order,count,louder", "--no-check", "--draws", "1"]) == 0
    rows = [example for example in manifest.read(out) if "events" in example.meta]
    labels = varied_questions.labels_by_name(collection.load(STARTER / "labels.jsonl")[0])
    tasks = Counter(example.task for example in rows)
    assert {"presence", "before", "order", "louder", "count"} <= set(tasks)
    for example in rows:
        names = [event["label"] for event in example.meta["events"]]
        words = {
            name: {
                w.removeprefix("~") for w in wordings.label_wordings()[".".join(labels[name])].of_split(example.split)
            }
            | {name}
            for name in names
            if ".".join(labels[name]) in wordings.label_wordings()
        }
        if example.meta["field"] == "first" and names[0] in words:
            assert any(word in example.answer[0] for word in words[names[0]])
        if example.task == "count":
            assert example.answer[0] in label_names.NUMBERS
    presence = Counter(example.answer[0] for example in rows if example.task == "presence")
    assert min(presence["yes"], presence["no"]) > 0.25 * sum(presence.values())


def test_the_command_builds_the_same_questions_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        command = ["build", "labels", str(STARTER / "labels.jsonl"), "--out", str(tmp_path / name / "q.jsonl")]
        assert cli.run([*command, "--tasks", "varied", "--draws", "1", "--workers", "1", "--no-check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]["varied"] > 100
    assert (tmp_path / "a/q.jsonl").read_bytes() == (tmp_path / "b/q.jsonl").read_bytes()
