"""The checks see what they are for, and the bundled starter set passes them."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import earwise
from earwise.build import checks, starter
from earwise.data import manifest
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

STARTER = Path(earwise.__file__).parent / "assets" / "starter"


def ask(number, answer="a", choices=("a", "b", "c", "d"), *, question="What?", audio=None, **fields):
    turns = (Turn("user", (Audio(audio or f"{number}.wav"), Text(question))),)
    fields = {"licence": "CC0", "group": f"g{number}"} | fields
    return Example(f"q{number}", turns, (answer,), tuple(choices), **fields)


def fair(count=200, seed=0):
    rng = random.Random(seed)
    return [ask(number, rng.choice("abcd"), rng.sample("abcd", 4)) for number in range(count)]


def first_problem(examples, **settings):
    found = checks.check(examples, listen=False, **settings)["problems"]
    return found[0] if found else ""


def test_fair_questions_pass():
    report = checks.check(fair(), listen=False, strict=True)
    assert report["problems"] == [] and report["n"] == 200 and report["licences"] == {"CC0": 200}
    rate = report["bias"]["position"]
    assert rate["chance"] == 0.25 and rate["n"] == 200 and rate["low"] < 0.25 < rate["high"]
    json.dumps(report, allow_nan=False)


def test_chance_counts_the_options_of_each_question():
    mixed = [ask(n, "a", "ab") for n in range(30)] + [ask(30 + n, "a", "abcde") for n in range(30)]
    assert checks.bias(mixed)["longest"]["chance"] == pytest.approx(0.35)
    assert checks.bias(mixed)["longest"]["accuracy"] == pytest.approx(0.35)  # all as long: ties are shared


def test_position():
    biased = [replace(example, choices=tuple(sorted(example.choices, key=lambda c: c != example.answer[0])))
              for example in fair()]  # fmt: skip
    assert checks.bias(biased)["position"]["accuracy"] == 1.0
    assert "the position listener is right 1.000 of 200, chance is 0.250" in first_problem(biased)


def test_longest_option():
    biased = []
    for example in fair():
        choices = tuple(choice + "!" * (choice == example.answer[0]) for choice in example.choices)
        biased.append(replace(example, choices=choices, answer=(example.answer[0] + "!",)))
    assert checks.bias(biased)["longest"]["accuracy"] == 1.0 and checks.bias(biased)["shortest"]["accuracy"] == 0.0
    assert "the longest listener" in first_problem(biased)


def test_frequent_answers():
    rng = random.Random(0)
    biased = [ask(n, "a" if rng.random() < 0.6 else rng.choice("bcd"), rng.sample("abcd", 4)) for n in range(200)]
    assert checks.bias(biased)["blind"]["accuracy"] > 0.5
    assert "the blind listener" in first_problem(biased)


def test_questions_that_tell_the_answer():
    """Yes/no questions that are mostly right for one name and wrong for the other; the options alone are balanced."""
    rng = random.Random(0)
    biased = []
    for number in range(200):
        name, answer = rng.choice([("dog", "yes"), ("cat", "no")])
        biased.append(ask(number, answer, rng.sample(("yes", "no"), 2), question=f"Is it a {name}?"))
    assert checks.bias(biased)["blind"]["accuracy"] > 0.95


def test_bias_learnt_on_train_is_looked_for_in_val():
    rng = random.Random(0)
    train = [ask(n, "a" if rng.random() < 0.7 else "b", rng.sample("abcd", 4)) for n in range(100)]
    val = [ask(f"v{n}", example.answer[0], example.choices, split="val") for n, example in enumerate(train)]
    rate = checks.check(train + val, listen=False)["bias_by_split"]["val"]["blind_from_train"]
    assert rate["accuracy"] > 0.6


def test_leaks():
    shared = [ask(1, group="g"), ask(2, "b", group="g", split="val")]
    assert first_problem(shared) == "leak: group 'g' is in train and val; keep a group in one split"
    same = [ask(1, audio="x.wav"), ask(2, audio="x.wav", question="Which?", split="val")]
    assert "file x.wav is in train and val" in first_problem(same)


def test_conflicts_and_duplicates():
    clash = [ask(1, audio="x.wav"), ask(2, "b", ("d", "c", "b", "a"), audio="x.wav", group="g1")]
    assert "q1 says 'a', q2 says 'b' to one question" in first_problem(clash)
    twice = [ask(1, audio="x.wav"), ask(2, audio="x.wav", group="g1")]
    assert "q1 and q2 are one question" in first_problem(twice)
    captions = [replace(example, task="caption", choices=()) for example in clash]
    assert first_problem(captions) == ""


def test_licence():
    assert "1 clips name none" in first_problem([ask(1, licence="")])


def test_sounds_are_listened_to(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 800)
    soundfile.write(tmp_path / "1.wav", wave, 16000)
    (tmp_path / "2.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    soundfile.write(tmp_path / "3.wav", np.zeros(800), 16000)
    (tmp_path / "4.wav").touch()
    examples = [replace(ask(n), root=tmp_path, split="val" if n == 2 else "train") for n in range(1, 5)]
    report = checks.check(examples)
    assert report["silent"] == [str(tmp_path / "3.wav")] and len(report["broken"]) == 1
    assert "1.wav (train) and" in report["copies"][0] and "2.wav (val)" in report["copies"][0]
    assert [line.split(":")[0] for line in report["problems"]] == ["copy", "silent", "broken"]
    with pytest.raises(DataError, match=r"copy: .* \(3 problems in all; see the report\)"):
        checks.check(examples, strict=True)


def test_unlabelled_rows_and_few_questions_are_no_problem():
    assert first_problem([replace(ask(1), answer=(), choices=())]) == ""
    assert first_problem(fair(4)) == "" and checks.bias([]) == {}


def test_the_bundled_set_is_sound():
    train, val = manifest.read(STARTER / "train.jsonl"), manifest.read(STARTER / "val.jsonl")
    report = checks.check([*train, *val], strict=True)
    assert len(val) >= 400 and len(train) >= 700
    for split in ("train", "val"):
        for rate in report["bias_by_split"][split].values():
            assert rate["low"] <= rate["chance"]
    unseen = report["bias_by_split"]["val"]["blind_from_train"]
    assert unseen["low"] <= unseen["chance"] <= unseen["high"]


def test_the_bundled_clips_are_the_listed_ones():
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == {f"clips/{path.name}" for path in (STARTER / "clips").iterdir()}
    asked = {path for name in ("train", "val") for example in manifest.iterate(STARTER / f"{name}.jsonl")
             for path in example.audio_paths}  # fmt: skip
    assert asked == {STARTER / row["path"] for row in rows}
    assert sum(path.stat().st_size for path in STARTER.rglob("*") if path.is_file()) <= 8_000_000
    assert (STARTER / "ATTRIBUTION.md").read_text() == starter.attribution(rows)


def test_only_committable_clips_are_chosen_and_smallest_first():
    def row(number, **fields):
        base = {
            "path": f"{number:02}.ogg",
            "labels": [("dog", "cat")[number % 2]],
            "category": "sound",
            "group": str(number),
        }
        return base | {"split": "train", "committable": True, "bytes": 100 + number} | fields

    rows = [row(number) for number in range(20)]
    rows += [row(30, committable=False), row(31, split="val"), row(32, split="val", labels=["notification_x"])]
    chosen = starter.choose(rows, budget_bytes=1000)
    assert [one["path"] for one in chosen] == [f"{number:02}.ogg" for number in (*range(8), 31)]
    assert Counter(one["labels"][0] for one in chosen if one["split"] == "train") == {"dog": 4, "cat": 4}
    with pytest.raises(DataError, match="val clips take 131 bytes, the budget is 100"):
        starter.choose(rows, budget_bytes=100)
