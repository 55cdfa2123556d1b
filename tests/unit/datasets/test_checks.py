"""The checks detect the problems they are meant for, and the bundled starter set passes them."""

import io
import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

import earwise
from earwise import cli
from earwise.audio import decode
from earwise.data import manifest
from earwise.datasets.checks import blind_model, contamination, fingerprint, html_report
from earwise.datasets.checks.audio_checks import fingerprint_clips
from earwise.datasets.checks.check_examples import MAX_LISTED, check_examples
from earwise.datasets.checks.text_baselines import bias
from earwise.datasets.labels import starter_set
from earwise.errors import DataError
from earwise.types import Audio, Example, Text, Turn

STARTER = Path(earwise.__file__).parent / "assets" / "starter"


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


def test_the_bundled_set_has_no_problems():
    train, val = manifest.read(STARTER / "train.jsonl"), manifest.read(STARTER / "val.jsonl")
    report = check_examples([*train, *val], strict=True)
    assert len(val) >= 400 and len(train) >= 700
    for split in ("train", "val"):
        for rate in report["bias_by_split"][split].values():
            assert rate["low"] <= rate["chance"]
    from_train = report["bias_by_split"]["val"]["blind_from_train"]
    assert from_train["low"] <= from_train["chance"] <= from_train["high"]


def test_the_bundled_clips_are_the_listed_ones():
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rows} == {f"clips/{path.name}" for path in (STARTER / "clips").iterdir()}
    clips = {path for name in ("train", "val") for example in manifest.iterate(STARTER / f"{name}.jsonl")
             for path in example.audio_paths}  # fmt: skip
    assert clips == {STARTER / row["path"] for row in rows}
    assert sum(path.stat().st_size for path in STARTER.rglob("*") if path.is_file()) <= 8_000_000
    assert (STARTER / "ATTRIBUTION.md").read_text() == starter_set.attribution(rows)


def test_only_committable_clips_are_selected_and_the_smallest_first():
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
    selected = starter_set.select_clips(rows, max_bytes=1000)
    assert [row["path"] for row in selected] == [f"{number:02}.ogg" for number in (*range(8), 31)]
    assert Counter(row["labels"][0] for row in selected if row["split"] == "train") == {"dog": 4, "cat": 4}
    with pytest.raises(DataError, match="val clips take 131 bytes, the limit is 100"):
        starter_set.select_clips(rows, max_bytes=100)


def encode(wave, container, codec, rate=16000):
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, format=container, subtype=codec) as sound:
        for start in range(0, len(wave), 8000):
            sound.write(np.clip(wave[start : start + 8000], -1, 1))
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


CHANGES = {
    "gain": lambda wave: wave * np.float32(0.2),
    "mp3": lambda wave: encode(wave, "MP3", "MPEG_LAYER_III"),
    "vorbis": lambda wave: encode(wave, "OGG", "VORBIS"),
    "resampled": lambda wave: soxr.resample(soxr.resample(wave, 16000, 11025), 11025, 16000),
    "trimmed": lambda wave: wave[len(wave) // 10 + 77 : -len(wave) // 10],
    "all changes": lambda wave: encode(wave[len(wave) // 8 + 99 : -len(wave) // 10] * 0.5, "MP3", "MPEG_LAYER_III"),
}


@cache
def real_clips():
    """Every 24th bundled clip that is longer than 0.6 s: speech, instruments, noises."""
    rows = [json.loads(line) for line in (STARTER / "labels.jsonl").read_text().splitlines()]
    waveforms = [decode(STARTER / row["path"])[: 16000 * 5] for row in rows[::24]]
    return [wave for wave in waveforms if len(wave) > 9600]


@pytest.mark.parametrize("change", CHANGES)
def test_near_copies_of_real_clips_are_found_without_false_positives(change):
    waveforms = real_clips()
    changed = [CHANGES[change](wave) for wave in waveforms]
    sketches = [fingerprint.sketch(wave) for wave in (*waveforms, *changed)]
    matches = {
        (match.first, match.second - len(waveforms))
        for match in fingerprint.find_near_copies(sketches, n_data=len(waveforms))
    }
    pairs = {(number, number) for number in range(len(waveforms))}
    assert len(waveforms) >= 15 and len(matches & pairs) >= (
        0.85 if change in ("trimmed", "all changes") else 0.95
    ) * len(pairs)
    assert len(matches - pairs) == 0
    for number, _ in matches:
        assert fingerprint.waveform_similarity(waveforms[number], changed[number]) > fingerprint.MIN_SIMILARITY
    assert fingerprint.waveform_similarity(waveforms[0], waveforms[1]) < 0.5


def test_a_sketch_is_small_and_silence_has_none():
    assert max(len(fingerprint.sketch(wave).keys) for wave in real_clips()) == fingerprint.SKETCH_SIZE
    for wave in (np.zeros(16000, np.float32), np.zeros(0, np.float32), np.full(3, 0.5, np.float32)):
        assert len(fingerprint.sketch(wave).keys) == 0
    assert (
        fingerprint.find_near_copies([]) == []
        and fingerprint.find_near_copies([fingerprint.sketch(np.zeros(9, np.float32))]) == []
    )


def test_near_copies_across_splits_and_of_a_benchmark(tmp_path):
    clip, other_clip = max(real_clips(), key=len), real_clips()[1]
    soundfile.write(tmp_path / "1.wav", clip, 16000)
    soundfile.write(tmp_path / "2.flac", 0.4 * clip[2000:], 16000)
    soundfile.write(tmp_path / "3.wav", other_clip, 16000)
    examples = [
        make_example(1, audio="1.wav"),
        make_example(2, audio="2.flac", split="val"),
        make_example(3, audio="3.wav"),
    ]
    examples = [replace(row, root=tmp_path) for row in examples]
    report = check_examples(examples)
    assert len(report["near_copies"]) == 1 and "1.wav (train) and" in report["near_copies"][0]
    assert report["problems"] == [f"near copy: {report['near_copies'][0]}; keep the copies in one split"]
    assert report["sounds"]["clips"] == 3 and sum(report["sounds"]["duration_s"]["counts"]) == 3
    fingerprints = fingerprint_clips([tmp_path / "1.wav"])
    fingerprint.write(tmp_path / "b.prints", fingerprints)
    assert fingerprint.is_fingerprint_file(tmp_path / "b.prints") and not fingerprint.is_fingerprint_file(
        STARTER / "val.jsonl"
    )
    read = fingerprint.read(tmp_path / "b.prints")
    assert read[0].sha256 == fingerprints[0].sha256 and np.array_equal(read[0].sketch.keys, fingerprints[0].sketch.keys)
    matches = check_examples(examples[:1] + examples[2:], benchmark_clips=read)["benchmark"]
    assert matches == [f"{tmp_path / '1.wav'} is {tmp_path / '1.wav'}"]
    matches = check_examples(examples[1:], benchmark_clips=read)["benchmark"]
    assert len(matches) == 1 and "2.flac sounds like" in matches[0]
    (tmp_path / "b.prints").write_text('{"sha256": "x", "keys": [], "frames": []}\n')
    with pytest.raises(DataError, match="row 1: is no fingerprint"):
        fingerprint.read(tmp_path / "b.prints")


def test_questions_and_videos_of_a_benchmark_are_found_without_its_audio(tmp_path, capsys):
    """With the question file of the benchmark, or with a file of hashes, from which the questions cannot be read."""
    question = "Based on the given audio, identify the source of the speaking voice."
    mmau = [
        {"id": "3fe6", "audio_id": "./audios/3fe6.wav", "question": question, "choices": ["Man", "Woman", "A robot"]}
    ]
    mmar = {
        "id": "m1",
        "audio_path": "./audio/qx8hrhBZJ98_00-01-32_00-02-02.wav",
        "question": "Where?",
        "choices": ["a"],
    }
    (tmp_path / "mmau.json").write_text(json.dumps(mmau))
    (tmp_path / "mmar.jsonl").write_text(json.dumps(mmar) + "\n")
    benchmark = contamination.merge(contamination.read(tmp_path / name) for name in ("mmau.json", "mmar.jsonl"))
    assert len(benchmark) == 2
    rows = [
        make_example(
            1,
            "woman",
            ("a robot", "woman", "man"),
            question="based on the given audio: identify the source of the speaking voice",
        ),
        make_example(2, "woman", ("a robot", "woman", "child"), question=question),
        make_example(3, group="youtube:qx8hrhBZJ98"),
        make_example(4, question="Where?", choices=("a", "b")),
    ]
    report = check_examples(rows, read_audio=False, benchmark_hashes=benchmark)
    assert report["benchmark"] == [
        "q1 has the question and options of mmau.json 3fe6",
        "q3 is about the video of mmar.jsonl m1",
    ]
    assert report["problems"][0].endswith("; leave it out of training data")
    manifest.write(tmp_path / "train.jsonl", rows)
    contamination.write(tmp_path / "hashes.jsonl", benchmark)
    assert "speaking" not in (tmp_path / "hashes.jsonl").read_text()
    check = ["build", "check", str(tmp_path / "train.jsonl"), "--no-listen", "--json", "--against"]
    for name in ("hashes.jsonl", "mmau.json"):
        assert cli.run([*check, str(tmp_path / name)]) == 0
        assert json.loads(capsys.readouterr().out)["benchmark"][0] == report["benchmark"][0]
    assert cli.run([*check, str(tmp_path / "train.jsonl"), "--asked", str(tmp_path / "own_hashes.jsonl")]) == 0
    assert contamination.read(tmp_path / "own_hashes.jsonl").questions.keys() >= benchmark.questions.keys()
    (tmp_path / "mmau.json").write_text('[{"id": 1}]')
    assert cli.run([*check, str(tmp_path / "mmau.json")]) == 2 and "question is None" in capsys.readouterr().err


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
