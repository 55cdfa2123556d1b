"""The checks of a data set detect the problems they are meant for."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earwise.cli import run
from earwise.datasets.checks import blind_model, html_report
from earwise.datasets.checks.check_examples import MAX_LISTED, check_examples
from earwise.datasets.checks.check_manifests import MAX_BAD_ROWS
from earwise.datasets.checks.text_baselines import bias
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn


def make_example(number, answer="a", choices=("a", "b", "c", "d"), *, question="What?", audio=None, **fields):
    turns = (Turn("user", (Audio(audio or f"{number}.wav"), Text(question))),)
    fields = {"licence": "CC0", "group": f"g{number}"} | fields
    return Example(f"q{number}", turns, (answer,), tuple(choices), **fields)


def unbiased(count=200, seed=0):
    rng = random.Random(seed)
    return [make_example(number, rng.choice("abcd"), rng.sample("abcd", 4)) for number in range(count)]


def first_problem(examples, **settings):
    problems = check_examples(examples, read_audio=False, **settings)["problems"]
    return problems[0] if problems else ""


def test_unbiased_questions_pass():
    report = check_examples(unbiased(), read_audio=False, strict=True)
    assert report["problems"] == [] and report["n"] == 200 and report["licences"] == {"CC0": 200}
    rate = report["bias"]["position"]
    assert rate["chance"] == 0.25 and rate["n"] == 200 and rate["low"] < 0.25 < rate["high"]
    json.dumps(report, allow_nan=False)


def test_chance_counts_the_options_of_each_question():
    mixed = [make_example(n, "a", "ab") for n in range(30)] + [make_example(30 + n, "a", "abcde") for n in range(30)]
    assert bias(mixed)["longest"]["chance"] == pytest.approx(0.35)
    assert bias(mixed)["longest"]["accuracy"] == pytest.approx(
        0.35
    )  # all options have the same length: ties share the credit


def test_position():
    biased = [replace(example, choices=tuple(sorted(example.choices, key=lambda c: c != example.answer[0])))
              for example in unbiased()]  # fmt: skip
    assert bias(biased)["position"]["accuracy"] == 1.0
    assert "the position baseline is right 1.000 of 200, chance is 0.250" in first_problem(biased)


def test_longest_option():
    biased = []
    for example in unbiased():
        choices = tuple(choice + "!" * (choice == example.answer[0]) for choice in example.choices)
        biased.append(replace(example, choices=choices, answer=(example.answer[0] + "!",)))
    assert bias(biased)["longest"]["accuracy"] == 1.0 and bias(biased)["shortest"]["accuracy"] == 0.0
    assert "the longest baseline" in first_problem(biased)


def test_frequent_answers():
    rng = random.Random(0)
    biased = [
        make_example(n, "a" if rng.random() < 0.6 else rng.choice("bcd"), rng.sample("abcd", 4)) for n in range(200)
    ]
    assert bias(biased)["blind"]["accuracy"] > 0.5
    assert "the blind baseline" in first_problem(biased)


def test_questions_that_reveal_the_answer():
    """The answer is always yes for one name and no for the other; the options alone are balanced."""
    rng = random.Random(0)
    biased = []
    for number in range(200):
        name, answer = rng.choice([("dog", "yes"), ("cat", "no")])
        biased.append(make_example(number, answer, rng.sample(("yes", "no"), 2), question=f"Is it a {name}?"))
    assert bias(biased)["blind"]["accuracy"] > 0.95


def test_a_bias_of_the_training_split_is_measured_in_val():
    rng = random.Random(0)
    train = [make_example(n, "a" if rng.random() < 0.7 else "b", rng.sample("abcd", 4)) for n in range(100)]
    val = [make_example(f"v{n}", example.answer[0], example.choices, split="val") for n, example in enumerate(train)]
    rate = check_examples(train + val, read_audio=False)["bias_by_split"]["val"]["blind_from_train"]
    assert rate["accuracy"] > 0.6


def test_leaks():
    shared = [make_example(1, group="g"), make_example(2, "b", group="g", split="val")]
    assert first_problem(shared) == "leak: group 'g' is in train and val; keep a group in one split"
    same = [make_example(1, audio="x.wav"), make_example(2, audio="x.wav", question="Which?", split="val")]
    assert "file x.wav is in train and val" in first_problem(same)


def pair(number, first, second, **fields):
    """A question about two clips."""
    turns = (Turn("user", (Audio(first), Audio(second), Text("How do they differ?"))),)
    return replace(make_example(number, **fields), turns=turns, choices=(), answer=("by much",))


def test_leaks_through_the_second_clip_of_a_pair():
    """A row names the group of its first clip; that of the second is known from `clip_groups`, or from other rows."""
    stated = [
        replace(pair(1, "a.wav", "b.wav", group="g1"), meta={"clip_groups": ["g1", "g2"]}),
        make_example(2, "b", audio="c.wav", group="g2", split="val"),
    ]
    assert first_problem(stated) == "leak: group 'g2' is in train and val; keep a group in one split"
    joined = [
        pair(1, "a.wav", "b.wav", group="g1"),
        make_example(2, audio="b.wav", group="g2"),
        make_example(3, "b", audio="c.wav", group="g2", split="val"),
    ]
    assert "leak: group 'g2' is in train and val" in first_problem(joined)
    joined[2] = make_example(3, "b", audio="c.wav", group="g3", split="val")
    assert "leak" not in first_problem(joined)


def test_conflicts_and_duplicates():
    clash = [make_example(1, audio="x.wav"), make_example(2, "b", ("d", "c", "b", "a"), audio="x.wav", group="g1")]
    assert "q1 says 'a', q2 says 'b' to one question" in first_problem(clash)
    twice = [make_example(1, audio="x.wav"), make_example(2, audio="x.wav", group="g1")]
    assert "q1 and q2 are one question" in first_problem(twice)
    captions = [replace(example, task="caption", choices=()) for example in clash]
    assert first_problem(captions) == ""
    long_texts = [
        replace(row, choices=(), answer=(text,))
        for row, text in zip(clash, ("a dog barks twice", "some dog is barking"), strict=True)
    ]
    assert first_problem(long_texts) == ""
    short_texts = [
        replace(row, choices=(), answer=(text,))
        for row, text in zip(clash, ("a dog barks", "barks twice"), strict=True)
    ]
    describe = (Turn("user", (Audio("x.wav"), Text("Describe this sound."))),)
    described = [replace(row, turns=describe, task="open") for row in short_texts]
    assert first_problem(described) == "", "several descriptions of one clip can all be true"
    assert "conflict" in first_problem(short_texts)
    words = [replace(row, choices=(), answer=(text,)) for row, text in zip(clash, ("dog", "cat"), strict=True)]
    assert "q1 says 'dog', q2 says 'cat'" in first_problem(words)


def test_licence():
    assert "1 clips name none" in first_problem([make_example(1, licence="")])


def test_audio_is_read(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 800)
    soundfile.write(tmp_path / "1.wav", wave, 16000)
    (tmp_path / "2.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    soundfile.write(tmp_path / "3.wav", np.zeros(800), 16000)
    (tmp_path / "4.wav").touch()
    examples = [replace(make_example(n), root=tmp_path, split="val" if n == 2 else "train") for n in range(1, 5)]
    report = check_examples(examples)
    assert report["silent"] == [str(tmp_path / "3.wav")] and len(report["broken"]) == 1
    assert "1.wav (train) and" in report["copies"][0] and "2.wav (val)" in report["copies"][0]
    assert [line.split(":")[0] for line in report["problems"]] == ["copy", "silent", "broken"]
    with pytest.raises(DataError, match=r"copy: .* \(3 problems in all; see the report\)"):
        check_examples(examples, strict=True)


def test_rows_without_answer_and_few_questions_are_no_problem():
    assert first_problem([replace(make_example(1), answer=(), choices=())]) == ""
    assert first_problem(unbiased(4)) == "" and bias([]) == {}


def test_speakers_and_all_groups_of_a_scene_must_not_cross_splits():
    crossing = [
        make_example(1, meta={"speaker": "anna"}),
        make_example(2, split="val", meta={"speakers": ["bob", "anna"]}),
    ]
    assert first_problem(crossing) == "leak: speaker 'anna' is in train and val; keep a group in one split"
    scene = [make_example(1), make_example(2, split="val", meta={"clip_groups": ["g2", "g1"]})]
    assert "group 'g1' is in train and val" in first_problem(scene)


def test_the_same_question_with_other_case_and_punctuation():
    again = [
        make_example(1, audio="x.wav", question="What is the sound?"),
        make_example(2, audio="x.wav", question="what is  sound ?"),
    ]
    again = [replace(row, group="g") for row in again]
    assert first_problem(again) == "near duplicate: q1 and q2 ask the same in other letters; drop one"
    assert first_problem([again[0], replace(again[1], answer=("b",))]) == ""


def test_the_shape_of_options_reveals_the_answer():
    """No word or text repeats, but the answer is always the only option with a comma."""
    rng = random.Random(0)

    def words():
        return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(6))

    fair_questions, biased = [], []
    for number in range(150):
        texts = [words() for _ in range(4)]
        fair_questions.append(make_example(number, texts[number % 4], texts))
        answer = texts[number % 4].replace(" ", ", ", 1)[:-1]
        biased.append(
            make_example(number, answer, [answer if place == number % 4 else text for place, text in enumerate(texts)])
        )
    assert bias(biased)["options"]["accuracy"] > 0.9 and bias(biased)["blind"]["low"] <= 0.25
    assert "the options baseline" in " ".join(check_examples(biased, read_audio=False)["problems"])
    score = bias(fair_questions)["options"]
    assert score["low"] <= 0.25 <= score["high"] and "options" not in bias(fair_questions[:90])


def test_long_lists_are_cut_and_counted():
    many = [make_example(number, audio="x.wav", group="g") for number in range(MAX_LISTED + 31)]
    report = check_examples(many, read_audio=False)
    assert len(report["duplicates"]) == MAX_LISTED and report["unlisted"] == {"duplicates": 30}
    assert "duplicate: 30 more of this kind are not listed" in report["problems"]


class BlindEngine:
    """Scores options without audio: prefers the option `a`."""

    name, revision, sample_rate, max_audio_s = "blind", "0", 16000, 30.0

    def generate(self, prompts, sampling_params, n=1):
        raise NotImplementedError

    def score(self, prompts, continuations):
        assert all(not wave.any() for prompt in prompts for wave in prompt.waveforms)
        return [[float(option == "a") for option in options] for options in continuations]


def test_questions_that_do_not_require_the_audio_are_found_and_left_out():
    examples = unbiased(100)
    accuracies = blind_model.blind_accuracy(examples, BlindEngine())
    assert all(accuracies[row.id] == (row.answer == ("a",)) for row in examples)
    answered_count = sum(row.answer == ("a",) for row in examples)
    score = blind_model.blind_score(examples, accuracies)
    assert score["always"] == answered_count and score["accuracy"] == answered_count / 100 and score["chance"] == 0.25
    assert len(blind_model.requiring_audio(examples, accuracies)) == 100 - answered_count
    undecided = blind_model.blind_accuracy(
        [make_example(1, "b", ("c", "b"))], BlindEngine()
    )  # scores tie, so the first is chosen: right in one of two orders
    assert undecided == {"q1": 0.5}


def test_the_page_lists_the_problems_and_escapes_texts(tmp_path):
    examples = [make_example(n, "<b>", ("<b>", "x"), question="<script>?", licence="") for n in range(3)]
    page = html_report.write(tmp_path / "m.checks.html", check_examples(examples, read_audio=False), "m & n", examples)
    text = page.read_text()
    assert "m &amp; n" in text and "&lt;script&gt;?" in text and "<script>" not in text and "http" not in text
    assert "3 clips name none" in text and '<audio controls preload="none" src="' in text
    assert json.loads((tmp_path / "m.checks.json").read_text())["n"] == 3


def test_all_rows_that_cannot_be_used_are_listed_up_to_a_bound(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", 0.1 * np.sin(np.arange(8000)), 8000)
    content = [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What? \U0001f436"}]
    good = {"id": "1", "messages": [{"role": "user", "content": content}], "answer": "x"}
    bad = [
        json.dumps({"id": "2", "mesages": []}), json.dumps({"path": "a.wav", "label": "x"}), '{"id": 3,', "[1]",
        json.dumps(good), json.dumps({**good, "id": "4", "answr": "y", "answer": None}),
        json.dumps({**good, "id": "5", "question": "cut \ud83d"}),
        json.dumps(good).replace("a.wav", "gone.wav").replace('"1"', '"6"'),
    ]  # fmt: skip
    Path("m.jsonl").write_text("\n".join([json.dumps(good), *bad]) + "\n")
    assert run(["build", "check", "m.jsonl"]) == 2
    out, err = capsys.readouterr()
    listed = [line for line in out.splitlines() if "m.jsonl:row" in line]
    assert [line.split("row ")[1].split(":")[0] for line in listed] == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert "did you mean 'messages'?" in listed[0] and "half a character, '\\ud83d'" in listed[6]
    assert "8 rows cannot be used" in err
    Path("m.jsonl").write_text("\n".join([json.dumps(good), *["{}"] * (MAX_BAD_ROWS + 7)]) + "\n")
    assert run(["build", "check", "m.jsonl", "--json", "--no-listen"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["bad_rows"] == MAX_BAD_ROWS + 7 and "7 more rows cannot be used" in report["problems"]
    Path("m.jsonl").write_text("{}\n")
    assert run(["build", "check", "m.jsonl"]) == 2
    assert "no row can be used; row 1" in capsys.readouterr().err
